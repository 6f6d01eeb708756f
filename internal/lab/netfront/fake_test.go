// SPDX-License-Identifier: Apache-2.0

package netfront

import (
	"os"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xentest"
)

func TestMain(m *testing.M) {
	if code, done := netns.Enter(); done {
		os.Exit(code)
	}
	goleak.VerifyTestMain(m)
}

// machine is the guest of a frontend, and what its backend binds.
type machine struct {
	*xentest.Guest
	t      testing.TB
	events *xentest.Evtchn // the backend's

	mu     sync.Mutex
	locals map[evtchn.Port]evtchn.Port // of the backend, by the frontend's
	peer   map[evtchn.Port]func()
}

func newMachine(t testing.TB) *machine {
	t.Helper()
	m := &machine{Guest: xentest.Start(t, 1), t: t, locals: map[evtchn.Port]evtchn.Port{}, peer: map[evtchn.Port]func(){}}
	var err error
	if m.events, err = m.OpenEvtchn(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.events.Close() })
	m.Intercept(func(c xentest.Call) error {
		if c.Op != xentest.OpNotify || c.By != m.Domid() {
			return nil
		}
		m.mu.Lock()
		f := m.peer[c.Port]
		m.mu.Unlock()
		if f != nil {
			f()
		}
		return nil
	})
	return m
}

func (m *machine) host() Host {
	return Host{Pages: m.Gntalloc(), Events: func() (Events, error) {
		e, err := m.OpenGuestEvtchn()
		if err != nil {
			return nil, err
		}
		return e, nil
	}}
}

// notify sends the frontend an event.
func (m *machine) notify(p evtchn.Port) {
	m.t.Helper()
	m.mu.Lock()
	local := m.locals[p]
	if local == 0 {
		var err error
		if local, err = m.events.BindInterdomain(m.Domid(), p); err != nil {
			m.t.Error(err)
		}
		m.locals[p] = local
	}
	m.mu.Unlock()
	if err := m.events.Notify(local); err != nil {
		m.t.Error(err)
	}
}

// onEvent calls f for each event the frontend sends on p.
func (m *machine) onEvent(p evtchn.Port, f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.peer[p] = f
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
	m := newMachine(t)
	r := rules{
		features: cfg.Features,
		offers:   Offers{RxCopy: true, SG: true, GSOTCPv4: true, GSOTCPv6: true, IPv6CsumOffload: true, MaxQueues: 8},
		hash:     cfg.Control,
		strict:   cfg.Strict,
		mtu:      cfg.MTU,
		salt:     cfg.IDSalt,
		inUse:    m.Gntalloc().InUse,
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
	if b.tx, err = netif.AttachTx(m.Page(q.rings.Refs()[0])); err != nil {
		t.Fatal(err)
	}
	if b.rx, err = netif.AttachRx(m.Page(q.rings.Refs()[1])); err != nil {
		t.Fatal(err)
	}
	return q, b
}

// hold maps a page of the guest until the end of the test.
func (b *backend) hold(ref xen.Gref) {
	b.t.Helper()
	p, err := b.m.Gntdev().Map(b.m.Domid(), []xen.Gref{ref}, gntdev.ReadOnly)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { p.Unmap() })
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
// slot's own size is the total less those of the others.
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
		f = append(f, b.m.Page(first.Gref)[first.Offset:][:own]...)
		for _, l := range later {
			f = append(f, b.m.Page(l.Gref)[l.Offset:][:l.Size]...)
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
		n := copy(b.m.Page(req.Gref), frame)
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
