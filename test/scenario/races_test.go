// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntalloc"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xentest"
)

// connectControl makes a control ring for the frontend's rings, and connects.
func (f *hostileFront) connectControl() {
	w := f.w
	w.t.Helper()
	var err error
	f.ctrlPage, err = f.pages.Alloc(0, 2, true)
	w.must(err)
	f.ctrl, err = netif.InitCtrl(f.ctrlPage.Bytes()[:netif.PageSize])
	w.must(err)
	f.ctrlPort, err = f.events.BindUnbound(0)
	w.must(err)
	f.offer(f.with(map[string]string{
		"ctrl-ring-ref":      fmt.Sprint(f.ctrlPage.Refs()[0]),
		"event-channel-ctrl": fmt.Sprint(f.ctrlPort),
	}), xenbus.Connected)
	f.waitBack(xenbus.Connected)
}

// call sends a message and returns the response.
func (f *hostileFront) call(typ netif.CtrlType, data ...uint32) netif.CtrlResponse {
	f.w.t.Helper()
	f.send(typ, data...)
	return f.reply()
}

// send puts a message in the control ring.
func (f *hostileFront) send(typ netif.CtrlType, data ...uint32) {
	f.w.t.Helper()
	q := netif.CtrlRequest{ID: 7, Type: typ}
	copy(q.Data[:], data)
	f.ctrl.Put(q)
	f.ctrl.Push()
	f.w.must(f.events.Notify(f.ctrlPort))
}

// reply waits for a response.
func (f *hostileFront) reply() netif.CtrlResponse {
	f.w.t.Helper()
	f.w.wait("a response", func() bool { n, err := f.ctrl.Responses(); return err == nil && n > 0 })
	r := f.ctrl.Response(f.ctrl.RspCons())
	f.ctrl.Take(1)
	return r
}

// again connects the frontend with new rings, whatever became of the old ones.
func (f *hostileFront) again() {
	f.w.t.Helper()
	old := f.q().rings
	f.close()
	f.w.must(old.Free())
	f.reopen()
	f.newRings(1)
	f.connectControl()
	f.served()
}

// race is something that a guest does at the same time as the daemon.
type race struct {
	name string
	do   func(f *hostileFront)
}

var races = []race{
	{"flags and extras of a request change", (*hostileFront).flipsFlags},
	{"req_prod changes", (*hostileFront).flipsIndex},
	{"a control message changes", (*hostileFront).flipsMessage},
	{"the hash key and table change", (*hostileFront).flipsKey},
	{"a list of static grants changes", (*hostileFront).flipsList},
	{"pages are revoked while they are copied", (*hostileFront).revokes},
	{"channels are unbound while events are pending", (*hostileFront).unbinds},
	{"status is read while connections end", (*hostileFront).asksMeanwhile},
	{"the hash key is set while the vif is detached", (*hostileFront).keyAndEnd},
	{"the domain dies while its packets are copied", (*hostileFront).dies},
}

// TestRaces has a guest change what the daemon reads while it reads it, and take away what
// the daemon uses. Nothing of it concerns the bystander, and the vif works afterwards
// (docs/advisories.md).
func TestRaces(t *testing.T) {
	w := newWorld(t, "--rx-drain=1h", "--rx-stall=1h")
	f := w.hostileFront()
	w.undisturbed(func() {
		f.again()
		pid := w.Daemon().PID()
		before := w.process(pid)
		for _, r := range races {
			lines := w.logged(f.name())
			w.situation(r.name, func() {
				r.do(f)
				if w.Daemon().PID() != pid {
					w.t.Error("it is another daemon")
				}
				// The limit is 64 at once and 10 a second.
				if n := w.logged(f.name()) - lines; n > 100 {
					w.t.Errorf("%d lines in the log", n)
				}
			})
			w.situation(r.name+", after it", f.again)
		}
		if p := w.process(pid); p.rss > before.rss+grown || p.fds > before.fds+8 || p.threads > before.threads+8 {
			t.Errorf("the daemon has grown from %+v to %+v", before, p)
		}
	})
}

// flipsFlags changes the flags of a request between those of a plain packet, of one with an
// extra and of one with a later slot, and the extra behind it between types.
func (f *hostileFront) flipsFlags() {
	tx, page := f.q().tx, f.q().rings.Bytes()[:netif.PageSize]
	ref := f.data.Refs()[0]
	extra := func(typ, more uint32) xen.Gref { return xen.Gref(typ | more<<8 | 1448<<16) }
	shapes := [2][]netif.TxRequest{
		{
			{Gref: ref, ID: 1, Size: 200}, {Gref: ref, ID: 1, Size: 200, Flags: netif.TxExtraInfo},
			{Gref: ref, ID: 1, Size: 200, Flags: netif.TxMoreData}, {Gref: ref, ID: 1, Size: 9, Flags: netif.TxExtraInfo | netif.TxMoreData},
		},
		{
			{Gref: ref, ID: 2, Size: 100}, {Gref: extra(1, 0), Offset: 1}, {Gref: extra(4, 1)}, {Gref: extra(3, 0)},
			{Gref: extra(9, 0)}, {Gref: ref, ID: 2, Size: 100, Flags: netif.TxMoreData},
		},
	}
	for n := 0; n < 400 && f.status().Quarantine == ""; n++ {
		i := tx.ReqProd()
		tx.Put(shapes[0][0])
		tx.Put(shapes[1][0])
		stop := flipped(func(k int) {
			xentest.PokeTx(page, i, shapes[0][k%len(shapes[0])])
			xentest.PokeTx(page, i.Add(1), shapes[1][(k/3)%len(shapes[1])])
		})
		f.publish()
		f.w.wait("an answer", func() bool {
			r, err := tx.Responses()
			return err == nil && r >= 2 || f.status().Quarantine != ""
		})
		stop()
		if r, err := tx.Responses(); err == nil {
			tx.Take(r)
		}
	}
	f.breachOrNone("tx ring")
}

// breachOrNone checks that the vif serves its guest, or has a reason with this text not to.
func (f *hostileFront) breachOrNone(what string) {
	f.w.t.Helper()
	if s := f.status(); s.Quarantine != "" && !bytes.Contains([]byte(s.Quarantine), []byte(what)) {
		f.w.t.Errorf("quarantined: %s", s.Quarantine)
	}
}

// flipsIndex changes req_prod between a valid value and others.
func (f *hostileFront) flipsIndex() {
	tx, page := f.q().tx, f.q().rings.Bytes()
	for n := 0; n < 200 && f.status().Quarantine == ""; n++ {
		at := tx.ReqProd()
		tx.Put(netif.TxRequest{Gref: f.data.Refs()[0], Size: 60})
		by := []uint32{1, 0, 257, 1 << 31, 2}
		stop := flipped(func(k int) { binary.NativeEndian.PutUint32(page, uint32(at.Add(by[k%len(by)]))) })
		f.w.wait("an answer", func() bool {
			f.w.must(f.events.Notify(f.q().txPort)) // the one before may have found no request
			r, _ := tx.Responses()
			return r > 0 || f.status().Quarantine != ""
		})
		stop()
		tx.SetReqProd(at.Add(1))
		if r, err := tx.Responses(); err == nil {
			tx.Take(r)
		}
	}
	f.breachOrNone("req_prod")
}

// flipsMessage changes type and data of a control message. Each message gets one response, and
// the ring stays in use.
func (f *hostileFront) flipsMessage() {
	mem := f.ctrlPage.Bytes()
	for range 25 {
		at := 64 + 16*int(f.ctrl.ReqProd()%netif.CtrlRingSize)
		stop := flipped(func(k int) {
			binary.NativeEndian.PutUint16(mem[at+2:], uint16(k%13))
			binary.NativeEndian.PutUint32(mem[at+4:], uint32(k)*0x01010101)
			binary.NativeEndian.PutUint32(mem[at+8:], uint32(k)<<uint(k%32))
		})
		f.send(netif.CtrlSetHashMapping, uint32(f.ctrlPage.Refs()[1]), 4, 0)
		f.reply() // its slot is overwritten
		stop()
	}
	if r := f.call(netif.CtrlGetHashMappingSize); r.ID != 7 || r.Status > netif.CtrlBufferOverflow {
		f.w.t.Errorf("the next message is answered %+v", r)
	}
	f.breachOrNone("no reason")
}

// flipsKey changes the page of a key and of a table while they are set. The table in force
// names queues that exist.
func (f *hostileFront) flipsKey() {
	mem, ref := f.ctrlPage.Bytes()[netif.PageSize:], uint32(f.ctrlPage.Refs()[1])
	f.call(netif.CtrlSetHashAlgorithm, 1)
	f.call(netif.CtrlSetHashMappingSize, 64)
	stop := flipped(func(k int) { binary.NativeEndian.PutUint32(mem[4*(k%64):], uint32(k>>6)%3*uint32(k)) })
	defer stop()
	for range 12 {
		f.call(netif.CtrlSetHashKey, ref, 40)
		f.call(netif.CtrlSetHashMapping, ref, 64, 0)
		for _, q := range f.status().Control.Mapping {
			if q != 0 {
				f.w.t.Fatalf("the table names queue %d of one", q)
			}
		}
	}
}

// flipsList changes a list of static grants while it is added and removed. The number of
// mapped pages stays that which the status says.
func (f *hostileFront) flipsList() {
	w := f.w
	mem, ref := f.ctrlPage.Bytes()[netif.PageSize:], uint32(f.ctrlPage.Refs()[1])
	refs := append([]xen.Gref{0xfffffff0}, f.data.Refs()...)
	stop := flipped(func(k int) { binary.NativeEndian.PutUint64(mem[8*(k%4):], uint64(refs[k%len(refs)])) })
	for range 12 {
		f.call(netif.CtrlAddGrefMapping, 0, ref, 4)
		f.call(netif.CtrlDelGrefMapping, 0, ref, 4)
	}
	stop()
	s := f.status()
	d, err := w.Domain(f.domid)
	w.must(err)
	if want := uint64(3 + s.Queues[0].Static); uint64(d.GrantsInUse) != want {
		w.t.Errorf("%d grants in use, want %d", d.GrantsInUse, want)
	}
}

// revokes takes pages away and grants others while packets in them are sent. A packet is
// sent as it was, or answered with an error.
func (f *hostileFront) revokes() {
	w := f.w
	var page atomic.Pointer[gntalloc.Pages]
	alloc := func() *gntalloc.Pages {
		p, err := f.pages.Alloc(0, 1, false)
		if err != nil {
			w.t.Error(err)
			return nil
		}
		copy(p.Bytes(), plainFrame(300))
		return p
	}
	page.Store(alloc())
	stop := flipped(func(int) {
		if p := alloc(); p != nil {
			if err := page.Swap(p).Free(); err != nil {
				w.t.Error(err)
			}
		}
	})
	seen := map[netif.Status]int{}
	for range 100 {
		for range 16 {
			f.q().tx.Put(netif.TxRequest{Gref: page.Load().Refs()[0], Size: 300})
		}
		f.publish()
		for _, s := range statuses(f.answers(16)) {
			seen[s]++
		}
	}
	stop()
	w.must(page.Load().Free())
	bad := seen[failed]
	delete(seen, failed)
	delete(seen, okay)
	if len(seen) > 0 {
		w.t.Errorf("answers %v", seen)
	}
	w.wait("all to be counted", func() bool { return f.status().Counters[dataplane.DropTxGrant.String()] >= uint64(bad) })
	f.breachOrNone("no reason")
}

// unbinds closes connections while events for them are pending on both sides (XSA-441).
func (f *hostileFront) unbinds() {
	for range 4 {
		tx, rx, ctrl := f.q().txPort, f.q().rxPort, f.ctrlPort
		stop := flipped(func(int) { // the last events find closed channels
			_, _, _ = f.events.Notify(tx), f.events.Notify(rx), f.events.Notify(ctrl)
		})
		f.again()
		stop()
		for _, p := range []evtchn.Port{tx, rx, ctrl} {
			f.w.must(f.events.Unbind(p))
		}
	}
}

// asksMeanwhile reads all that the control socket says while connections begin and end.
func (f *hostileFront) asksMeanwhile() {
	w := f.w
	stop := flipped(func(int) {
		if _, err := w.Control().Vifs(w.ctx); err != nil {
			w.t.Error(err)
		}
	})
	defer stop()
	for range 4 {
		f.frame()
		f.again()
	}
}

// keyAndEnd has messages under way while the toolstack detaches the vif.
func (f *hostileFront) keyAndEnd() {
	w := f.w
	ref := uint32(f.ctrlPage.Refs()[1])
	for range 2 {
		f.call(netif.CtrlSetHashAlgorithm, 1)
		for range 8 {
			f.send(netif.CtrlSetHashKey, ref, 40)
		}
		done := f.closesWhenAsked()
		_, err := w.Detach(w.ctx, f.domid, f.devid)
		w.must(err)
		w.must(<-done)
		w.vifGone(f.domid, f.devid)
		w.unpinned(f.domid)
		w.must(w.Attach(w.ctx, f.domid, config(0).Vif))
		f.wrote = nil
		f.newRings(1)
		f.connectControl()
		f.c = w.cable(f.status().Interface, func(f func() error) error { return f() })
	}
}

// dies destroys another domain whose ring is full of packets.
func (f *hostileFront) dies() {
	w := f.w
	o := w.hostileFront()
	for range netif.TxRingSize {
		o.q().tx.Put(netif.TxRequest{Gref: o.data.Refs()[1], Size: 4000})
	}
	o.publish()
	o.c.send(tap.VnetHdr{}, plainFrame(100))
	_, err := w.Destroy(w.ctx, o.domid)
	w.must(err)
	w.vifGone(o.domid, o.devid)
	w.domainGone(o.domid)
}

// TestEveryByteWritten: of the guest's ring pages and buffers the daemon writes the bytes
// that the protocol names, with values that it defines, and no other (XSA-216).
func TestEveryByteWritten(t *testing.T) {
	w := newWorld(t, "--rx-drain=1h", "--rx-stall=1h")
	f := w.hostileFront()
	// Only the test sends to the vif.
	w.must(netlink.LinkSetNoMaster(w.link(f.domid, f.devid)))
	w.must(netns.Sysctl("net/ipv6/conf/"+f.status().Interface+"/disable_ipv6", "1"))
	f.close()
	f.reopen()
	f.newRings(1)
	rings := f.q().rings.Bytes()
	for i := range rings { // slots that nothing was put in, beside the header
		if i%netif.PageSize >= 64 {
			rings[i] = 0xa5
		}
	}
	f.connectControl()
	buffers, err := f.pages.Alloc(0, 3, true)
	w.must(err)
	for i := range buffers.Bytes() {
		buffers.Bytes()[i] = 0xa5
	}
	ctrl := f.ctrlPage.Bytes()
	for i := 64; i < netif.PageSize; i++ {
		ctrl[i] = 0xa5
	}

	f.put(&badPacket{
		reqs:   []netif.TxRequest{{Gref: f.data.Refs()[0], ID: 0x1111, Flags: netif.TxMoreData | netif.TxExtraInfo, Size: 160}, {Gref: f.data.Refs()[0], ID: 0x2222, Size: 100}},
		extras: []netif.ExtraInfo{netif.NewHash(netif.HashInfo{})},
	})
	f.put(&badPacket{reqs: []netif.TxRequest{{Gref: 0xfffffff0, ID: 0x3333, Size: 60}}})
	for i, ref := range buffers.Refs() {
		f.q().rx.Put(netif.RxRequest{ID: uint16(0x40 + i), Gref: ref})
	}
	want := bytes.Clone(rings)
	f.publish()
	f.answers(4)
	f.q().rx.Push()
	w.must(f.events.Notify(f.q().rxPort))
	sent := plainFrame(5000)[:1400]
	f.c.send(tap.VnetHdr{}, sent)
	w.wait("a packet", func() bool { n, err := f.q().rx.Responses(); return err == nil && n == 1 })
	le := binary.NativeEndian
	for i, r := range []netif.TxResponse{{ID: 0x1111}, {ID: 0, Status: netif.StatusNull}, {ID: 0x2222}, {ID: 0x3333, Status: failed}} {
		le.PutUint16(want[64+12*i:], r.ID)
		le.PutUint16(want[64+12*i+2:], uint16(r.Status))
	}
	rx := want[netif.PageSize+64:]
	le.PutUint16(rx, 0x40)
	le.PutUint16(rx[2:], 0)
	le.PutUint16(rx[4:], 0)
	le.PutUint16(rx[6:], uint16(len(sent)))
	wrote(t, "tx ring", rings[64:netif.PageSize], want[64:netif.PageSize])
	wrote(t, "rx ring", rings[netif.PageSize+64:], want[netif.PageSize+64:])
	wrote(t, "buffers", buffers.Bytes(), append(bytes.Clone(sent), bytes.Repeat([]byte{0xa5}, 3*netif.PageSize-len(sent))...))

	f.ctrl.Put(netif.CtrlRequest{ID: 0x77, Type: netif.CtrlGetHashFlags, Data: [3]uint32{0xa1a2a3a4, 0xb1b2b3b4, 0xc1c2c3c4}})
	want = bytes.Clone(ctrl[:netif.PageSize])
	f.ctrl.Push()
	w.must(f.events.Notify(f.ctrlPort))
	r := f.reply()
	le.PutUint16(want[64:], 0x77)
	le.PutUint16(want[66:], uint16(netif.CtrlGetHashFlags))
	le.PutUint32(want[68:], uint32(r.Status))
	le.PutUint32(want[72:], r.Data)
	le.PutUint32(want[76:], 0) // the slot is longer than a response
	wrote(t, "control ring", ctrl[64:netif.PageSize], want[64:])
}

// wrote compares a page with what it must hold, and names the first bytes that differ.
func wrote(t *testing.T, what string, got, want []byte) {
	t.Helper()
	differ := map[int][2]byte{} // got and wanted
	for i := range want {
		if got[i] != want[i] && len(differ) < 8 {
			differ[i] = [2]byte{got[i], want[i]}
		}
	}
	if len(differ) > 0 {
		t.Errorf("%s: bytes by place, got and wanted: %x", what, differ)
	}
}
