// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bytes"
	"context"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/netbackd/netbackd/internal/lab/packettest"
	"github.com/netbackd/netbackd/internal/steer"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/staticgrant"
	"github.com/netbackd/netbackd/pkg/toeplitz"
	"github.com/netbackd/netbackd/pkg/xen"
)

// makeStatic makes pages static grants, as the control ring does between two turns.
func (f *front) makeStatic(flags uint16, refs ...xen.Gref) {
	f.tb.Helper()
	s := staticgrant.Source{Mapper: f.mapper, Domid: f.guest.Domid()}
	for part := range slices.Chunk(refs, staticgrant.MaxList) {
		var list []netif.GrefEntry
		for _, r := range part {
			list = append(list, netif.GrefEntry{Ref: r, Flags: flags})
		}
		p, err := s.Prepare(context.Background(), list)
		must(f.tb, err)
		must(f.tb, f.static.Commit(p))
	}
}

// refs returns the grefs from page i to page j, tx pages first.
func refs(i, j int) (list []xen.Gref) {
	for ; i < j; i++ {
		list = append(list, firstRef+xen.Gref(i))
	}
	return list
}

// allStatic makes all pages static grants, those for tx read-only.
func (f *front) allStatic() {
	f.tb.Helper()
	f.makeStatic(netif.GrefReadOnly, refs(0, frontPages)...)
	f.makeStatic(0, refs(frontPages, 2*frontPages)...)
}

// TestStaticGrantsTx sends packets of all shapes from pages that are static
// grants, all or some of them.
func TestStaticGrantsTx(t *testing.T) {
	large := partial(tcp(4, 60000))
	shapes := []packet{
		{frame: udp(18, 1)},
		{frame: udp(18, 1), slots: []int{20, 40}},
		{frame: udp(1400, 2), offset: 900},
		{frame: udp(3000, 3)},
		{frame: udp(3000, 3), slots: []int{14, 2000, 1028}},
		{frame: udp(9000, 4), slots: []int{14, 0, 4096, 0, 4096, 836}},
		{frame: partial(tcp(6, 1400)).Bytes(), flags: netif.TxCsumBlank, slots: []int{20, 1466}},
		{frame: partial(tcp(4, 4000)).Bytes(), flags: netif.TxCsumBlank, slots: []int{30, 30, 3946 + 60}},
		{frame: large.Bytes(), flags: netif.TxCsumBlank, extras: []netif.ExtraInfo{gso(4, 1448)}},
		{frame: large.Bytes(), flags: netif.TxCsumBlank, slots: tail(len(large.Bytes()), 14, 20), extras: []netif.ExtraInfo{gso(4, 1448)}},
	}
	inModes(t, allModes, func(t *testing.T, m mode) {
		for _, which := range []struct {
			name   string
			static func(f *front)
			ops    func(n uint64) bool
		}{
			{"all", (*front).allStatic, func(n uint64) bool { return n == 0 }},
			{"every other one", func(f *front) {
				for i := 0; i < frontPages; i += 2 {
					f.makeStatic(netif.GrefReadOnly, firstRef+xen.Gref(i))
				}
			}, func(n uint64) bool { return n > 0 }},
		} {
			for shift := range 2 { // each slot is static once, and copied once
				var want, got []hostFrame
				for _, static := range []bool{false, true} {
					b := newBed(t, m, setup{cfg: full})
					f := b.front()
					if static {
						which.static(f)
					}
					f.nextTx = shift
					var answers []answer
					for range 3 {
						for _, p := range shapes {
							slots := p.slots
							if slots == nil {
								p.slots = tail(len(p.frame), min(len(p.frame), netif.PageSize-p.offset))
							}
							answers = append(answers, f.put(p)...)
						}
						f.push()
						b.settle()
						if diff := cmp.Diff(answers, f.answers()); diff != "" {
							t.Fatalf("%s, static %t: answers (-want +got):\n%s", which.name, static, diff)
						}
						answers = nil
					}
					if static {
						got = b.host.received()
						if !which.ops(b.stat(GrantOps)) || (b.stat(StaticMisses) == 0) != (b.stat(GrantOps) == 0) || b.stat(StaticHits) == 0 {
							t.Errorf("%s: %v", which.name, b.stats(Work))
						}
						if d := b.stats(Drop); len(d) > 0 {
							t.Errorf("%s: drops %v", which.name, d)
						}
					} else {
						want = b.host.received()
					}
					b.disconnect()
				}
				if !slices.EqualFunc(want, got, func(a, b hostFrame) bool { return a.Vnet == b.Vnet && bytes.Equal(a.Frame, b.Frame) }) {
					t.Errorf("%s static: the host sees other packets than of copied pages: %v, want %v", which.name, frameLens(got), frameLens(want))
				}
			}
		}
	})
}

// TestStaticGrantsRx delivers packets of all sizes into static grants.
func TestStaticGrantsRx(t *testing.T) {
	large, larger := partial(tcp(4, 50000)), partial(tcp(6, 60000))
	plainLarge := udp(9000, 1)
	inModes(t, allModes, func(t *testing.T, m mode) {
		frames := []hostFrame{
			{Frame: udp(18, 1)}, {Frame: udp(1400, 2)}, {Frame: plainLarge}, {Frame: udp(18, 3)},
			{Frame: udp(2100, 1)}, {Frame: udp(5000, 1)}, {Frame: udp(5000, 2)}, {Frame: udp(18, 4)}, {Frame: udp(20000, 2)},
		}
		if m.vnet {
			for range 3 {
				frames = append(frames, hostFrame{vnetOf(large, 1448), large.Bytes()}, hostFrame{Frame: plainLarge},
					hostFrame{vnetOf(larger, 1428), larger.Bytes()}, hostFrame{vnetOf(large, 1448), large.Bytes()}, hostFrame{Frame: udp(18, 5)})
			}
		}
		for _, which := range []string{"all", "some"} {
			for _, hash := range []*steer.Config{nil, {Hasher: hasher(t), Types: toeplitz.AllTypes}} {
				b := newBed(t, m, setup{cfg: full})
				f := b.front()
				b.queue().setHash(hash)
				if which == "all" {
					f.allStatic()
				} else {
					f.makeStatic(0, refs(frontPages+100, frontPages+300)...)
				}
				for range 8 {
					for i := 0; i < len(frames); i += 6 { // as many as the slots take
						f.post(int(f.rx.Free()))
						part := frames[i:min(i+6, len(frames))]
						b.host.send(part...)
						b.settle()
						got := f.received()
						for k := range got {
							wantHash(t, got[k], hash)
						}
						if diff := cmp.Diff(frameLens(part), lensOf(got)); diff != "" {
							t.Fatalf("%s, batch %d: (-want +got)\n%s", which, i, diff)
						}
						for k, d := range got {
							if !bytes.Equal(d.Frame, part[k].Frame) {
								t.Errorf("%s: frame %d of %d bytes arrives with other bytes", which, i+k, len(d.Frame))
							}
						}
					}
				}
				if d := b.stats(Drop); len(d) > 0 {
					t.Errorf("%s: drops %v", which, d)
				}
				if n := b.stat(GrantOps); (n == 0) != (which == "all") || b.stat(StaticHits) == 0 {
					t.Errorf("%s: %v", which, b.stats(Work))
				}
				b.disconnect()
			}
		}
	})
}

func frameLens(list []hostFrame) (n []int) {
	for _, f := range list {
		n = append(n, len(f.Frame))
	}
	return n
}

func lensOf(list []delivery) (n []int) {
	for _, d := range list {
		n = append(n, len(d.Frame))
	}
	return n
}

// hashKey is the key of Microsoft's verification suite.
var hashKey = []byte{
	0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0,
	0xd0, 0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c,
	0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
}

func hasher(t testing.TB) *toeplitz.Hasher {
	h, err := toeplitz.New(hashKey)
	must(t, err)
	return h
}

// wantHash checks a packet's hash extra against the hash of what arrived.
func wantHash(t *testing.T, d delivery, h *steer.Config) {
	t.Helper()
	var want *netif.HashInfo
	var tuple toeplitz.Tuple
	if h != nil && tuple.Extract(d.Frame, h.Types) {
		want = &netif.HashInfo{Type: uint8(tuple.Type()), Algorithm: 1, Value: h.Hasher.Hash(tuple.Input())}
	}
	if diff := cmp.Diff(want, d.Hash, cmp.AllowUnexported(netif.HashInfo{})); diff != "" {
		t.Errorf("hash of %v (-want +got):\n%s", d, diff)
	}
}

// TestHashExtra: the packets of Microsoft's table carry the hash of that table if their
// type is enabled, beside their other extras. Other packets carry none.
func TestHashExtra(t *testing.T) {
	v4 := packettest.Frame{
		IPv4: &packettest.IPv4{Src: netip.MustParseAddr("66.9.149.187"), Dst: netip.MustParseAddr("161.142.100.80")},
		TCP:  &packettest.TCP{SrcPort: 2794, DstPort: 1766}, Payload: packettest.Pattern(5000), Partial: true,
	}
	short := v4
	short.Payload, short.Partial = packettest.Pattern(10), false
	arp := packettest.Frame{EtherType: packettest.TypeARP, Payload: packettest.Pattern(46)}
	for _, tt := range []struct {
		name  string
		frame packettest.Frame
		mss   int
		types toeplitz.Types
		want  *netif.HashInfo
	}{
		{"TCP", short, 0, toeplitz.AllTypes, &netif.HashInfo{Type: netif.HashIPv4TCP, Algorithm: 1, Value: 0x51ccc178}},
		{"TCP, addresses only", short, 0, 1 << netif.HashIPv4, &netif.HashInfo{Type: netif.HashIPv4, Algorithm: 1, Value: 0x323e8fc2}},
		{"TCP, other types", short, 0, 1<<netif.HashIPv6 | 1<<netif.HashIPv6TCP, nil},
		{"GSO", v4, 1400, toeplitz.AllTypes, &netif.HashInfo{Type: netif.HashIPv4TCP, Algorithm: 1, Value: 0x51ccc178}},
		{"not IP", arp, 0, toeplitz.AllTypes, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inModes(t, allModes[:1], func(t *testing.T, m mode) {
				b := newBed(t, m, setup{cfg: full})
				f := b.front()
				f.post(256)
				b.queue().setHash(&steer.Config{Hasher: hasher(t), Types: tt.types})
				h := hostFrame{Frame: tt.frame.Bytes()}
				if tt.mss != 0 {
					h.Vnet = vnetOf(tt.frame, tt.mss)
				}
				b.host.send(h)
				b.settle()
				got := f.received()
				if len(got) != 1 {
					t.Fatalf("%d packets", len(got))
				}
				if diff := cmp.Diff(tt.want, got[0].Hash, cmp.AllowUnexported(netif.HashInfo{})); diff != "" {
					t.Errorf("hash (-want +got):\n%s", diff)
				}
				if gso := got[0].GSO.Size; int(gso) != tt.mss {
					t.Errorf("mss %d, want %d", gso, tt.mss)
				}
				if n := b.stat(RxHash); (n == 1) != (tt.want != nil) {
					t.Errorf("%d packets counted", n)
				}
			})
		})
	}
}

// TestHashWithTooFewSlots: a packet waits for all slots that it needs with its extras, also
// if it is segmented.
func TestHashWithTooFewSlots(t *testing.T) {
	open := partial(tcp(4, 5000))
	tagged := partial(tcp(4, 5000, vlan))
	inModes(t, allModes[:2], func(t *testing.T, m mode) {
		for _, frame := range []packettest.Frame{open, tagged} {
			b := newBed(t, m, setup{cfg: full})
			f := b.front()
			h := &steer.Config{Hasher: hasher(t), Types: toeplitz.AllTypes}
			b.queue().setHash(h)
			b.host.send(hostFrame{vnetOf(frame, 1448), frame.Bytes()})
			n, total := 0, 0
			for k := 0; n < 1 || k < 40; k++ {
				f.post(1)
				b.settle()
				for _, d := range f.received() {
					wantHash(t, d, h)
					n++
					total += len(d.Frame)
				}
				if k > 100 {
					t.Fatal("it does not come")
				}
			}
			if d := b.stats(Drop); len(d) > 0 || total < 5000 {
				t.Errorf("%d packets, %d bytes, drops %v", n, total, d)
			}
			b.disconnect()
		}
	})
}

// TestReadOnlyGrantIsNoRxBuffer: the slot is answered with an error, the packet is lost,
// and the page is not written. The other pages of the packet are.
func TestReadOnlyGrantIsNoRxBuffer(t *testing.T) {
	inModes(t, allModes, func(t *testing.T, m mode) {
		b := newBed(t, m, setup{cfg: full})
		f := b.front()
		f.makeStatic(netif.GrefReadOnly, refs(frontPages+1, frontPages+2)...)
		f.makeStatic(0, refs(frontPages+2, frontPages+3)...)
		f.post(6)
		big := udp(9000, 1) // in slots 1, 2 and 3
		b.host.sendPlain(udp(18, 1), big, udp(18, 2))
		b.settle()
		got := f.received()
		want := [][]netif.Status{{60}, {netif.StatusError, 4096, netif.Status(len(big) - 8192)}, {60}}
		var statuses [][]netif.Status
		for _, d := range got {
			statuses = append(statuses, d.Statuses)
		}
		if diff := cmp.Diff(want, statuses); diff != "" {
			t.Errorf("statuses (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(map[string]uint64{"rx_readonly": 1}, b.stats(Drop)); diff != "" {
			t.Errorf("drops (-want +got):\n%s", diff)
		}
		if page := f.page(firstRef + frontPages + 1); bytes.ContainsFunc(page, func(r rune) bool { return r != 0 }) {
			t.Error("the page was written")
		}
		if n, o := b.stat(RxPackets), b.stat(RxBytes); n != 2 || o != 120 {
			t.Errorf("%d packets of %d bytes counted", n, o)
		}
	})
}

// TestFailedPacketIsCountedOnce even if several of its pages fail.
func TestFailedPacketIsCountedOnce(t *testing.T) {
	inModes(t, allModes[:1], func(t *testing.T, m mode) {
		b := newBed(t, m, setup{cfg: full})
		f := b.front()
		f.makeStatic(netif.GrefReadOnly, refs(frontPages, frontPages+1)...)
		f.post(5)
		must(t, f.guest.Revoke(firstRef+frontPages+1))
		must(t, f.guest.Revoke(firstRef+frontPages+2))
		b.host.sendPlain(udp(9000, 1), udp(18, 2))
		b.settle()
		if got := f.received(); len(got) != 2 || !slices.Equal(got[0].Statuses, []netif.Status{-1, -1, -1}) {
			t.Errorf("got %v", got)
		}
		if diff := cmp.Diff(map[string]uint64{"rx_readonly": 1}, b.stats(Drop)); diff != "" {
			t.Errorf("drops (-want +got):\n%s", diff)
		}
		if n, o := b.stat(RxPackets), b.stat(RxBytes); n != 1 || o != 60 {
			t.Errorf("%d packets of %d bytes counted", n, o)
		}
	})
}

// mapperOf maps this memory in place of any page.
type mapperOf []byte

func (m mapperOf) Map(xen.Domid, []xen.Gref, gntdev.Prot) (*gntdev.Mapping, error) {
	return gntdev.NewMapping(m, func() error { return nil }), nil
}

// TestPageThatIsGone: a static grant whose page cannot be accessed any more costs the
// packet if the kernel finds the fault, and the vif if netbackd does.
func TestPageThatIsGone(t *testing.T) {
	inModes(t, allModes[:2], func(t *testing.T, m mode) {
		for _, n := range []int{18, 9000} {
			b := newBed(t, m, setup{cfg: full})
			f := b.front()
			hole, err := unix.Mmap(-1, 0, netif.PageSize, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
			must(t, err)
			f.mapper = mapperOf(hole)
			f.makeStatic(0, firstRef+xen.Gref(f.nextTx)+1)
			f.mapper = f.grants
			f.put(packet{frame: udp(n, 1), slots: tail(n+42, 30)})
			f.put(packet{frame: udp(18, 2)})
			f.push()
			b.settle()
			if n == 18 {
				if b.breach() == nil {
					t.Error("no breach")
				}
			} else if b.stat(DropTxTapRefused) != 1 || b.stat(TxPackets) != 1 {
				t.Errorf("%v", b.stats(Traffic, Drop))
			}
			b.notices, b.warned = nil, nil
			b.disconnect()
			b.host.drain()
			must(t, unix.Munmap(hole))
		}
	})
}

// TestAnyMixOfGrants sends packets both ways while pages become static grants and cease to
// be, and headroom changes, at random. The packets are the same, and without misses there
// are no grant operations.
func TestAnyMixOfGrants(t *testing.T) {
	inModes(t, allModes[:2], func(t *testing.T, m mode) {
		b := newBed(t, m, setup{cfg: full})
		f := b.front()
		rapid.Check(t, func(t *rapid.T) {
			for range rapid.IntRange(1, 8).Draw(t, "steps") {
				switch rapid.IntRange(0, 5).Draw(t, "step") {
				case 0:
					from := rapid.IntRange(0, 2*frontPages-1).Draw(t, "from")
					var list []xen.Gref
					for _, r := range refs(from, min(from+rapid.IntRange(1, 300).Draw(t, "n"), 2*frontPages)) {
						if f.static.Lookup(r).Page == nil {
							list = append(list, r)
						}
					}
					f.makeStatic(0, list...)
				case 1:
					var list []netif.GrefEntry
					for _, r := range refs(0, 2*frontPages) {
						if rapid.IntRange(0, 3).Draw(t, "keep") == 0 {
							list = append(list, netif.GrefEntry{Ref: r})
						}
					}
					if _, err := f.static.Detach(list).Unmap(); err != nil {
						t.Fatal(err)
					}
				case 2, 3:
					var sent [][]byte
					for range rapid.IntRange(1, 6).Draw(t, "packets") {
						frame := udp(rapid.IntRange(0, 12000).Draw(t, "bytes"), 9)
						sent = append(sent, frame)
						p := packet{frame: frame, offset: rapid.IntRange(0, 2000).Draw(t, "offset")}
						f.put(p)
					}
					f.push()
					b.settle()
					f.answers()
					same(t, sent, b.host.frames())
				case 4:
					f.post(int(f.rx.Free()))
					var sent [][]byte
					for range rapid.IntRange(1, 6).Draw(t, "packets") {
						sent = append(sent, udp(rapid.IntRange(18, 30000).Draw(t, "bytes"), 9))
					}
					b.host.sendPlain(sent...)
					b.settle()
					same(t, sent, framesOf(f.received()))
				case 5:
					b.queue().setXDPHeadroom(rapid.IntRange(0, MaxXDPHeadroom).Draw(t, "headroom"))
				}
			}
			if d := b.stats(Drop); len(d) > 0 {
				t.Fatalf("drops %v", d)
			}
			if (b.stat(GrantOps) != 0) != (b.stat(GrantCalls) != 0) {
				t.Fatalf("%v", b.stats(Work))
			}
		})
	})
}

func same(t *rapid.T, want, got [][]byte) {
	if len(want) != len(got) {
		t.Fatalf("%d packets, want %d", len(got), len(want))
	}
	for i := range want {
		if !bytes.Equal(want[i], got[i]) {
			t.Fatalf("packet %d of %d bytes: got %d, or other bytes", i, len(want[i]), len(got[i]))
		}
	}
}

// TestControlOfTables: requests of the control ring are carried out between two turns, and
// a closed connection returns an error.
func TestControlOfTables(t *testing.T) {
	inModes(t, allModes[:1], func(t *testing.T, m mode) {
		p, err := NewPool(Options{Workers: 1, NoUring: true})
		must(t, err)
		f := newFront(t, testDomid)
		q := f.config()
		end := sharedTAP(t, 1, m.vnet)
		q.Tap = end.tap.Queue(0)
		c, err := p.Connect(Config{Domid: testDomid, VnetHdr: m.vnet}, []QueueConfig{q})
		must(t, err)
		s := staticgrant.Source{Mapper: f.mapper, Domid: f.guest.Domid()}
		prepare := func(list ...netif.GrefEntry) *staticgrant.Prepared {
			p, err := s.Prepare(t.Context(), list)
			must(t, err)
			t.Cleanup(func() { must(t, p.Unmap()) }) // if it was refused
			return p
		}
		one, two := netif.GrefEntry{Ref: firstRef}, netif.GrefEntry{Ref: firstRef + 1, Flags: netif.GrefReadOnly}
		now, err := c.AddGrants(0, prepare(one, two))
		must(t, err)
		if diff := cmp.Diff([]netif.GrefEntry{one, two}, now, cmp.AllowUnexported(netif.GrefEntry{})); diff != "" {
			t.Errorf("in the table (-want +got):\n%s", diff)
		}
		if _, err := c.AddGrants(0, prepare(two)); err == nil {
			t.Error("a duplicate is taken")
		}
		f.tx.Put(netif.TxRequest{Gref: firstRef}) // not pushed
		f.rx.Put(netif.RxRequest{Gref: firstRef + 1})
		f.rx.Put(netif.RxRequest{Gref: firstRef + 2})
		f.rx.Push()
		if st := c.State(0); st.Static != 2 || st.StaticInUse != 1 {
			t.Errorf("%d static grants, %d in use", st.Static, st.StaticInUse)
		}
		r, now, err := c.RemoveGrants(0, []netif.GrefEntry{two, {Ref: 9}})
		must(t, err)
		if n, err := r.Unmap(); n != 1 || err != nil || len(now) != 1 {
			t.Errorf("%d removed, %v, %d left", n, err, len(now))
		}
		must(t, c.SetHash(&steer.Config{Hasher: hasher(t), Types: 1}))
		must(t, c.SetHash(nil))
		c.Close()
		must(t, f.static.Close())
		p.Close()
		if _, err := c.AddGrants(0, prepare(one)); err != ErrClosed {
			t.Errorf("after the end: %v", err)
		}
		if err := c.SetHash(nil); err != ErrClosed {
			t.Errorf("after the end: %v", err)
		}
	})
}

// TestLargeReadAfterHashingEnds: after hashing ends each packet takes one slot less, and
// none is read into a page that the guest has not posted. The first packet is just small
// enough to be read as a small one if its vnet header did not count. It leaves 18 slots
// for a packet that goes into 17 pages.
func TestLargeReadAfterHashingEnds(t *testing.T) {
	inModes(t, allModes[:2], func(t *testing.T, m mode) {
		for n := 2037; n <= smallPacket; n++ {
			b := newBed(t, m, setup{cfg: full})
			f := b.front()
			f.allStatic()
			f.post(60)
			b.settle()
			b.queue().setHash(&steer.Config{Hasher: hasher(t), Types: toeplitz.AllTypes})
			hashed := partial(tcp(4, 50000))
			for range 2 { // of 13 pages and 2 extras each; the second one is read into pages
				b.host.send(hostFrame{vnetOf(hashed, 1448), hashed.Bytes()})
				b.settle()
			}
			if got := f.received(); len(got) != 2 || b.queue().reader.large.extras != 2 {
				t.Fatalf("%d packets, %d extras of the last one", len(got), b.queue().reader.large.extras)
			}
			b.queue().setHash(nil)
			avail, err := b.queue().rx.Available()
			must(t, err)
			if avail > 19 {
				for range avail - 19 {
					b.host.sendPlain(udp(18, 1))
				}
				b.settle()
				f.received()
			}
			// The guest has written the next requests, and not published them yet.
			var next []xen.Gref
			for range 4 {
				i := f.nextRx % frontPages
				f.nextRx++
				q := netif.RxRequest{ID: uint16(f.nextRx), Gref: firstRef + frontPages + xen.Gref(i)}
				f.rx.Put(q)
				clear(f.page(q.Gref))
				next = append(next, q.Gref)
			}
			first := udp(n-42, 1)
			largest := packettest.Frame{
				Tags: []packettest.Tag{vlan}, IPv4: &packettest.IPv4{ID: 2}, UDP: &packettest.UDP{SrcPort: 2},
				Payload: packettest.Pattern(16*netif.PageSize + 3 - 46),
			}.Bytes()
			b.host.sendPlain(first)
			b.settle()
			b.host.sendPlain(largest)
			b.settle()
			got := f.received()
			if diff := cmp.Diff([]int{len(first), len(largest)}, lensOf(got)); diff != "" {
				t.Errorf("behind one of %d bytes (-want +got):\n%s", n, diff)
			} else if !bytes.Equal(got[1].Frame, largest) {
				t.Errorf("behind one of %d bytes: other bytes arrive", n)
			}
			for k, ref := range next {
				if slices.ContainsFunc(f.page(ref), func(b byte) bool { return b != 0 }) {
					t.Errorf("behind one of %d bytes: request %d, not published, was written to", n, k)
				}
			}
			b.disconnect()
		}
	})
}
