// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/control"
	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/internal/vif"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

func TestMain(m *testing.M) { os.Exit(netns.Main(m)) }

func TestParseID(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want xenbus.VifID
		ok   bool
	}{
		{"vif3.1", xenbus.VifID{Domid: 3, Devid: 1}, true},
		{"backend/vif/3/1", xenbus.VifID{Domid: 3, Devid: 1}, true},
		{"/local/domain/0/backend/vif/3/1", xenbus.VifID{Domid: 3, Devid: 1}, true},
		{"vif3", xenbus.VifID{}, false},
		{"backend/vif/3", xenbus.VifID{}, false},
		{"backend/vbd/3/51712", xenbus.VifID{}, false},
		{"eth0", xenbus.VifID{}, false},
		{"vif70000.0", xenbus.VifID{}, false},
		{"", xenbus.VifID{}, false},
	} {
		got, err := ParseID(tt.in)
		if got != tt.want || (err == nil) != tt.ok {
			t.Errorf("ParseID(%q) = %v, %v", tt.in, got, err)
		}
	}
}

// vif10 is the vif that is moved.
var vif10 = xenbus.VifID{Domid: 1, Devid: 0}

const (
	back  = "/local/domain/0/backend/vif/1/0"
	guest = "00:16:3e:00:00:01"
)

// bed is a host with a bridge, on which vif1.0 is served by the kernel or by netbackd.
// It plays the kernel, the daemon and xenstore, and records the requests.
type bed struct {
	t      *testing.T
	done   []string
	loaded bool
	kernel bool // serves vif1.0
	ours   bool // netbackd does
	fail   map[string]error
	nodes  map[string]string
	gap    func()   // called while no back end serves
	wait   func()   // called when a request waits for another revision; nil: it does not wait
	watch  events   // of the state node
	asked  []uint64 // revisions after which requests wait
	states []string // of the node once the kernel serves, before the one in nodes
	dark   int      // this many requests find the TAP without carrier
	away   int      // this many requests find no daemon: it is being restarted
	queues int
}

func newBed(t *testing.T) *bed {
	t.Helper()
	netns.Need(t)
	b := &bed{t: t, loaded: true, fail: map[string]error{}, queues: 1, gap: func() {}}
	b.nodes = map[string]string{
		"domid": "0", back + "/state": "4", back + "/mac": guest,
		back + "/script": "vif-bridge", back + "/hotplug-status": "connected",
	}
	_, err := netns.AddBridge("xenbr0")
	b.must(err)
	// A bridge without a port drops its host's packets.
	b.must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "other"}, PeerName: "another"}))
	for _, name := range []string{"other", "another"} {
		b.must(netns.Up(name))
	}
	b.must(netns.Attach("other", "xenbr0"))
	t.Cleanup(func() {
		for _, name := range []string{"vif1.0", "web", "other", "xenbr0"} {
			if _, err := netlink.LinkByName(name); err == nil {
				b.must(netns.Delete(name))
			}
		}
	})
	return b
}

func (b *bed) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// add makes an interface that discards the packets sent to it.
func (b *bed) add(name string) {
	b.t.Helper()
	b.must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "peer"}))
	b.must(netns.Up("peer"))
}

// plug configures an interface as vif-bridge does.
func (b *bed) plug(name string) {
	b.t.Helper()
	mac, err := net.ParseMAC("fe:ff:ff:ff:ff:ff")
	b.must(err)
	b.must(netns.SetMAC(name, mac))
	b.must(netns.Attach(name, "xenbr0"))
	b.must(netns.Up(name))
}

func (b *bed) did(what string) error {
	b.done = append(b.done, what)
	return b.fail[what]
}

func (b *bed) Loaded() bool                           { return b.loaded }
func (b *bed) Serves(xenbus.VifID) bool               { return b.kernel }
func (b *bed) MaxQueues() (int, error)                { return 2, nil }
func (b *bed) Interface(xenbus.VifID) (string, error) { return b.name(), nil }

func (b *bed) name() string {
	if _, err := netlink.LinkByName("web"); err == nil {
		return "web"
	}
	return "vif1.0"
}

func (b *bed) Unbind(xenbus.VifID) error {
	if err := b.did("unbind"); err != nil {
		return err
	}
	b.must(netns.Delete(b.name()))
	b.kernel = false
	delete(b.nodes, back+"/hotplug-status")
	b.gap()
	return nil
}

func (b *bed) Bind(xenbus.VifID) error {
	if err := b.did("bind"); err != nil {
		return err
	}
	b.add("vif1.0")
	b.kernel = true
	return nil
}

func (b *bed) CanAdopt(context.Context, string) error { return b.did("can adopt") }

func (b *bed) Adopt(ctx context.Context, _ string) error {
	if err := errors.Join(b.did("adopt"), ctx.Err(), b.restarting()); err != nil {
		return err
	}
	b.add("vif1.0")
	b.ours = true
	return nil
}

func (b *bed) Release(ctx context.Context, _ string) (int, error) {
	if err := errors.Join(b.did("release"), ctx.Err()); err != nil {
		return 0, err
	}
	if b.ours {
		b.must(netns.Delete(b.name()))
		b.ours = false
		b.gap()
	}
	return 3, nil
}

func (b *bed) Vif(_ context.Context, name string, after uint64) (vif.Status, error) {
	if after != 0 {
		b.asked = append(b.asked, after)
		b.wait()
	}
	if err := b.restarting(); err != nil {
		return vif.Status{}, err
	}
	if name != "vif1.0" || !b.loaded && !b.ours {
		return vif.Status{}, fmt.Errorf("%s: %w", name, control.ErrNotFound)
	}
	s := vif.Status{Name: "vif1.0", Domid: 1, ServedBy: "kernel"}
	if b.ours {
		s = vif.Status{
			Name: "vif1.0", Domid: 1, State: xenbus.Connected, Interface: b.name(),
			Carrier: b.nodes[back+"/hotplug-status"] == "connected", Queues: make([]vif.QueueStatus, b.queues),
			Hotplug: b.nodes[back+"/hotplug-status"], Revision: 100 - uint64(b.dark),
		}
		if b.dark > 0 {
			b.dark--
			s.Carrier = false
		}
	}
	return s, nil
}

// Await returns when the daemon is there again, which still does not answer once.
func (b *bed) Await(ctx context.Context) error {
	b.away = min(b.away, 1)
	return ctx.Err()
}

// restarting fails while the daemon is being restarted.
func (b *bed) restarting() error {
	if b.away == 0 {
		return nil
	}
	b.away--
	return control.ErrNotRunning
}

func (b *bed) Read(_ context.Context, path string) (string, error) {
	if path == back+"/state" && b.kernel && len(b.states) > 0 {
		s := b.states[0]
		b.states = b.states[1:]
		b.watch <- xenstore.Event{Path: path}
		return s, nil
	}
	v, ok := b.nodes[path]
	if !ok {
		return "", xenstore.ErrNotExist
	}
	return v, nil
}

func (b *bed) Write(_ context.Context, path, value string) error {
	b.nodes[path] = value
	return nil
}

// events is a watch that has sent its first event.
type events chan xenstore.Event

func (e events) C() <-chan xenstore.Event { return e }
func (e events) Close()                   {}

func (b *bed) Watch(_ context.Context, path string) (Watch, error) {
	if path != back+"/state" {
		b.t.Errorf("watches %s", path)
	}
	b.watch = make(events, 8)
	b.watch <- xenstore.Event{Path: path}
	return b.watch, nil
}

func (b *bed) mover() *Mover {
	return &Mover{Kernel: b, Daemon: b, Store: b, Script: func(ctx context.Context, path string, env []string) error {
		b.must(ctx.Err())
		for _, want := range []string{"XENBUS_PATH=backend/vif/1/0", "vif=vif1.0", "XENBUS_TYPE=vif", "XENBUS_BASE_PATH=backend", "NETBACKD_HOTPLUG=done", "script=" + path} {
			if !slices.Contains(env, want) {
				b.t.Errorf("the script's environment has no %s: %q", want, env)
			}
		}
		b.nodes[back+"/hotplug-status"] = "connected"
		return b.did(filepath.Base(path))
	}}
}

// send sends a frame to the guest, from the host.
func (b *bed) send() {
	b.t.Helper()
	br, err := netlink.LinkByName("xenbr0")
	b.must(err)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	b.must(err)
	defer func() { b.must(unix.Close(fd)) }()
	var f [60]byte
	copy(f[:], "\x00\x16\x3e\x00\x00\x01\x02\x00\x00\x00\x00\x01\x88\xb5")
	b.must(unix.Sendto(fd, f[:], 0, &unix.SockaddrLinklayer{Ifindex: br.Attrs().Index}))
	f[5] = 2 // and one for another address
	b.must(unix.Sendto(fd, f[:], 0, &unix.SockaddrLinklayer{Ifindex: br.Attrs().Index}))
}

// wantPlace checks that an interface has vif1.0's place on the bridge.
func (b *bed) wantPlace(name string) {
	b.t.Helper()
	l, err := netlink.LinkByName(name)
	b.must(err)
	br, err := netlink.LinkByName("xenbr0")
	b.must(err)
	a := l.Attrs()
	if a.MasterIndex != br.Attrs().Index || a.HardwareAddr.String() != "fe:ff:ff:ff:ff:ff" || a.MTU != 1400 || a.Flags&net.FlagUp == 0 {
		b.t.Errorf("%s: master %d, address %v, mtu %d, flags %v", name, a.MasterIndex, a.HardwareAddr, a.MTU, a.Flags)
	}
	isolated, err := os.ReadFile(filepath.Join(classNet, name, "brport/isolated"))
	b.must(err)
	if string(isolated) != "1\n" {
		b.t.Errorf("isolated is %q", isolated)
	}
}

// special gives an interface and its bridge port settings that vif-bridge does not make.
func (b *bed) special(name string) {
	b.t.Helper()
	l, err := netlink.LinkByName(name)
	b.must(err)
	b.must(netlink.LinkSetMTU(l, 1400))
	b.must(os.WriteFile(filepath.Join(classNet, name, "brport/isolated"), []byte("1"), 0))
}

func (b *bed) wantDone(want ...string) {
	b.t.Helper()
	if diff := cmp.Diff(want, b.done); diff != "" {
		b.t.Errorf("unexpected steps (-want +got):\n%s", diff)
	}
}

// TestThereAndBack: a vif keeps its place, and the result counts the lost packets.
func TestThereAndBack(t *testing.T) {
	b := newBed(t)
	b.kernel = true
	b.add("vif1.0")
	b.plug("vif1.0")
	b.special("vif1.0")
	m := b.mover()
	ctx := context.Background()

	b.gap = func() {
		for range 7 {
			b.send()
		}
	}
	r, err := m.Adopt(ctx, vif10)
	b.must(err)
	if r.Lost != 7 || r.AtLeast || r.Script || r.Gap <= 0 {
		t.Errorf("report %+v", r)
	}
	b.wantPlace("vif1.0")
	b.wantDone("can adopt", "unbind", "adopt")
	if got := b.nodes[back+"/hotplug-status"]; got != "connected" {
		t.Errorf("hotplug-status %q", got)
	}

	b.done = nil
	b.nodes[back+"/hotplug-status"] = ""
	r, err = m.Release(ctx, vif10)
	b.must(err)
	if r.Lost != 7+3 || r.Script {
		t.Errorf("report %+v", r)
	}
	b.wantPlace("vif1.0")
	b.wantDone("release", "bind")
}

// TestDelivered: packets that reach the guest are not counted as lost.
func TestDelivered(t *testing.T) {
	b := newBed(t)
	b.add("vif1.0")
	b.plug("vif1.0")
	p, err := placeOf("vif1.0")
	b.must(err)
	mac, err := net.ParseMAC(guest)
	b.must(err)
	c, err := startCounter(p.bridge, mac)
	b.must(err)
	for range 100 {
		b.send()
	}
	lost, more, err := c.stop(p.index)
	if lost != 0 || more || err != nil || c.entered != 100 {
		t.Errorf("lost %d of %d, more %t, %v", lost, c.entered, more, err)
	}
}

// TestRenamed: a vif with vifname= keeps its name.
func TestRenamed(t *testing.T) {
	b := newBed(t)
	b.kernel = true
	b.add("web")
	b.plug("web")
	b.special("web")
	if _, err := b.mover().Adopt(context.Background(), vif10); err != nil {
		t.Fatal(err)
	}
	b.wantPlace("web")
}

// TestByScript: the hotplug script runs again if the place cannot be copied.
func TestByScript(t *testing.T) {
	for name, change := range map[string]func(*bed){
		"no bridge": func(b *bed) {
			l, err := netlink.LinkByName("vif1.0")
			b.must(err)
			b.must(netlink.LinkSetNoMaster(l))
		},
		"an address": func(b *bed) { b.must(netns.AddAddr("vif1.0", "192.0.2.1/32")) },
		"VLANs": func(b *bed) {
			br, err := netlink.LinkByName("xenbr0")
			b.must(err)
			if err := netlink.BridgeSetVlanFiltering(br, true); errors.Is(err, unix.EOPNOTSUPP) {
				b.t.Skip("the kernel's bridges know no VLANs")
			} else {
				b.must(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			b.kernel = true
			b.add("vif1.0")
			b.plug("vif1.0")
			change(b)
			r, err := b.mover().Adopt(context.Background(), vif10)
			b.must(err)
			if !r.Script {
				t.Errorf("report %+v", r)
			}
			b.wantDone("can adopt", "unbind", "adopt", "vif-bridge")
		})
	}
}

// TestInterrupted: a command that is stopped while no back end serves the guest finishes
// the move.
func TestInterrupted(t *testing.T) {
	for _, script := range []bool{false, true} {
		b := newBed(t)
		b.kernel = true
		b.add("vif1.0")
		b.plug("vif1.0")
		if script {
			b.must(netns.AddAddr("vif1.0", "192.0.2.1/32"))
		} else {
			b.special("vif1.0")
		}
		ctx, stop := context.WithCancel(context.Background())
		b.gap = stop
		if _, err := b.mover().Adopt(ctx, vif10); err != nil || !b.ours {
			t.Errorf("adopt, script %t: %v; it is netbackd's: %t", script, err, b.ours)
		}
		if !script {
			b.wantPlace("vif1.0")
		}
		ctx, stop = context.WithCancel(context.Background())
		b.gap = func() {
			stop()
			b.add("vif1.0") // as long as it lingers
			time.AfterFunc(20*time.Millisecond, func() { _ = netns.Delete("vif1.0") })
		}
		if _, err := b.mover().Release(ctx, vif10); err != nil || !b.kernel {
			t.Errorf("release, script %t: %v; it is the kernel's: %t", script, err, b.kernel)
		}
		b.must(netns.Delete("vif1.0"))
		b.must(netns.Delete("other"))
		b.must(netns.Delete("xenbr0"))
	}
}

// TestTakenBack: if the new back end cannot serve the vif, the old one serves it again in
// its old place.
func TestTakenBack(t *testing.T) {
	t.Run("by the kernel", func(t *testing.T) {
		b := newBed(t)
		b.kernel = true
		b.add("vif1.0")
		b.plug("vif1.0")
		b.special("vif1.0")
		b.fail["adopt"] = errors.New("no TAP")
		_, err := b.mover().Adopt(context.Background(), vif10)
		if err == nil || err.Error() != "no TAP; the kernel serves it again" {
			t.Errorf("got %v", err)
		}
		b.wantDone("can adopt", "unbind", "adopt", "release", "bind")
		b.wantPlace("vif1.0")
		if got := b.nodes[back+"/hotplug-status"]; got != "connected" {
			t.Errorf("hotplug-status %q", got)
		}
	})
	t.Run("by netbackd", func(t *testing.T) {
		b := newBed(t)
		b.ours = true
		b.add("vif1.0")
		b.plug("vif1.0")
		b.special("vif1.0")
		b.fail["bind"] = errors.New("no such device")
		_, err := b.mover().Release(context.Background(), vif10)
		if err == nil || err.Error() != "no such device; netbackd serves it again" {
			t.Errorf("got %v", err)
		}
		b.wantDone("release", "bind", "adopt")
		b.wantPlace("vif1.0")
	})
	t.Run("without a back end", func(t *testing.T) {
		b := newBed(t)
		b.ours = true
		b.add("vif1.0")
		b.plug("vif1.0")
		b.fail["bind"], b.fail["adopt"] = errors.New("no such device"), errors.New("no TAP")
		_, err := b.mover().Release(context.Background(), vif10)
		if err == nil || !strings.Contains(err.Error(), "netbackd adopt vif1.0") {
			t.Errorf("got %v", err)
		}
	})
}

// TestHotplug: the guest does not use the vif yet, and the hotplug script still runs.
func TestHotplug(t *testing.T) {
	ctx := context.Background()
	t.Run("from the kernel", func(t *testing.T) {
		b := newBed(t)
		b.kernel = true
		b.add("vif1.0")
		b.must(b.mover().Hotplug(ctx, vif10))
		b.wantDone("can adopt", "unbind", "adopt")
	})
	t.Run("no driver", func(t *testing.T) {
		b := newBed(t)
		b.loaded = false
		b.must(b.mover().Hotplug(ctx, vif10))
		b.wantDone("adopt")
	})
	t.Run("netbackd does not run", func(t *testing.T) {
		b := newBed(t)
		b.kernel = true
		down := errors.New("netbackd is not running")
		b.fail["can adopt"] = down
		if err := b.mover().Hotplug(ctx, vif10); !errors.Is(err, down) {
			t.Errorf("got %v", err)
		}
		b.wantDone("can adopt")
		b.must(b.mover().Fail(ctx, vif10, down))
		if b.nodes[back+"/hotplug-error"] != down.Error() || b.nodes[back+"/hotplug-status"] != "error" {
			t.Errorf("nodes %v", b.nodes)
		}
	})
	t.Run("netbackd cannot", func(t *testing.T) {
		b := newBed(t)
		b.kernel = true
		b.add("vif1.0")
		b.fail["adopt"] = errors.New("no TAP")
		err := b.mover().Hotplug(ctx, vif10)
		if err == nil || err.Error() != "no TAP; the kernel serves it again" {
			t.Errorf("got %v", err)
		}
		b.wantDone("can adopt", "unbind", "adopt", "release", "bind")
	})
}

func TestRefused(t *testing.T) {
	ctx := context.Background()
	for _, tt := range []struct {
		name  string
		bed   func(*bed)
		adopt bool
		want  string
		done  []string
	}{
		{"adopt what is ours", func(b *bed) { b.ours = true }, true, "vif1.0: " + ErrServed.Error(), nil},
		{"adopt without driver", func(b *bed) { b.loaded = false }, true, ErrKernelNotLoaded.Error(), nil},
		{"adopt what would lose its settings", func(b *bed) {
			b.kernel = true
			b.fail["can adopt"] = errors.New("a control ring")
		}, true, "a control ring", []string{"can adopt"}},
		{"release without driver", func(b *bed) { b.ours, b.loaded = true, false }, false, "modprobe -i xen-netback", nil},
		{"release what is the kernel's", func(b *bed) { b.kernel = true }, false, ErrKernelServes.Error(), nil},
		{"release an unserved vif", func(b *bed) {}, false, "vif1.0: " + ErrNoVif.Error(), nil},
		{"release more queues than the kernel takes", func(b *bed) { b.ours, b.queues = true, 3 }, false, "xen-netback takes 2", nil},
		{"release what netbackd keeps", func(b *bed) {
			b.ours = true
			b.add("vif1.0")
			b.fail["release"] = errors.New("multicast")
		}, false, "multicast", []string{"release"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBed(t)
			tt.bed(b)
			move := b.mover().Release
			if tt.adopt {
				move = b.mover().Adopt
				if b.kernel {
					b.add("vif1.0")
				}
			}
			_, err := move(ctx, vif10)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			b.wantDone(tt.done...)
		})
	}
}

// TestDaemonIsRestartedMeanwhile: a daemon that is killed and started again during an
// adoption gets the vif.
func TestDaemonIsRestartedMeanwhile(t *testing.T) {
	b := newBed(t)
	b.kernel = true
	b.add("vif1.0")
	b.plug("vif1.0")
	b.special("vif1.0")
	b.gap = func() { b.away = 5 }
	r, err := b.mover().Adopt(context.Background(), vif10)
	b.must(err)
	if !b.ours || r.Script {
		t.Errorf("it is netbackd's: %t; report %+v", b.ours, r)
	}
	b.wantPlace("vif1.0")
	b.wantDone("can adopt", "unbind", "adopt", "adopt")
}

// TestBegunBefore: an adoption finishes what a killed adoption began.
func TestBegunBefore(t *testing.T) {
	b := newBed(t)
	b.ours = true
	b.nodes[back+"/hotplug-status"] = ""
	_, err := b.mover().Adopt(context.Background(), vif10)
	b.must(err)
	b.wantDone("adopt", "vif-bridge")
	if _, err := b.mover().Adopt(context.Background(), vif10); !errors.Is(err, ErrServed) {
		t.Errorf("once more: %v", err)
	}
}

// TestUnserved: Adopt takes a vif that neither back end serves.
func TestUnserved(t *testing.T) {
	b := newBed(t)
	_, err := b.mover().Adopt(context.Background(), vif10)
	b.must(err)
	b.wantDone("adopt", "vif-bridge")
}

// TestAwaitDaemon: each request waits for a revision other than the last one.
func TestAwaitDaemon(t *testing.T) {
	b := newBed(t)
	b.kernel = true
	b.add("vif1.0")
	b.plug("vif1.0")
	b.dark, b.wait = 2, func() {}
	_, err := b.mover().Adopt(t.Context(), vif10)
	b.must(err)
	if diff := cmp.Diff([]uint64{98, 99}, b.asked); diff != "" {
		t.Errorf("unexpected requests (-want +got):\n%s", diff)
	}
}

// TestAwaitKernel: the release ends when the kernel has connected the vif.
func TestAwaitKernel(t *testing.T) {
	b := newBed(t)
	b.ours = true
	b.add("vif1.0")
	b.plug("vif1.0")
	b.must(netns.AddAddr("vif1.0", "192.0.2.1/32")) // so the script is run, and sets no carrier
	b.states = []string{"2", "2"}
	_, err := b.mover().Release(t.Context(), vif10)
	b.must(err)
	if len(b.states) != 0 {
		t.Errorf("it did not wait for the state to be other than %q", b.states)
	}
}

// TestClosedByKernel: the driver refuses the vif.
func TestClosedByKernel(t *testing.T) {
	b := newBed(t)
	b.ours = true
	b.add("vif1.0")
	b.plug("vif1.0")
	b.gap = func() { b.nodes[back+"/state"] = "5" }
	if _, err := b.mover().Release(context.Background(), vif10); err == nil || !strings.Contains(err.Error(), "has closed the vif") {
		t.Errorf("got %v", err)
	}
}
