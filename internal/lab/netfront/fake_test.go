// SPDX-License-Identifier: Apache-2.0

package netfront

import (
	"encoding/binary"
	"fmt"
	"os"
	"sync"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntalloc"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xen"
)

func TestMain(m *testing.M) {
	if code, done := netns.Enter(); done {
		os.Exit(code)
	}
	goleak.VerifyTestMain(m)
}

// machine is two domains in one process: plain memory for pages, an eventfd for
// each open event channel device. It knows no permissions and refuses nothing:
// the embedded Xen is where those are tested.
type machine struct {
	mu    sync.Mutex
	next  uint32
	pages map[xen.Gref][]byte
	inUse map[xen.Gref]bool
	ports map[evtchn.Port]*fakeEvents
	sent  map[evtchn.Port]int // events the frontend sent
	peer  map[evtchn.Port]func()
}

func newMachine() *machine {
	return &machine{
		next:  8,
		pages: map[xen.Gref][]byte{},
		inUse: map[xen.Gref]bool{},
		ports: map[evtchn.Port]*fakeEvents{},
		sent:  map[evtchn.Port]int{},
		peer:  map[evtchn.Port]func(){},
	}
}

func (m *machine) host() Host {
	return Host{Pages: m, Events: func() (Events, error) { return newFakeEvents(m) }}
}

func (m *machine) Alloc(_ xen.Domid, n int, _ bool) (*gntalloc.Pages, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	mem := make([]byte, n*netif.PageSize)
	refs := make([]xen.Gref, n)
	for i := range refs {
		refs[i] = xen.Gref(m.next)
		m.pages[xen.Gref(m.next)] = mem[i*netif.PageSize:][:netif.PageSize]
		m.next++
	}
	return gntalloc.NewPages(mem, refs, func() error {
		m.mu.Lock()
		defer m.mu.Unlock()
		for _, r := range refs {
			delete(m.pages, r)
		}
		return nil
	}), nil
}

func (m *machine) InUse(ref xen.Gref) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.inUse[ref], nil
}

// page returns the page behind a grant, nil if there is none.
func (m *machine) page(ref xen.Gref) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.pages[ref]
}

// notify sends the frontend an event.
func (m *machine) notify(p evtchn.Port) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e := m.ports[p]; e != nil {
		e.raise(p)
	}
}

func (m *machine) eventsSent(p evtchn.Port) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.sent[p]
}

// onEvent calls f for each event the frontend sends on p.
func (m *machine) onEvent(p evtchn.Port, f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.peer[p] = f
}

// fakeEvents is an open event channel device. Its maps are guarded by the
// machine's lock.
type fakeEvents struct {
	m       *machine
	fd      int
	bound   map[evtchn.Port]bool
	masked  map[evtchn.Port]bool
	pending map[evtchn.Port]bool
}

var _ Events = (*fakeEvents)(nil)

func newFakeEvents(m *machine) (*fakeEvents, error) {
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	return &fakeEvents{m: m, fd: fd, bound: map[evtchn.Port]bool{}, masked: map[evtchn.Port]bool{}, pending: map[evtchn.Port]bool{}}, nil
}

// raise sets a port's pending bit and makes the fd readable unless it is masked.
func (e *fakeEvents) raise(p evtchn.Port) {
	e.pending[p] = true
	if !e.masked[p] {
		_, _ = unix.Write(e.fd, binary.NativeEndian.AppendUint64(nil, 1))
	}
}

func (e *fakeEvents) BindUnbound(xen.Domid) (evtchn.Port, error) {
	e.m.mu.Lock()
	defer e.m.mu.Unlock()
	p := evtchn.Port(e.m.next)
	e.m.next++
	e.bound[p] = true
	e.m.ports[p] = e
	return p, nil
}

func (e *fakeEvents) Unbind(p evtchn.Port) error {
	e.m.mu.Lock()
	defer e.m.mu.Unlock()
	delete(e.bound, p)
	delete(e.m.ports, p)
	return nil
}

func (e *fakeEvents) Notify(p evtchn.Port) error {
	e.m.mu.Lock()
	f, ok := e.m.peer[p], e.bound[p]
	e.m.sent[p]++
	e.m.mu.Unlock()
	if !ok {
		return fmt.Errorf("port %d is not bound", p)
	}
	if f != nil {
		f()
	}
	return nil
}

func (e *fakeEvents) Pending(ports []evtchn.Port) (n int, err error) {
	e.m.mu.Lock()
	defer e.m.mu.Unlock()
	var b [8]byte
	_, _ = unix.Read(e.fd, b[:])
	for p := range e.pending {
		if n < len(ports) && !e.masked[p] {
			ports[n] = p
			n++
			delete(e.pending, p)
			e.masked[p] = true
		}
	}
	return n, nil
}

func (e *fakeEvents) Unmask(ports []evtchn.Port) error {
	e.m.mu.Lock()
	defer e.m.mu.Unlock()
	for _, p := range ports {
		delete(e.masked, p)
		if e.pending[p] {
			e.raise(p)
		}
	}
	return nil
}

func (e *fakeEvents) FD() int { return e.fd }

func (e *fakeEvents) Close() error {
	e.m.mu.Lock()
	defer e.m.mu.Unlock()
	for p := range e.bound {
		delete(e.m.ports, p)
	}
	return unix.Close(e.fd)
}

// txSeen is a slot as the backend of a test sees it.
type txSeen struct {
	Req   netif.TxRequest
	Extra netif.ExtraInfo
	Is    bool // Extra, not Req
}

// backend is the other end of a queue, made from netif's views. It holds to the
// protocol unless a test makes it not to.
type backend struct {
	t  testing.TB
	m  *machine
	q  *Queue
	tx *netif.TxBack
	rx *netif.RxBack
}

// newPair makes a queue and its backend.
func newPair(t testing.TB, cfg Config, split bool) (*Queue, *backend) {
	t.Helper()
	cfg = cfg.withDefaults()
	m := newMachine()
	r := rules{
		features: cfg.Features,
		offers:   Offers{RxCopy: true, SG: true, GSOTCPv4: true, GSOTCPv6: true, IPv6CsumOffload: true, MaxQueues: 8},
		hash:     cfg.Control,
		strict:   cfg.Strict,
		mtu:      cfg.MTU,
		salt:     cfg.IDSalt,
		inUse:    m.InUse,
	}
	q, err := newQueue(m.host(), 0, 0, cfg, r, split)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := q.close(); err != nil {
			t.Error(err)
		}
	})
	b := &backend{t: t, m: m, q: q}
	if b.tx, err = netif.AttachTx(m.page(q.rings.Refs()[0])); err != nil {
		t.Fatal(err)
	}
	if b.rx, err = netif.AttachRx(m.page(q.rings.Refs()[1])); err != nil {
		t.Fatal(err)
	}
	return q, b
}

// takeTx consumes all tx slots that are there.
func (b *backend) takeTx() (seen []txSeen) {
	b.t.Helper()
	n, err := b.tx.Available()
	if err != nil {
		b.t.Fatal(err)
	}
	extra := false
	for range n {
		i := b.tx.ReqCons()
		if extra {
			e := b.tx.Extra(i)
			seen = append(seen, txSeen{Extra: e, Is: true})
			extra = e.More()
		} else {
			r := b.tx.Request(i)
			seen = append(seen, txSeen{Req: r})
			extra = r.Flags&netif.TxExtraInfo != 0
		}
		b.tx.Consume(1)
	}
	return seen
}

// answerTx answers what takeTx saw, in order, with one status for all data.
func (b *backend) answerTx(seen []txSeen, s netif.Status) {
	var rsp []netif.TxResponse
	for _, v := range seen {
		if v.Is {
			rsp = append(rsp, netif.TxResponse{Status: netif.StatusNull})
		} else {
			rsp = append(rsp, netif.TxResponse{ID: v.Req.ID, Status: s})
		}
	}
	b.commitTx(rsp)
}

func (b *backend) commitTx(rsp []netif.TxResponse) {
	if b.tx.Commit(rsp) {
		b.m.notify(b.q.txPort)
	}
}

// frames puts the data of whole packets together, as a backend does: the first
// slot's own size is what the others leave of the total.
func (b *backend) frames(seen []txSeen) (out [][]byte) {
	b.t.Helper()
	for len(seen) > 0 {
		first := seen[0].Req
		var later []netif.TxRequest
		k := 1
		for k < len(seen) && seen[k].Is {
			k++
		}
		for more := first.Flags&netif.TxMoreData != 0; more; k++ {
			later = append(later, seen[k].Req)
			more = seen[k].Req.Flags&netif.TxMoreData != 0
		}
		own := int(first.Size)
		for _, l := range later {
			own -= int(l.Size)
		}
		var f []byte
		f = append(f, b.m.page(first.Gref)[first.Offset:][:own]...)
		for _, l := range later {
			f = append(f, b.m.page(l.Gref)[l.Offset:][:l.Size]...)
		}
		out = append(out, f)
		seen = seen[k:]
	}
	return out
}

// putRx fills buffers with a frame as netif.h says and returns the slots, which
// the caller commits.
func (b *backend) putRx(frame []byte, flags netif.RxFlags, extras ...netif.ExtraInfo) (slots []netif.RxSlot) {
	b.t.Helper()
	for first := true; len(frame) > 0; first = false {
		req := b.rx.Request(b.rx.ReqCons())
		b.rx.Consume(1)
		n := copy(b.m.page(req.Gref), frame)
		frame = frame[n:]
		rsp := netif.RxResponse{ID: req.ID, Status: netif.Status(n)}
		if len(frame) > 0 {
			rsp.Flags = netif.RxMoreData
		}
		if !first {
			slots = append(slots, rsp.Slot())
			continue
		}
		rsp.Flags |= flags
		if len(extras) > 0 {
			rsp.Flags |= netif.RxExtraInfo
		}
		slots = append(slots, rsp.Slot())
		for i, e := range extras {
			b.rx.Consume(1)
			if i < len(extras)-1 {
				e.Flags |= netif.ExtraMore
			}
			slots = append(slots, e.Slot())
		}
	}
	return slots
}

func (b *backend) commitRx(slots []netif.RxSlot) {
	if b.rx.Commit(slots) {
		b.m.notify(b.q.rxPort)
	}
}
