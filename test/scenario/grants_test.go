// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/lab/guest"
	"github.com/netbackd/netbackd/internal/lab/netfront"
	"github.com/netbackd/netbackd/internal/lab/xensim/simclient"
	"github.com/netbackd/netbackd/internal/lab/xensim/wire"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/tap"
)

// TestAnyStatusOfACopyIsAnAnswer: any status of a copy other than okay is an error and does
// not stop the daemon (XSA-362).
func TestAnyStatusOfACopyIsAnAnswer(t *testing.T) {
	w := newWorld(t)
	g := w.guest()
	p := g.prober()
	f := plainFrame(64)
	r := p.raw(data(0, f), guest.RawOp{Op: "flush"})
	p.answers([]uint16{0}, r)
	p.c.next()
	page := r.Grefs[0]
	for st := gntdev.StatusGeneralError; st >= gntdev.StatusNoSpace-1; st-- {
		if st == gntdev.StatusEagain {
			continue // the kernel tries again for half a minute, and then returns bad_page
		}
		w.situation(st.Error(), func() {
			before := g.drops()
			w.must(w.Hypervisor().AddFault(g.Domid, simclient.Fault{Op: "copy", Ref: page, Status: int16(st), Count: 1}))
			same := ref(fmt.Sprint(page), 0, 0, len(f))
			answers, out := p.send(same, same)
			w.answered([]netif.Status{failed, okay}, answers)
			w.cameOut(out, f)
			g.dropped(before, drops{dataplane.DropTxGrant: 1})
		})
	}
	g.innocent()
}

// TestCopyThatFailsAsAWhole: if the copy call itself fails, its statuses are invalid: none
// of its packets is delivered (XSA-367).
func TestCopyThatFailsAsAWhole(t *testing.T) {
	w := newWorld(t)
	g := w.guest()
	p := g.prober()
	fault := simclient.Fault{Op: "call", Status: -int16(unix.EFAULT), Count: 1}
	f := plainFrame(200)
	r := p.raw(data(0, f), guest.RawOp{Op: "flush"})
	p.answers([]uint16{0}, r)
	p.c.next()

	// The host sends packets of its own when a vif comes up. The call that copies one of
	// those must not fail.
	before := g.drops()
	fault.Ref = r.Grefs[0]
	w.must(w.Hypervisor().AddFault(g.Domid, fault))
	ops := []guest.RawOp{
		ref(fmt.Sprint(r.Grefs[0]), 0, 0, len(f)),
		head(moreData, 200, f[:100]), ref("bogus", moreData, 0, 0), data(0, f[100:]),
		ref("page", 0, 0, 13), // is not part of the copy
	}
	ids := number(ops)
	w.answered([]netif.Status{failed, failed, okay, failed, failed}, p.answers(ids, p.raw(append(ops, guest.RawOp{Op: "flush"})...)))
	g.dropped(before, drops{dataplane.DropTxGrant: 2, dataplane.DropTxShort: 1})
	answers, out := p.send(inSlots(0, f, 100)...)
	w.answered(each(2, okay), answers)
	w.cameOut(out, f)

	before = g.drops()
	fault.Ref = wire.AnyRef // any packet may be lost
	w.must(w.Hypervisor().AddFault(g.Domid, fault))
	p.c.send(tap.VnetHdr{}, f)
	g.dropped(before, drops{dataplane.DropRxGrant: 1})
	g.pings(3)
	s, err := g.Stats(w.ctx, "")
	w.must(err)
	if s.Total.RxErrors != 1 {
		t.Errorf("the guest saw %d packets that failed, want 1", s.Total.RxErrors)
	}
	g.innocent()
}

// TestAnswerComesWhenThePageIsLetGo: the guest reads its grant table at each response, and
// no answered grant is still in use.
func TestAnswerComesWhenThePageIsLetGo(t *testing.T) {
	w := newWorld(t)
	g := w.guest()
	w.must(w.Hypervisor().AddFault(g.Domid, simclient.Fault{Op: "copy", Ref: wire.AnyRef, Delay: 500 * time.Microsecond, Count: 1000}))
	g.pings(20)
	g.tcpToHost(256 << 10)
	g.tcpToGuest(g.ip, 256<<10)
	g.innocent()
}

// TestPagesToSendFromMayBeReadOnlyOrWritable: a guest may grant its tx pages for reading or
// for writing.
func TestPagesToSendFromMayBeReadOnlyOrWritable(t *testing.T) {
	w := newWorld(t)
	g := w.guest(front(func(c *netfront.Config) { c.RxPages = 40 }))
	p := g.prober()
	p.raw(guest.RawOp{Op: "rx-target"})
	for range 20 { // so that the guest has buffers it has not posted
		p.c.send(tap.VnetHdr{}, plainFrame(64))
	}
	g.waitCounter(dataplane.RxPackets, 20)
	f := plainFrame(300)
	writable := ref("rx", moreData, 0, 300)
	writable.Page = f[:200]
	answers, out := p.send(writable, data(0, f[200:]))
	w.answered(each(2, okay), answers)
	w.cameOut(out, f)
	g.innocent()
}
