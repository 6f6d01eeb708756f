// SPDX-License-Identifier: Apache-2.0

package blkbackend

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/netbackd/netbackd/internal/blkengine"
	"github.com/netbackd/netbackd/internal/blkplane"
	"github.com/netbackd/netbackd/internal/devices"
	"github.com/netbackd/netbackd/internal/lab/xensim/store"
	"github.com/netbackd/netbackd/internal/vbd"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is an xenstored with a toolstack, and a backend that serves. Its vbds never connect,
// for that needs no backend; they open null disks and show InitWait.
type world struct {
	t      *testing.T
	srv    *store.Server
	tool   *xenstore.Client
	kernel *fakeKernel
	limit  int
}

// fakeKernel is the kernel's driver.
type fakeKernel struct {
	mu     sync.Mutex // guards all below
	loaded bool
	has    xenbus.DeviceID
}

func (k *fakeKernel) Takes(c xenbus.Class) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.loaded && c == xenbus.VBD
}

func (k *fakeKernel) Serves(id xenbus.DeviceID) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.has == id
}

func (k *fakeKernel) set(loaded bool, has xenbus.DeviceID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.loaded, k.has = loaded, has
}

// noHost has no devices of Xen.
type noHost struct{}

var errNone = errors.New("no devices")

func (noHost) OpenGrants() (blkplane.Grants, error) { return nil, errNone }
func (noHost) OpenEvents() (blkplane.Events, error) { return nil, errNone }

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, srv: store.New(store.Options{}), kernel: &fakeKernel{}}
	t.Cleanup(func() { w.must(w.srv.Close()) })
	w.tool, _ = w.dial(t.Context())
	t.Cleanup(func() { w.must(w.tool.Close()) })
	w.must(w.tool.Write(t.Context(), "/local/domain/0/domid", "0"))
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) dial(context.Context) (*xenstore.Client, error) {
	ours, theirs := net.Pipe()
	go func() { _ = w.srv.ServeConn(theirs, 0, xenstore.Socket) }()
	return xenstore.New(ours, xenstore.Socket), nil
}

// start runs a backend and returns it when it is ready.
func (w *world) start() *Backend {
	w.t.Helper()
	b := New(Config{
		Dial: w.dial, Engine: &blkengine.Local{Host: func(xen.Domid) blkplane.Host { return noHost{} }, Pool: blkplane.NewPool(blkplane.Options{})},
		Log: zap.NewNop(), Options: vbd.Options{MaxQueues: 2, RunDir: w.t.TempDir()},
		Kernel: w.kernel, MaxPerGuest: w.limit,
	})
	ctx, cancel := context.WithCancel(context.Background())
	ready := make(chan struct{})
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx, func() { close(ready) }) }()
	w.t.Cleanup(func() { cancel(); w.must(<-ended) })
	<-ready
	return b
}

// attach makes a vbd as the toolstack does.
func (w *world) attach(id xenbus.DeviceID, script string) {
	w.t.Helper()
	w.srv.DomainCreated(id.Domid)
	there, err := w.tool.IsIntroduced(w.t.Context(), id.Domid)
	w.must(err)
	if !there {
		w.must(w.tool.Introduce(w.t.Context(), id.Domid, 1, 1))
	}
	back, front := id.BackendPath(0), id.FrontendPath()
	w.must(w.tool.Transaction(w.t.Context(), func(tx *xenstore.Tx) error {
		for path, value := range map[string]string{
			back + "/frontend": front, back + "/online": "1", back + "/params": "null:1m", back + "/mode": "w",
			back + "/script": script, back + "/hotplug-status": "", back + "/state": "1",
			front + "/backend": back, front + "/state": "1",
		} {
			if err := tx.Write(w.t.Context(), path, value); err != nil {
				return err
			}
		}
		return nil
	}))
}

func (w *world) write(id xenbus.DeviceID, key, value string) {
	w.t.Helper()
	w.must(w.tool.Write(w.t.Context(), id.BackendPath(0)+"/"+key, value))
}

// await waits until the list has these lines of a name and a state or server.
func (w *world) await(b *Backend, want ...string) {
	w.t.Helper()
	var diff string
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		var got []string
		for _, s := range b.List() {
			state := s.State.String()
			if s.ServedBy != "" {
				state = s.ServedBy
			}
			got = append(got, s.Name+" "+state)
		}
		if diff = cmp.Diff(want, got); diff == "" {
			return
		}
	}
	w.t.Fatalf("unexpected list (-want +got):\n%s", diff)
}

func vdisk(class xenbus.Class, domid xen.Domid, name string) xenbus.DeviceID {
	n, err := xenbus.ParseVdev(name)
	if err != nil {
		panic(err)
	}
	return xenbus.DeviceID{Class: class, Domid: domid, Devid: int(n)}
}

const fullScript = "/etc/xen/scripts/" + Script

// TestOurs serves the vbds of both classes whose script is blkbackd's, with a path or
// without, and opens their disks when the script is done.
func TestOurs(t *testing.T) {
	w := newWorld(t)
	b := w.start()
	xvda, tap := vdisk(xenbus.VBD, 1, "xvda"), vdisk(xenbus.VBD3, 1, "xvdb")
	w.attach(xvda, fullScript)
	w.attach(tap, Script)
	w.attach(vdisk(xenbus.VBD, 1, "xvdc"), "/etc/xen/scripts/block")
	w.attach(vdisk(xenbus.VBD3, 1, "xvdd"), "")
	w.await(b, "vbd-1-51712 init-wait", "vbd3-1-51728 init-wait", "vbd-1-51744 other", "vbd3-1-51760 other")
	if b.Vbds() != 2 {
		t.Errorf("%d vbds", b.Vbds())
	}
	w.write(tap, "hotplug-status", "connected")
	var s vbd.Status
	for !s.Disk.Open {
		var err error
		s, err = b.Status(t.Context(), "1/xvdb", s.Revision)
		w.must(err)
	}
	if s.Name != "vbd3-1-51728" || s.Disk.Sectors != 2048 {
		t.Errorf("disk %+v of %s", s.Disk, s.Name)
	}
	w.must(b.Resize("1/xvdb"))
	w.must(b.Reset("vbd-1-51712"))
}

// TestNames finds a vbd by its domain and its name in the guest.
func TestNames(t *testing.T) {
	w := newWorld(t)
	b := w.start()
	w.attach(vdisk(xenbus.VBD, 1, "xvda"), "block")
	w.attach(vdisk(xenbus.VBD3, 1, "xvda"), Script)
	w.attach(vdisk(xenbus.VBD, 1, "xvdb"), "block")
	w.await(b, "vbd-1-51712 other", "vbd3-1-51712 init-wait", "vbd-1-51728 other")
	for name, want := range map[string]string{
		"1/xvda": "vbd3-1-51712", "1/51712": "vbd3-1-51712", "1/xvdb": "vbd-1-51728", "vbd-1-51712": "vbd-1-51712",
	} {
		if s, err := b.Status(t.Context(), name, 0); s.Name != want || err != nil {
			t.Errorf("%s is %q, %v", name, s.Name, err)
		}
	}
	for _, name := range []string{"2/xvda", "1/xvdz", "1/", "/xvda", "xvda", "vif1.0", "vbd-1-5", ""} {
		if s, err := b.Status(t.Context(), name, 0); !errors.Is(err, ErrNoVbd) || !strings.Contains(err.Error(), "there are vbd-1-51712") {
			t.Errorf("%q: %s, %v", name, s.Name, err)
		}
		for what, err := range map[string]error{"reset": b.Reset(name), "resize": b.Resize(name), "adopt": b.Adopt(name), "can adopt": b.CanAdopt(name)} {
			if !errors.Is(err, ErrNoVbd) {
				t.Errorf("%s %q: %v", what, name, err)
			}
		}
	}
}

// TestAdopt takes a vbd from the kernel's driver before its guest is connected.
func TestAdopt(t *testing.T) {
	w := newWorld(t)
	id, other := vdisk(xenbus.VBD, 1, "xvda"), vdisk(xenbus.VBD, 1, "xvdb")
	w.kernel.set(true, id)
	w.attach(id, Script)
	w.attach(other, "block")
	w.write(id, "state", "2") // as the driver does
	b := w.start()
	w.await(b, "vbd-1-51712 kernel", "vbd-1-51728 other")
	w.must(b.CanAdopt("1/xvda"))
	if err := errors.Join(b.CanAdopt("1/xvdb"), b.Adopt("1/xvdb")); strings.Count(fmt.Sprint(err), "its script is not block-blkbackd") != 2 {
		t.Errorf("another's disk: %v", err)
	}
	w.write(id, "state", "4")
	if err := b.CanAdopt("1/xvda"); !errors.Is(err, ErrConnected) {
		t.Errorf("a connected disk: %v", err)
	}
	w.write(id, "state", "2")
	if err := b.Adopt("1/xvda"); !errors.Is(err, devices.ErrKernelServes) {
		t.Errorf("a bound disk: %v", err)
	}
	w.kernel.set(true, xenbus.DeviceID{})
	w.must(b.Adopt("1/xvda"))
	w.must(b.Adopt("vbd-1-51712")) // again
	w.await(b, "vbd-1-51712 init-wait", "vbd-1-51728 other")
}

// TestTooMany: a guest's vbds beyond the limit are listed with the reason.
func TestTooMany(t *testing.T) {
	w := newWorld(t)
	w.limit = 1
	b := w.start()
	w.attach(vdisk(xenbus.VBD, 1, "xvda"), Script)
	w.await(b, "vbd-1-51712 init-wait")
	w.attach(vdisk(xenbus.VBD, 1, "xvdb"), Script)
	w.await(b, "vbd-1-51712 init-wait", "vbd-1-51728 none")
	if s, err := b.Status(t.Context(), "1/xvdb", 0); err != nil || s.Error != "blkbackd serves at most 1 vbds of a guest" {
		t.Errorf("%q, %v", s.Error, err)
	}
}
