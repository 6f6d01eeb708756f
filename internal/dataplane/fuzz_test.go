// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bytes"
	"encoding/binary"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/fuzzloop"
	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/internal/lab/packettest"
	"github.com/netbackd/netbackd/internal/offload"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/xen"
)

// fuzzBed is a bed that is used again for every input. It has no io_uring, because that
// belongs to a thread and every input has its own goroutine.
type fuzzBed struct {
	bed
	front *front
	refs  [2][]xen.Gref // own pages of the worker's arenas
}

func newFuzzBed(f *testing.F) *fuzzBed {
	netns.NeedTUN(f)
	b := &fuzzBed{bed: bed{tb: f, pager: startOwn(f)}}
	b.newWorker(false)
	d, err := tap.Create(tap.Config{Name: "fuzz" + strconv.Itoa(unix.Getpid()), VnetHdr: true, Offload: tap.Offload{Csum: true, TSO4: true, TSO6: true}})
	must(f, err)
	f.Cleanup(func() { _ = d.Close() })
	must(f, d.SetMTU(65521))
	name, err := d.Name()
	must(f, err)
	must(f, netns.Up(name))
	b.tap, b.host = d, newHost(f, d.Index())
	f.Cleanup(b.host.close)
	b.front = newFront(f, testDomid)
	b.front.grants.worker = func() *worker { return b.w }
	// Every page is filled with a different byte, which shows the source of data. Each
	// of them makes a unicast frame of no known protocol.
	for i := range frontPages {
		page := b.front.mem[txPages+i*netif.PageSize:][:netif.PageSize]
		copy(page, bytes.Repeat([]byte{byte(2*i + 2)}, netif.PageSize))
	}
	return b
}

// use makes all parts of the bed report to the test of one input.
func (b *fuzzBed) use(t *testing.T) {
	b.tb, b.host.tb, b.front.tb, b.front.grants.tb, b.front.events.tb = t, t, t, t, t
}

// serve connects the front's rings as they are and runs the worker until it has no work.
// The caller disconnects.
func (b *fuzzBed) serve(t *testing.T, cfg Config) {
	t.Helper()
	b.notices = nil
	b.front.events.rebind()
	cfg.Domid, cfg.VnetHdr = testDomid, true
	cfg.Notice = func(n Notice) { b.notices = append(b.notices, n) }
	q := b.front.config()
	q.Tap = b.tap.Queue(0)
	var err error
	b.conn, err = newConn(cfg, []QueueConfig{q})
	must(t, err)
	b.queue().worker.Store(b.w)
	must(t, b.w.attach(b.queue()))
	b.fronts = []*front{b.front}
	b.useOwn(q.TxPage[0]&1 == 0)
	b.settle()
}

// useOwn makes copies use the worker's own pages, or not.
func (b *fuzzBed) useOwn(use bool) {
	if b.refs[0] == nil {
		b.refs = [2][]xen.Gref{b.w.txMem.own.refs, b.w.rxMem.own.refs}
	}
	b.w.txMem.own.refs, b.w.rxMem.own.refs = nil, nil
	if use {
		b.w.txMem.own.refs, b.w.rxMem.own.refs = b.refs[0], b.refs[1]
	}
}

// ladder is a model of a tx ring: it applies the rules of netif.h and of xen-netback to
// one packet after the other.
type ladder struct {
	slots  [netif.TxRingSize][12]byte
	at     uint32 // next slot
	left   uint32 // slots published
	mem    func(ref xen.Gref) []byte
	mcast  map[[6]byte]bool
	answer []answer
	frames [][]byte
	drops  map[string]uint64
	breach bool
}

func (l *ladder) slot(i uint32) []byte { return l.slots[(l.at+i)%netif.TxRingSize][:] }

func (l *ladder) run() {
	for l.left > 0 && !l.breach {
		l.packet()
	}
}

func (l *ladder) packet() {
	le := binary.LittleEndian
	type data struct {
		ref           xen.Gref
		off, size, id int
		flags         uint16
	}
	request := func(s []byte) data {
		return data{xen.Gref(le.Uint32(s)), int(le.Uint16(s[4:])), int(le.Uint16(s[10:])), int(le.Uint16(s[8:])), le.Uint16(s[6:])}
	}
	first := request(l.slot(0))
	used := uint32(1)
	extras := map[byte][]byte{}
	nulls := 0
	for more := first.flags&8 != 0; more; {
		if used == l.left {
			l.breach = true
			return
		}
		e := l.slot(used)
		used++
		nulls++
		if e[0] < 1 || e[0] > 4 {
			l.breach = true
			return
		}
		extras[e[0]] = e
		more = e[1]&1 != 0
	}
	finish := func(answers []answer) {
		l.answer = append(l.answer, answers[0])
		for range nulls {
			l.answer = append(l.answer, answer{0, netif.StatusNull})
		}
		l.answer = append(l.answer, answers[1:]...)
		l.at += used
		l.left -= used
	}
	if e := extras[2]; e != nil {
		a := answer{uint16(first.id), netif.StatusOkay}
		addr := [6]byte(e[2:])
		if addr[0]&1 == 0 || !l.mcast[addr] && len(l.mcast) == 64 {
			a.Status = netif.StatusError
			l.drops["mcast_full"]++
		} else {
			l.mcast[addr] = true
		}
		finish([]answer{a})
		return
	}
	if e := extras[3]; e != nil {
		delete(l.mcast, [6]byte(e[2:]))
		finish([]answer{{uint16(first.id), netif.StatusOkay}})
		return
	}
	all := []data{first}
	for more := first.flags&4 != 0; more; {
		// netbackd treats a packet of 22 slots or more as one without end.
		if used == l.left || len(all) == 21 {
			l.breach = true
			return
		}
		d := request(l.slot(used))
		used++
		all = append(all, d)
		more = d.flags&4 != 0
	}

	answers := make([]answer, len(all))
	for i, d := range all {
		answers[i].ID = uint16(d.id)
	}
	drop := func(why string) {
		for i := range answers {
			answers[i].Status = netif.StatusError
		}
		l.drops[why]++
		finish(answers)
	}
	// Faults of slots count in their order, those of the first slot last: its size is
	// known only after the other slots.
	rest := first.size
	for i, d := range all[1:] {
		if i >= 18 {
			break
		}
		if d.size > rest {
			drop("tx_size_mismatch")
			return
		}
		if d.off+d.size > 4096 {
			drop("tx_cross_page")
			return
		}
		rest -= d.size
	}
	if len(all) > 19 {
		drop("tx_too_many_slots")
		return
	}
	all[0].size = rest
	switch {
	case rest < 14:
		drop("tx_too_short")
		return
	case first.off+rest > 4096:
		drop("tx_cross_page")
		return
	}
	if why := refusedGSO(extras[1]); why != "" {
		drop(why)
		return
	}
	var frame []byte
	bad := false
	for i, d := range all {
		if d.size == 0 {
			continue
		}
		page := l.mem(d.ref)
		if page == nil {
			answers[i].Status = netif.StatusError
			bad = true
			continue
		}
		frame = append(frame, page[d.off:d.off+d.size]...)
	}
	switch {
	case bad:
		l.drops["tx_grant"]++
		finish(answers)
	case extras[1] != nil: // a packet that is not TCP
		drop("tx_bad_gso")
	case first.flags&1 != 0:
		l.drops["tx_bad_csum"]++
		finish(answers)
	default:
		l.frames = append(l.frames, frame)
		finish(answers)
	}
}

// refusedGSO returns the reason for which an extra of segmentation is refused whatever the
// packet is, or "".
func refusedGSO(e []byte) string {
	switch {
	case e == nil:
		return ""
	case binary.LittleEndian.Uint16(e[2:]) == 0 || e[4] != 1 && e[4] != 2:
		return "tx_bad_gso"
	case binary.LittleEndian.Uint16(e[2:]) < 8:
		return "tx_gso_too_small"
	}
	return ""
}

// checkRing serves the ring that slots make and compares with the ladder.
func (b *fuzzBed) checkRing(t *testing.T, start netif.Index, prod uint32, slots []byte) {
	b.use(t)
	page := b.front.mem[:netif.PageSize]
	tx, err := netif.InitTx(page)
	must(t, err)
	*b.front.tx = *tx
	rx, err := netif.InitRx(b.front.mem[netif.PageSize : 2*netif.PageSize])
	must(t, err)
	*b.front.rx = *rx
	b.front.startAt(start)

	l := ladder{at: uint32(start), left: prod, mcast: map[[6]byte]bool{}, drops: map[string]uint64{}}
	if len(slots) > 0 {
		for i := 64; i < 64+256*12; i++ {
			page[i] = slots[(i-64)%len(slots)]
		}
	}
	for i := range l.slots {
		s := page[64+12*i:][:12]
		// The rings' own pages change while packets are taken from them. As an extra the
		// slot stays of an unknown type.
		if ref := binary.LittleEndian.Uint32(s); ref == ringRef || ref == ringRef+1 {
			s[3] = 0xff
		}
		copy(l.slots[i][:], s)
	}
	l.mem = func(ref xen.Gref) []byte {
		if ref < firstRef || ref >= firstRef+2*frontPages {
			return nil
		}
		return b.front.page(ref)
	}
	l.run()

	b.front.tx.SetReqProd(start.Add(prod))
	b.serve(t, full)
	defer b.disconnect()
	if diff := cmp.Diff(l.answer, b.front.answers()); diff != "" {
		t.Errorf("answers (-want +got):\n%s", diff)
	}
	if breach := b.breach(); (breach != nil) != l.breach {
		t.Errorf("breach %v, want %v", breach, l.breach)
	}
	if diff := cmp.Diff(l.frames, b.host.frames(), asBytes); diff != "" {
		t.Errorf("frames (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(l.drops, b.stats(Drop)); diff != "" {
		t.Errorf("drops (-want +got):\n%s", diff)
	}
	if got := b.conn.cfg.Mcast.Addrs(); len(got) != len(l.mcast) {
		t.Errorf("%d multicast addresses, want %d", len(got), len(l.mcast))
	}
}

// FuzzTxRing serves any tx ring. The input is the ring's contents, its start index and
// its req_prod.
func FuzzTxRing(f *testing.F) {
	b := newFuzzBed(f)
	ring := func(put func(f *front)) []byte {
		tx, err := netif.InitTx(b.front.mem[:netif.PageSize])
		must(f, err)
		*b.front.tx = *tx
		put(b.front)
		n := int(b.front.tx.ReqProd())
		return bytes.Clone(b.front.mem[64 : 64+12*n])
	}
	f.Add(uint32(0), uint16(3), ring(func(f *front) {
		f.put(packet{frame: make([]byte, 60)})
		f.put(packet{frame: make([]byte, 100), slots: []int{50, 50}})
	}))
	f.Add(uint32(1<<32-2), uint16(256), ring(func(f *front) {
		f.put(packet{frame: make([]byte, 6000), flags: netif.TxCsumBlank, extras: []netif.ExtraInfo{gso(4, 1448)}})
		f.put(packet{frame: make([]byte, 500), slots: parts(500, 19), extras: []netif.ExtraInfo{netif.NewHash(netif.HashInfo{})}})
		f.mcast(true, mac(1))
		f.mcast(false, mac(1))
	}))
	f.Add(uint32(77), uint16(30), ring(func(f *front) { f.put(packet{frame: make([]byte, 9000), slots: parts(9000, 30)}) }))
	f.Add(uint32(77), uint16(20), ring(func(f *front) { f.put(packet{frame: make([]byte, 9000), slots: parts(9000, 20)}) }))
	f.Add(uint32(0), uint16(257), []byte{})
	f.Add(uint32(0), uint16(2), ring(func(f *front) {
		r := f.requests(packet{frame: make([]byte, 100), slots: []int{100, 0}})
		r[1].Gref = 0
		f.ring(r, 100, 0)
	}))
	fuzzloop.Fuzz(f, func(t *testing.T, start uint32, prod uint16, slots []byte) {
		b.use(t)
		if prod > netif.TxRingSize {
			page := b.front.mem[:netif.PageSize]
			b.front.startAt(netif.Index(start))
			b.front.tx.SetReqProd(netif.Index(start).Add(uint32(prod)))
			if _, err := netif.AttachTx(page); err == nil {
				t.Error("a ring filled beyond its size was attached")
			}
			return
		}
		b.checkRing(t, netif.Index(start), uint32(prod), slots)
	})
}

// FuzzExtraChain serves a packet with any chain of extras, which is the input, with or
// without data slots behind it.
func FuzzExtraChain(f *testing.F) {
	b := newFuzzBed(f)
	f.Add(true, uint8(0), []byte{1, 0, 100, 0, 1, 0, 0, 0})
	f.Add(true, uint8(2), []byte{4, 1, 0, 0, 0, 0, 0, 0, 1, 0, 100, 0, 1, 0, 0, 0})
	f.Add(true, uint8(1), []byte{2, 1, 1, 0, 0x5e, 0, 0, 1, 3, 0, 1, 0, 0x5e, 0, 0, 1})
	f.Add(true, uint8(0), []byte{4, 1, 0, 0, 0, 0, 0, 0})
	f.Add(true, uint8(0), []byte{0, 0, 0, 0, 0, 0, 0, 0})
	f.Add(true, uint8(0), []byte{5, 0, 0, 0, 0, 0, 0, 0})
	f.Add(false, uint8(3), []byte{1, 0, 0, 0, 1, 0, 0, 0})
	f.Add(true, uint8(5), bytes.Repeat([]byte{4, 1, 0, 0, 0, 0, 0, 0}, 250))
	fuzzloop.Fuzz(f, func(t *testing.T, announced bool, later uint8, chain []byte) {
		later %= 24
		chain = chain[:min(len(chain), 8*200)]
		var ring []byte
		put := func(flags netif.TxFlags, size int) {
			ring = binary.LittleEndian.AppendUint32(ring, firstRef)
			ring = binary.LittleEndian.AppendUint16(ring, 0)
			ring = binary.LittleEndian.AppendUint16(ring, uint16(flags))
			ring = binary.LittleEndian.AppendUint16(ring, uint16(len(ring)))
			ring = binary.LittleEndian.AppendUint16(ring, uint16(size))
		}
		flags := netif.TxFlags(0)
		if announced {
			flags |= netif.TxExtraInfo
		}
		if later > 0 {
			flags |= netif.TxMoreData
		}
		put(flags, 60+10*int(later))
		for len(chain) > 0 {
			var e [12]byte
			chain = chain[copy(e[:8], chain):]
			ring = append(ring, e[:]...)
		}
		for i := range later {
			if i < later-1 {
				put(netif.TxMoreData, 10)
			} else {
				put(0, 10)
			}
		}
		b.checkRing(t, 0, uint32(len(ring)/12), ring)
	})
}

// FuzzRxPlan delivers packets to any guest. The input is the offloads that the guest
// takes, the number of slots that it posts at first, and the kinds and sizes of the host's
// packets.
func FuzzRxPlan(f *testing.F) {
	b := newFuzzBed(f)
	f.Add(uint8(0x1f), uint8(255), []byte{0, 0, 100, 1, 5, 220, 2, 234, 96})
	f.Add(uint8(0x1f), uint8(3), []byte{2, 40, 0, 0, 0, 1, 2, 80, 0})
	f.Add(uint8(0), uint8(255), []byte{0, 0, 1, 1, 0, 1, 2, 0, 200, 3, 20, 0})
	f.Add(uint8(0x11), uint8(1), []byte{3, 80, 0, 3, 2, 0, 0, 1, 0})
	f.Add(uint8(0x15), uint8(17), []byte{6, 255, 0, 5, 10, 0, 4, 16, 0})
	fuzzloop.Fuzz(f, func(t *testing.T, features, slots uint8, in []byte) {
		b.use(t)
		cfg := full
		cfg.SG = features&1 != 0
		cfg.Guest = offload.Guest{
			CsumIPv4: features&2 != 0, CsumIPv6: features&4 != 0,
			GSOTCPv4: features&10 == 10 && cfg.SG, GSOTCPv6: features&20 == 20 && cfg.SG,
		}
		var want []delivery
		var send []hostFrame
		for ; len(in) >= 3 && len(send) < backlogFrames; in = in[3:] {
			kind, n := in[0]%7, int(binary.BigEndian.Uint16(in[1:]))%60000
			h, d := planned(cfg, kind, n)
			send = append(send, h)
			want = append(want, d...)
		}
		b.front.restart()
		b.serve(t, cfg)
		defer b.disconnect()
		b.front.post(int(slots))
		b.host.send(send...)
		for round := 0; ; round++ {
			b.settle()
			got := b.front.received()
			if round == 0 {
				// All that fits, and no more.
				fit, used := 0, 0
				for fit < len(want) && used+want[fit].Slots <= int(slots) {
					used += want[fit].Slots
					fit++
				}
				if len(got) != fit {
					t.Fatalf("%d packets in %d slots, want %d of %d", len(got), slots, fit, len(want))
				}
			}
			for i, d := range got {
				if i >= len(want) {
					t.Fatalf("more packets than were sent: %v", d)
				}
				w := want[i]
				if d.Slots != w.Slots || len(d.Frame) != len(w.Frame) || d.Flags != w.Flags || d.GSO != w.GSO {
					t.Fatalf("packet %v, want %v", d, w)
				}
			}
			want = want[len(got):]
			free := int(b.front.rx.Free())
			if len(want) == 0 || round > 100 {
				break
			}
			b.front.post(max(free/2, 1))
		}
		if len(want) > 0 {
			t.Errorf("%d packets did not come", len(want))
		}
		if len(b.notices) > 0 {
			t.Errorf("notices %v", b.notices)
		}
	})
}

// planned returns a packet that the host sends, and the deliveries that the guest should
// get for it. Only the lengths of the deliveries count.
func planned(cfg Config, kind byte, n int) (hostFrame, []delivery) {
	const mss = 1448
	ipv := 4 + 2*int(kind&1)
	var f packettest.Frame
	size := 0
	switch kind {
	case 0, 1: // a finished datagram
		f = packettest.Frame{IPv4: &packettest.IPv4{}, UDP: &packettest.UDP{NoChecksum: true}}
		if ipv == 6 {
			f = packettest.Frame{IPv6: &packettest.IPv6{}, ICMP: &packettest.ICMP{}}
		}
	case 2, 3: // segmentation left open
		f, size = tcp(ipv, 0), mss
	case 4, 5: // a checksum left open
		f = tcp(ipv, 0)
	case 6: // behind a tag
		f, size = tcp(4, 0, vlan), mss
	}
	f.Partial = kind >= 2
	f.Payload = make([]byte, n)
	frame := f.Bytes()
	h := hostFrame{Frame: frame}
	if f.Partial {
		if n <= mss {
			size = 0
		}
		h.Vnet = vnetOf(f, size)
	}
	slotsOf := func(n int) int { return (n + 4095) / 4096 }

	takesCsum, takesGSO := cfg.Guest.CsumIPv4, cfg.Guest.GSOTCPv4
	if f.IPv6 != nil {
		takesCsum, takesGSO = cfg.Guest.CsumIPv6, cfg.Guest.GSOTCPv6
	}
	if kind == 6 {
		takesCsum, takesGSO = false, false
	}
	d := delivery{Frame: frame, Slots: slotsOf(len(frame))}
	switch {
	case size != 0 && takesGSO:
		d.Flags = blank | validated
		d.GSO = netif.GSOInfo{Size: mss, Type: netif.GSOTCPv4}
		if f.IPv6 != nil {
			d.GSO.Type = netif.GSOTCPv6
		}
		d.Slots++
	case size != 0:
		var cut []delivery
		head := len(frame) - n
		for left := n; left > 0; left -= mss {
			cut = append(cut, delivery{Frame: frame[:head+min(left, mss)], Slots: 1, Flags: validated})
		}
		return h, cut
	case f.Partial:
		d.Flags = validated
		if takesCsum {
			d.Flags |= blank
		}
	}
	if !cfg.SG && len(frame) > netif.PageSize {
		return h, nil
	}
	return h, []delivery{d}
}
