// SPDX-License-Identifier: Apache-2.0

package vbd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/netbackd/netbackd/internal/blkengine"
	"github.com/netbackd/netbackd/internal/blkplane"
	"github.com/netbackd/netbackd/internal/disk"
	"github.com/netbackd/netbackd/internal/lab/xensim/store"
	"github.com/netbackd/netbackd/pkg/blkif"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
	"github.com/netbackd/netbackd/pkg/xentest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	domid    = 7
	backDir  = "/local/domain/0/backend/vbd/7/51712"
	frontDir = "/local/domain/7/device/vbd/51712"
	errorKey = "/local/domain/0/error/backend/vbd/7/51712/error"
)

var testID = xenbus.DeviceID{Class: xenbus.VBD, Domid: domid, Devid: 51712}

// world is a host with one vbd: a real xenstored, a real file as the disk, and a fake Xen.
// Tests tell its toolstack and its guest what to do.
//
// The vbd does not run. A test makes it reconcile and sees the result; see settle. So tests
// need not wait, except where waiting is their subject.
type world struct {
	t     *testing.T
	srv   *store.Server
	tool  *xenstore.Client // the toolstack's, domain 0
	guest *xenstore.Client // the guest's
	xs    *hookedStore     // the vbd's
	host  fakeHost
	log   *observer.ObservedLogs
	image string
	cfg   Config
	v     *Vbd

	rings []ring
	next  xen.Gref
}

// ring is the guest's end of a queue.
type ring struct {
	keys  queueKeys
	front *blkif.Front
	mem   []byte
}

// hookedStore is a connection that tests can observe and interrupt.
type hookedStore struct {
	*xenstore.Client
	commit func(tx *xenstore.Tx) // before each transaction ends
	fail   error                 // of each transaction; nil: none
	reads  int
}

func (s *hookedStore) Read(ctx context.Context, path string) (string, error) {
	s.reads++
	return s.Client.Read(ctx, path)
}

func (s *hookedStore) Transaction(ctx context.Context, f func(*xenstore.Tx) error) error {
	if s.fail != nil {
		return s.fail
	}
	return s.Client.Transaction(ctx, func(tx *xenstore.Tx) error {
		err := f(tx)
		if err == nil && s.commit != nil {
			s.commit(tx)
		}
		return err
	})
}

// fakeHost is a host with one guest. At the end of the test the backend may hold nothing of
// it.
type fakeHost struct{ *xentest.Guest }

func (h fakeHost) OpenGrants() (blkplane.Grants, error) {
	g, err := h.OpenGntdev()
	if err != nil {
		return nil, err
	}
	return g, nil
}

func (h fakeHost) OpenEvents() (blkplane.Events, error) {
	e, err := h.OpenEvtchn()
	if err != nil {
		return nil, err
	}
	return e, nil
}

// held describes the guest's pages, and the handles and ports, that the backend has.
func (h fakeHost) held() string {
	u := h.Usage()
	return fmt.Sprintf("%d pages, %d handles, %d ports", u.Pages, u.Devices, u.Ports)
}

const nothing = "0 pages, 0 handles, 0 ports"

const imageSectors = 256

// newWorld makes a world whose toolstack has not made the vbd yet.
func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, srv: store.New(store.Options{}), host: fakeHost{xentest.Start(t, domid)}, next: 100}
	t.Cleanup(func() { w.must(w.srv.Close()) })
	w.tool = w.connect(0)
	w.xs = &hookedStore{Client: w.connect(0)}
	w.srv.DomainCreated(domid)
	w.must(w.tool.Mkdir(t.Context(), "/local/domain/0"))
	w.must(w.tool.Introduce(t.Context(), domid, 1, 1))
	w.guest = w.connect(domid)
	w.image = filepath.Join(t.TempDir(), "disk.img")
	w.must(os.WriteFile(w.image, make([]byte, imageSectors*disk.SectorSize), 0o600))
	core, log := observer.New(zapcore.DebugLevel)
	w.log = log
	w.cfg = Config{
		ID: testID, Path: backDir, ErrorPath: errorKey,
		Store: w.xs, Log: zap.New(core),
		Engine: &blkengine.Local{
			Pool: blkplane.NewPool(blkplane.Options{}),
			Host: func(xen.Domid) blkplane.Host { return w.host },
		},
		Options: Options{
			MaxQueues: 4, MaxOrder: 4, MaxSegments: 256, Persistent: true, Cache: disk.CacheWriteback, RunDir: t.TempDir(),
		},
	}
	w.start()
	t.Cleanup(func() { w.stop() })
	return w
}

// start makes a vbd, as a daemon does that has just been started.
func (w *world) start() { w.v = New(w.cfg) }

// stop ends the vbd as the daemon does at its end, and waits for everything that it left.
func (w *world) stop() {
	w.t.Helper()
	w.v.suspend()
	w.v.alarm.Stop()
	w.eventually("the disk is closed", func() bool { return !w.locked() })
	w.eventually("nothing is held", func() bool { return w.host.held() == nothing })
}

// restart ends the vbd and starts a successor.
func (w *world) restart() {
	w.t.Helper()
	w.stop()
	w.start()
}

// locked reports whether another program could not write the disk.
func (w *world) locked() bool {
	ctx, cancel := context.WithCancel(w.t.Context())
	cancel()
	d, err := disk.Open(ctx, disk.Options{Path: w.image, Cache: disk.CacheWriteback})
	var e *disk.Error
	if errors.As(err, &e) {
		return e.Reason == disk.ReasonBusy
	}
	w.must(err)
	w.must(d.Close())
	return false
}

// connect connects a domain to xenstore.
func (w *world) connect(id xen.Domid) *xenstore.Client {
	ours, theirs := net.Pipe()
	kind := xenstore.Socket
	if id != 0 {
		kind = xenstore.Xenbus
	}
	var wg sync.WaitGroup
	wg.Go(func() { _ = w.srv.ServeConn(theirs, id, kind) })
	c := xenstore.New(ours, kind)
	w.t.Cleanup(func() { w.must(c.Close()); wg.Wait() })
	return c
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// write writes keys below a directory in one transaction: pairs of key and value, "-" for no
// key.
func (w *world) write(c *xenstore.Client, dir string, pairs ...string) {
	w.t.Helper()
	w.must(c.Transaction(w.t.Context(), func(tx *xenstore.Tx) error {
		for i := 0; i < len(pairs); i += 2 {
			path := dir + "/" + pairs[i]
			if pairs[i+1] != "-" {
				if err := tx.Write(w.t.Context(), path, pairs[i+1]); err != nil {
					return err
				}
			} else if err := tx.Remove(w.t.Context(), path); err != nil && !errors.Is(err, xenstore.ErrNotExist) {
				return err
			}
		}
		return nil
	}))
}

// attach makes the vbd as libxl does, with other keys if given.
func (w *world) attach(pairs ...string) {
	w.t.Helper()
	for _, d := range []struct {
		dir   string
		owner xen.Domid
		other xen.Domid
	}{{backDir, 0, domid}, {frontDir, domid, 0}} {
		w.must(w.tool.Mkdir(w.t.Context(), d.dir))
		w.must(w.tool.SetPermissions(w.t.Context(), d.dir, []xenstore.Perm{
			{Domid: d.owner, Access: xenstore.AccessNone}, {Domid: d.other, Access: xenstore.AccessRead},
		}))
	}
	w.write(w.tool, frontDir, "backend", backDir, "backend-id", "0", "state", "1", "virtual-device", "51712", "device-type", "disk")
	w.write(w.tool, backDir, slices.Concat([]string{
		"frontend", frontDir, "frontend-id", "7", "online", "1", "state", "1", "params", w.image,
		"script", "/etc/xen/scripts/block-blkbackd", "mode", "w", "device-type", "disk", "type", "phy", "dev", "xvda",
		"discard-enable", "1",
	}, pairs)...)
}

// detach asks for the removal of the vbd, as the toolstack does.
func (w *world) detach() {
	w.t.Helper()
	if w.get(backDir+"/state") == "6" {
		w.write(w.tool, backDir, "online", "0")
		return
	}
	w.write(w.tool, backDir, "online", "0", "state", "5")
}

// plugIn writes that the hotplug script is done.
func (w *world) plugIn() { w.t.Helper(); w.write(w.tool, backDir, "hotplug-status", "connected") }

// frontState writes the state of the frontend.
func (w *world) frontState(s xenbus.State) {
	w.t.Helper()
	w.write(w.guest, frontDir, "state", s.Value())
}

// publish makes rings for n queues in the guest and writes their keys.
func (w *world) publish(n, order int, pairs ...string) {
	w.t.Helper()
	keys := []string{
		"protocol", "x86_64-abi", "feature-persistent", "1",
		"multi-queue-num-queues", "-", "ring-page-order", "-", "ring-ref", "-", "event-channel", "-",
	}
	if n > 1 {
		keys = append(keys, "multi-queue-num-queues", strconv.Itoa(n))
	}
	if order > 0 {
		keys = append(keys, "ring-page-order", strconv.Itoa(order))
	}
	w.rings = nil
	for i := range n {
		prefix := ""
		if n > 1 {
			prefix = fmt.Sprintf("queue-%d/", i)
		}
		r := w.newRing(1 << order)
		w.rings = append(w.rings, r)
		for j, ref := range r.keys.refs {
			key := fmt.Sprintf("%sring-ref%d", prefix, j)
			if order == 0 {
				key = prefix + "ring-ref"
			}
			keys = append(keys, key, fmt.Sprint(ref))
		}
		keys = append(keys, prefix+"event-channel", fmt.Sprint(r.keys.port))
	}
	w.write(w.guest, frontDir, append(keys, pairs...)...)
}

func (w *world) newRing(pages int) ring {
	w.t.Helper()
	r := ring{keys: queueKeys{port: evtchn.Port(w.next)}}
	r.mem = w.host.GrantRun(w.next, pages, gntdev.ReadWrite)
	for i := range pages {
		r.keys.refs = append(r.keys.refs, w.next+xen.Gref(i))
	}
	w.next += xen.Gref(pages)
	w.host.OfferAt(r.keys.port)
	var err error
	r.front, err = blkif.InitFront(r.mem, blkif.X8664)
	w.must(err)
	return r
}

// up attaches the vbd and connects its guest with n queues.
func (w *world) up(n, order int) {
	w.t.Helper()
	w.attach()
	w.wantSteps("init-wait")
	w.plugIn()
	w.publish(n, order)
	w.frontState(xenbus.Initialised)
	w.wantSteps("open connect connected")
	w.frontState(xenbus.Connected)
	w.wantSteps("")
	w.wantState("4")
}

// settle makes the vbd reconcile until it has nothing left to do, and returns its steps. It
// waits for the disk to open and for connections to end. So every test also checks that
// reconciling ends.
func (w *world) settle() string {
	w.t.Helper()
	var all []string
	for range 10 {
		steps, gone := w.look()
		all = append(all, steps...)
		if gone {
			return strings.Join(append(all, "gone"), " ")
		}
		if !w.await() && repeated(steps) {
			return strings.Join(all, " ")
		}
	}
	w.t.Fatalf("the vbd does not come to rest: %v", all)
	return ""
}

// repeated reports whether all steps are those that are repeated each time, without effect.
func repeated(steps []string) bool {
	return !slices.ContainsFunc(steps, func(s string) bool { return s != "release" && s != "grace" })
}

// await waits for the end of work in other goroutines, and reports whether there was any.
func (w *world) await() bool {
	w.t.Helper()
	v := w.v
	for v.disk.cancel != nil {
		select {
		case e := <-v.disk.opened:
			v.guard(w.t.Context(), func() { v.diskOpened(w.t.Context(), e) })
			if e.waiting == nil {
				return true
			}
		case <-time.After(limit):
			w.t.Fatal("the disk does not open")
		}
	}
	if c := v.conn.ending; c != nil && c.over != nil {
		if !within(limit, c.over) {
			w.t.Fatal("the connection does not end")
		}
		v.guard(w.t.Context(), func() { v.handleNotices(w.t.Context()) })
		return true
	}
	return false
}

// limit is reached only by broken code.
const limit = 10 * time.Second

// look makes the vbd reconcile once.
func (w *world) look() (steps []string, gone bool) {
	w.log.TakeAll()
	w.v.unread = unreadAll
	w.v.guard(w.t.Context(), func() { gone = w.v.reconcile(w.t.Context()) })
	for _, e := range w.log.FilterMessage("step").All() {
		steps = append(steps, e.ContextMap()["step"].(string))
	}
	return steps, gone
}

// wantSteps settles and checks the steps.
func (w *world) wantSteps(want string) {
	w.t.Helper()
	if got := w.settle(); got != want {
		w.t.Errorf("got steps %q, want %q; error node: %q", got, want, w.get(errorKey))
	}
}

// get reads a node; "-" is none.
func (w *world) get(path string) string {
	w.t.Helper()
	v, err := w.tool.Read(w.t.Context(), path)
	if errors.Is(err, xenstore.ErrNotExist) {
		return "-"
	}
	w.must(err)
	return v
}

// wantKeys checks keys of the backend directory: pairs of key and value, "-" for no key.
func (w *world) wantKeys(pairs ...string) {
	w.t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		if got := w.get(backDir + "/" + pairs[i]); got != pairs[i+1] {
			w.t.Errorf("%s is %q, want %q", pairs[i], got, pairs[i+1])
		}
	}
}

func (w *world) wantState(want string) {
	w.t.Helper()
	if got := w.get(backDir + "/state"); got != want {
		w.t.Errorf("state node is %q, want %q; error node: %q", got, want, w.get(errorKey))
	}
}

// wantError checks that the error node has a text; "-" is none.
func (w *world) wantError(want string) {
	w.t.Helper()
	if got := w.get(errorKey); want == "-" && got != want || !strings.Contains(got, want) {
		w.t.Errorf("error node is %q, want %q", got, want)
	}
}

// wantHeld checks the guest's pages and ports that the backend has mapped and bound.
func (w *world) wantHeld(want string) {
	w.t.Helper()
	if got := w.host.held(); got != want {
		w.t.Errorf("the backend holds %s, want %s", got, want)
	}
}

// files lists the files in the run directory.
func (w *world) files() string {
	w.t.Helper()
	list, err := os.ReadDir(w.cfg.RunDir)
	w.must(err)
	var names []string
	for _, f := range list {
		names = append(names, f.Name())
	}
	return strings.Join(names, " ")
}

// eventually waits until ok returns true, because of other goroutines.
func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(limit); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatalf("not within %v: %s", limit, what)
		}
	}
}

// begin makes a request for one page and publishes it.
func (w *world) begin(queue int, op blkif.Op, sector uint64, fill byte) (id uint64, page []byte) {
	w.t.Helper()
	r := &w.rings[queue]
	ref, page := w.host.Grant(gntdev.ReadWrite)
	for i := range page {
		page[i] = fill
	}
	q := blkif.Request{Op: op, ID: uint64(ref), Sector: sector}
	if op != blkif.OpFlush {
		q.NrSegments = 1
		q.Segs[0] = blkif.RawSegment{Gref: ref, First: 0, Last: 7}
	}
	r.front.Put(&q)
	if r.front.Push() {
		w.must(w.host.Send(r.keys.port))
	}
	return q.ID, page
}

// response waits for the next response of a queue.
func (w *world) response(queue int) blkif.Response {
	w.t.Helper()
	f := w.rings[queue].front
	w.eventually("a response", func() bool {
		n, err := f.Responses()
		w.must(err)
		return n > 0
	})
	rsp := f.Response(f.RspCons())
	f.Take(1)
	_, _ = f.Arm()
	return rsp
}

// io makes a request for one page, and checks that it is answered with OKAY.
func (w *world) io(queue int, op blkif.Op, sector uint64, fill byte) (page []byte) {
	w.t.Helper()
	id, page := w.begin(queue, op, sector, fill)
	if got, want := w.response(queue), (blkif.Response{ID: id, Op: op, Status: blkif.StatusOkay}); got != want {
		w.t.Errorf("answered with %+v, want %+v", got, want)
	}
	return page
}

// works checks that data that was written is read back.
func (w *world) works(queue int) {
	w.t.Helper()
	w.next++
	fill := byte(w.next)
	w.io(queue, blkif.OpWrite, 8, fill)
	if got := w.io(queue, blkif.OpRead, 8, 0); got[0] != fill || got[4095] != fill {
		w.t.Errorf("read %d..%d, want %d", got[0], got[4095], fill)
	}
}
