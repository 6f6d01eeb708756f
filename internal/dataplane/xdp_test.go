// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/internal/steer"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/toeplitz"
)

// TestXDPHeadroom: every packet begins at the requested offset, in copies and in static
// grants, has an XDP extra with the offset, and takes just the slots that it needs: it is
// delivered with the last of them and not before. The later slots fill their pages.
func TestXDPHeadroom(t *testing.T) {
	const xdp = 256 // XDP_PACKET_HEADROOM of Linux
	tests := []struct {
		name     string
		headroom uint16
		bytes    int
		statuses []netif.Status
		starts   uint16 // 0: at headroom
		hash     bool
	}{
		{name: "a small packet", headroom: xdp, bytes: 60, statuses: []netif.Status{60}},
		{name: "a full page", headroom: xdp, bytes: 3840, statuses: []netif.Status{3840}},
		{name: "a byte more", headroom: xdp, bytes: 3841, statuses: []netif.Status{3840, 1}},
		{name: "two full pages", headroom: xdp, bytes: 3840 + 4096, statuses: []netif.Status{3840, 4096}},
		{name: "three pages", headroom: xdp, bytes: 9000, statuses: []netif.Status{3840, 4096, 1064}},
		{name: "three pages and a hash", headroom: xdp, bytes: 9000, statuses: []netif.Status{3840, 4096, 1064}, hash: true},
		{name: "an odd place", headroom: 1, bytes: 4096, statuses: []netif.Status{4095, 1}},
		{name: "the most", headroom: MaxXDPHeadroom, bytes: 1514, statuses: []netif.Status{rxHead, 1514 - rxHead}},
		{name: "more than there is", headroom: netif.MaxXDPHeadroom, bytes: 60, statuses: []netif.Status{60}, starts: MaxXDPHeadroom},
		{name: "none", bytes: 4096, statuses: []netif.Status{4096}},
	}
	grants := []struct {
		name string
		make func(*front)
	}{
		{"copies", func(*front) {}},
		{"static grants", (*front).allStatic},
		{"both", func(f *front) {
			for i := frontPages; i < 2*frontPages; i += 2 {
				f.makeStatic(0, refs(i, i+1)...)
			}
		}},
	}
	inModes(t, allModes, func(t *testing.T, m mode) {
		for _, g := range grants {
			for _, tt := range tests {
				what := g.name + ": " + tt.name
				cfg := full
				cfg.XDPHeadroom = tt.headroom
				if tt.hash {
					cfg.Hash = &steer.Config{Hasher: hasher(t), Types: toeplitz.AllTypes}
				}
				b := newBed(t, m, setup{cfg: cfg})
				f := b.front()
				g.make(f)
				want := delivery{
					Frame: udp(tt.bytes-42, 1), Statuses: tt.statuses, Slots: len(tt.statuses),
					Headroom: max(tt.headroom, tt.starts),
				}
				if tt.starts != 0 {
					want.Headroom = tt.starts
				}
				if tt.headroom != 0 {
					want.Slots++
				}
				if tt.hash {
					want.Slots++
				}
				b.host.sendPlain(want.Frame)
				f.post(want.Slots - 1)
				b.settle()
				if got := f.received(); len(got) != 0 {
					t.Errorf("%s: delivered with %d slots: %v", what, want.Slots-1, got)
				}
				f.post(1)
				b.settle()
				got := f.received()
				for i := range got {
					if tt.hash {
						wantHash(t, got[i], cfg.Hash)
					}
					got[i].Hash = nil
				}
				if diff := cmp.Diff([]delivery{want}, got); diff != "" {
					t.Errorf("%s (-want +got):\n%s", what, diff)
				}
				// With slots at hand, and behind large ones.
				f.post(256)
				frames := [][]byte{want.Frame, udp(9000, 2), want.Frame}
				b.host.sendPlain(frames...)
				b.settle()
				all := f.received()
				if diff := cmp.Diff(frames, framesOf(all), asBytes); diff != "" {
					t.Errorf("%s: frames (-want +got):\n%s", what, diff)
				}
				for _, d := range all {
					if d.Headroom != want.Headroom {
						t.Errorf("%s: %d bytes of headroom, want %d", what, d.Headroom, want.Headroom)
					}
				}
				if d := b.stats(Drop); len(d) > 0 {
					t.Errorf("%s: drops %v", what, d)
				}
				b.disconnect()
			}
		}
	})
}

// TestXDPHeadroomLeavesNothingToDo: a packet with headroom has a complete checksum, is
// segmented, and carries no offload flags, even for a guest that takes all offloads.
func TestXDPHeadroomLeavesNothingToDo(t *testing.T) {
	inModes(t, allModes[:2], func(t *testing.T, m mode) {
		for _, ipv := range []int{4, 6} {
			b := newBed(t, m, setup{cfg: full})
			f := b.front()
			f.post(256)
			b.queue().setXDPHeadroom(256)
			open, big := partial(tcp(ipv, 1400)), partial(tcp(ipv, 20000))
			b.host.send(hostFrame{vnetOf(open, 0), open.Bytes()}, hostFrame{vnetOf(big, 1400), big.Bytes()})
			b.settle()
			got := f.received()
			var frames []hostFrame
			for _, d := range got {
				if d.Flags != validated || d.GSO.Type != 0 || d.Headroom != 256 {
					t.Errorf("IPv%d: %v, %d bytes of headroom", ipv, d, d.Headroom)
				}
				frames = append(frames, hostFrame{Frame: d.Frame})
			}
			open.Partial = false
			if len(got) == 0 || !bytes.Equal(got[0].Frame, open.Bytes()) {
				t.Fatalf("IPv%d: got %v", ipv, got)
			}
			segments(t, "a packet to be segmented", frames[1:], big, 1400, 1)
			if n := b.stat(RxXDP); n != uint64(len(got)) || b.stat(RxXDPSplit) != 0 {
				t.Errorf("IPv%d: %d packets, counted %v", ipv, len(got), b.stats(Traffic))
			}
			b.disconnect()
		}
	})
}

// TestXDPHeadroomFromOneBatchToTheNext: packets that wait for slots while headroom is
// turned on and off reach the guest in order, each with the headroom at its delivery.
// Packets that the guest was to segment are then segmented by netbackd.
func TestXDPHeadroomFromOneBatchToTheNext(t *testing.T) {
	inModes(t, allModes[:2], func(t *testing.T, m mode) {
		b := newBed(t, m, setup{cfg: full})
		f := b.front()
		big := partial(tcp(4, 20000))
		b.host.sendPlain(udp(100, 1))
		b.host.send(hostFrame{vnetOf(big, 1400), big.Bytes()})
		b.host.sendPlain(udp(3900, 2), udp(3900, 3))
		b.settle()
		if b.queue().backlog.empty() {
			t.Fatal("nothing waits")
		}
		b.queue().setXDPHeadroom(256)
		f.post(18) // the first packet: 2, segments: 8 of 15
		b.settle()
		var cut []hostFrame
		for i, d := range f.received() {
			if d.Headroom != 256 || d.Slots != 2 {
				t.Errorf("packet %d: %v, %d bytes of headroom", i, d, d.Headroom)
			}
			if i > 0 {
				cut = append(cut, hostFrame{Frame: d.Frame})
			}
		}
		if len(cut) != 8 {
			t.Fatalf("%d segments", len(cut))
		}
		b.queue().setXDPHeadroom(0)
		f.post(7) // the other segments
		b.settle()
		for i, d := range f.received() {
			if d.Headroom != 0 || d.Slots != 1 {
				t.Errorf("segment %d: %v, %d bytes of headroom", len(cut), d, i)
			}
			cut = append(cut, hostFrame{Frame: d.Frame})
		}
		segments(t, "across the change", cut, big, 1400, 1)
		b.queue().setXDPHeadroom(256)
		f.post(2)
		b.settle()
		if got := f.received(); len(got) != 0 {
			t.Errorf("in two slots: %v", got)
		}
		b.queue().setXDPHeadroom(0) // now one is enough, and no other is posted
		b.settle()
		if diff := cmp.Diff([][]byte{udp(3900, 2), udp(3900, 3)}, framesOf(f.received()), asBytes); diff != "" {
			t.Errorf("with one slot each (-want +got):\n%s", diff)
		}
		if d := b.stats(Drop); len(d) > 0 {
			t.Errorf("drops %v", d)
		}
	})
}

// TestXDPHeadroomWithoutScatterGather: a guest that takes one slot per packet loses the
// packets that do not fit behind the headroom, and no others.
func TestXDPHeadroomWithoutScatterGather(t *testing.T) {
	cfg := full
	cfg.SG, cfg.Guest.GSOTCPv4, cfg.Guest.GSOTCPv6 = false, false, false
	inModes(t, allModes[:2], func(t *testing.T, m mode) {
		b := newBed(t, m, setup{cfg: cfg})
		f := b.front()
		fits, big := udp(3840-42, 1), udp(3841-42, 2)
		b.host.sendPlain(big) // waits
		b.settle()
		b.queue().setXDPHeadroom(256)
		f.post(8)
		b.host.sendPlain(fits, big)
		b.settle()
		if diff := cmp.Diff([][]byte{fits}, framesOf(f.received()), asBytes); diff != "" {
			t.Errorf("delivered (-want +got):\n%s", diff)
		}
		if n := b.stat(DropRxSize); n != 2 {
			t.Errorf("%v", b.stats(Drop))
		}
	})
}
