// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/xen"
)

// attack is something that a frontend with one queue and a control ring does, and all that
// may come of it.
type attack struct {
	name   string
	do     func(f *hostileFront)
	drops  drops  // exactly these packets are counted as dropped
	breach string // a part of the reason of the quarantine that follows; empty: none
}

// TestAdvisories plays attacks on one vif after the other, while a bystander's streams go
// on. Each attack has its answer, its counters, and one line in the log if it ends in
// quarantine, otherwise none. The daemon is the same afterwards and has not grown. After an
// attack that ends in quarantine the vif is detached and attached again, and works; after
// others it works at once. docs/advisories.md says which advisory each attack is for.
func TestAdvisories(t *testing.T) {
	w := newWorld(t, "--rx-drain=1h", "--rx-stall=1h")
	f := w.hostileFront()
	w.undisturbed(func() {
		for _, a := range attacks() {
			w.situation(a.name, func() { f.suffer(a) })
			if a.breach != "" {
				f.attachedAnew()
			}
			w.situation(a.name+", after it", f.served)
		}
	})
}

// grown bounds what the daemon may need more in one attack: the buffers of a worker, of a
// thread for slow copies, and what the collector has not freed.
const grown = 48 << 10 // KiB, of a program with the race detector

// suffer runs an attack and checks all that is said of it.
func (f *hostileFront) suffer(a attack) {
	w := f.w
	w.t.Helper()
	pid := w.Daemon().PID()
	before, held := w.process(pid), f.dropsNow()
	lines, bad := w.logged(f.name()), f.complaints()
	a.do(f)
	if a.breach != "" {
		w.wait("the quarantine", func() bool { return f.status().Quarantine != "" })
	}
	got := drops{}
	w.wait(fmt.Sprintf("%d drops", a.drops.all()), func() bool {
		clear(got)
		for c, n := range f.dropsNow() {
			if n > held[c] {
				got[c] = n - held[c]
			}
		}
		return got.all() >= a.drops.all()
	})
	if diff := cmp.Diff(a.drops, got); diff != "" && got.all()+a.drops.all() > 0 {
		w.t.Errorf("packets dropped, by reason (-want +got):\n%s", diff)
	}
	if q := f.status().Quarantine; !strings.Contains(q, a.breach) || a.breach == "" && q != "" {
		w.t.Errorf("quarantine %q, want %q", q, a.breach)
	}
	want := 0
	if a.breach != "" {
		want = 1
		w.wait("the log", func() bool { return f.complaints() > bad && w.logged(f.name(), "disconnected") > 0 })
	}
	// A quarantine also ends the connection, which has a line of its own.
	if n, all := f.complaints()-bad, w.logged(f.name())-lines; n != want || all > 2*want {
		w.t.Errorf("%d lines in the log, %d of them of a fault; want %d", all, n, want)
	}
	if w.Daemon().PID() != pid {
		w.t.Error("it is another daemon")
	}
	if p := w.process(pid); p.rss > before.rss+grown || p.fds > before.fds+8 || p.threads > before.threads+8 {
		w.t.Errorf("the daemon has grown from %+v to %+v", before, p)
	}
}

// complaints counts the lines of the log about faults of the vif.
func (f *hostileFront) complaints() int {
	return f.w.logged(f.name(), "ERROR") + f.w.logged(f.name(), "WARN")
}

// dropsNow returns the vif's drop counters that are not 0.
func (f *hostileFront) dropsNow() drops {
	f.w.t.Helper()
	s := f.status()
	d := drops{}
	for c := range dataplane.NumCounters {
		if n := s.Counters[c.String()]; n > 0 && dataplane.Counters[c].Kind == dataplane.Drop {
			d[c] = n
		}
	}
	return d
}

// attachedAnew has the toolstack detach the vif and attach it again, and connects it with
// new rings. Nothing of the first one is left.
func (f *hostileFront) attachedAnew() {
	w := f.w
	w.t.Helper()
	done := f.closesWhenAsked()
	took, err := w.Detach(w.ctx, f.domid, f.devid)
	w.must(err)
	w.must(<-done)
	if took > closeLimit {
		w.t.Errorf("detached after %v", took)
	}
	w.vifGone(f.domid, f.devid)
	w.unpinned(f.domid)
	w.must(f.q().rings.Free())
	w.must(w.Attach(w.ctx, f.domid, config(0).Vif))
	f.wrote = nil
	f.newRings(1)
	f.connect()
	f.c = w.cable(f.status().Interface, func(f func() error) error { return f() })
}

// sends puts requests into the ring and checks the statuses of the answers, in order.
func (f *hostileFront) sends(want []netif.Status, reqs ...netif.TxRequest) {
	f.w.t.Helper()
	f.put(&badPacket{reqs: reqs})
	f.publish()
	f.w.answered(want, statuses(f.answers(len(want))))
}

func statuses(rsp []netif.TxResponse) (s []netif.Status) {
	for _, r := range rsp {
		s = append(s, r.Status)
	}
	return s
}

// slots returns a packet in n slots: first and then the rest of each bytes.
func (f *hostileFront) inSlots(n, first, each int) (reqs []netif.TxRequest) {
	ref := f.data.Refs()[0]
	for i := range n {
		q := netif.TxRequest{Gref: ref, ID: uint16(i), Size: uint16(each)}
		if i == 0 {
			q.Size = uint16(first + (n-1)*each)
		}
		if i < n-1 {
			q.Flags = netif.TxMoreData
		}
		reqs = append(reqs, q)
	}
	return reqs
}

// rawExtra puts an extra whose type and flags are any bytes behind a request.
func (f *hostileFront) rawExtra(typ byte, flags byte) {
	f.q().tx.PutExtra(netif.ExtraInfo{Type: netif.ExtraType(typ), Flags: netif.ExtraFlags(flags)})
}

// beyond returns attacks in which an index is wrong.
func beyond() (list []attack) {
	for _, wrong := range []struct {
		name string
		by   uint32
	}{{"257 ahead", 257}, {"half of all numbers ahead", 1 << 31}, {"taken back by one", 1<<32 - 1}} {
		list = append(list,
			attack{
				name:   "tx req_prod " + wrong.name,
				do:     func(f *hostileFront) { f.shift(f.q().tx.SetReqProd, f.q().tx.ReqProd().Add(wrong.by)) },
				breach: "tx ring",
			},
			attack{
				name:   "rx req_prod " + wrong.name,
				do:     func(f *hostileFront) { f.shift(f.q().rx.SetReqProd, f.q().rx.ReqProd().Add(wrong.by)); f.frame() },
				breach: "rx ring",
			})
	}
	return list
}

// shift sets an index and sends events.
func (f *hostileFront) shift(set func(netif.Index), to netif.Index) {
	set(to)
	f.w.must(f.events.Notify(f.q().txPort))
	f.w.must(f.events.Notify(f.q().rxPort))
}

// frame has the host send a packet to the guest.
func (f *hostileFront) frame() { f.c.send(tap.VnetHdr{}, plainFrame(200)) }

// unfinished returns attacks with packets whose end is not known.
func unfinished() []attack {
	part := func(flags netif.TxFlags, then func(f *hostileFront)) func(f *hostileFront) {
		return func(f *hostileFront) {
			f.q().tx.Put(netif.TxRequest{Gref: f.data.Refs()[0], Flags: flags, Size: 200})
			if then != nil {
				then(f)
			}
			f.publish()
		}
	}
	extra := func(typ, flags byte) func(f *hostileFront) { return func(f *hostileFront) { f.rawExtra(typ, flags) } }
	return []attack{
		{name: "packet published in part", do: part(netif.TxMoreData, nil), breach: "more_data set on the last slot"},
		{name: "extra announced and missing", do: part(netif.TxExtraInfo, nil), breach: "extra info announced"},
		{name: "extra of type 0", do: part(netif.TxExtraInfo, extra(0, 0)), breach: "extra info of"},
		{name: "extra of type 5", do: part(netif.TxExtraInfo, extra(5, 0)), breach: "extra info of"},
		{name: "extra of type 255", do: part(netif.TxExtraInfo, extra(255, 0)), breach: "extra info of"},
		{name: "chain of 255 extras without end", do: part(netif.TxExtraInfo, func(f *hostileFront) {
			for range netif.TxRingSize - 1 {
				f.rawExtra(4, 1)
			}
		}), breach: "extra info announced"},
		{name: "packet that fills the ring", do: func(f *hostileFront) {
			f.put(&badPacket{reqs: f.inSlots(netif.TxRingSize, 60, 1)})
			f.publish()
		}, breach: "packet without end"},
	}
}

// split returns packets in many slots.
func split() (list []attack) {
	for n := 17; n <= 21; n++ {
		status, lost := okay, drops{}
		if n > 19 {
			status, lost = failed, drops{dataplane.DropTxSlots: 1}
		}
		list = append(list, attack{
			name:  fmt.Sprintf("less than 128 bytes in %d slots", n),
			do:    func(f *hostileFront) { f.sends(each(n, status), f.inSlots(n, 14, 5)...) },
			drops: lost,
		})
	}
	return append(list,
		attack{
			name:   "less than 128 bytes in 22 slots",
			do:     func(f *hostileFront) { f.put(&badPacket{reqs: f.inSlots(22, 14, 5)}); f.publish() },
			breach: "packet without end",
		},
		attack{name: "first slot of 14 bytes, later ones of 1 byte", do: func(f *hostileFront) {
			f.sends(each(19, okay), f.inSlots(19, 14, 1)...)
		}},
		attack{name: "later slots of no bytes, in pages that do not exist", do: func(f *hostileFront) {
			reqs := f.inSlots(19, 60, 0)
			for i := range reqs[1:] {
				reqs[1+i].Gref = 0xfffffff0 + xen.Gref(i)
			}
			f.sends(each(19, okay), reqs...)
		}},
	)
}

// broken returns packets that are refused without a quarantine.
func broken() []attack {
	one := func(why dataplane.Counter, name string, reqs func(f *hostileFront) []netif.TxRequest) attack {
		return attack{
			name:  name,
			do:    func(f *hostileFront) { r := reqs(f); f.sends(each(len(r), failed), r...) },
			drops: drops{why: 1},
		}
	}
	single := func(q netif.TxRequest) func(f *hostileFront) []netif.TxRequest {
		return func(f *hostileFront) []netif.TxRequest {
			if q.Gref == 0 {
				q.Gref = f.data.Refs()[0]
			}
			return []netif.TxRequest{q}
		}
	}
	return []attack{
		one(dataplane.DropTxCross, "offset and size beyond the page", single(netif.TxRequest{Offset: 4095, Size: 100})),
		one(dataplane.DropTxCross, "offset and size beyond 16 bits", single(netif.TxRequest{Offset: 65535, Size: 65535})),
		one(dataplane.DropTxShort, "packet of no bytes", single(netif.TxRequest{})),
		one(dataplane.DropTxShort, "first slot without a header", func(f *hostileFront) []netif.TxRequest { return f.inSlots(2, 13, 100) }),
		one(dataplane.DropTxSize, "slots of more bytes than the packet", func(f *hostileFront) []netif.TxRequest {
			r := f.inSlots(2, 60, 100)
			r[1].Size = 4000
			return r
		}),
		one(dataplane.DropTxGrant, "page beyond the grant table", single(netif.TxRequest{Gref: 0xffffffff, Size: 60})),
		{name: "second of three pages does not exist", do: func(f *hostileFront) {
			r := f.inSlots(3, 60, 100)
			r[1].Gref = 0xfffffff0
			// Only the slot that cannot be copied is at fault.
			f.sends([]netif.Status{okay, failed, okay}, r...)
		}, drops: drops{dataplane.DropTxGrant: 1}},
	}
}

// attacks returns all attacks with fixed outcomes.
func attacks() (list []attack) {
	for _, part := range [][]attack{beyond(), unfinished(), split(), broken()} {
		list = append(list, part...)
	}
	return list
}
