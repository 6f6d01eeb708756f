// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/virtqueue"
)

// badRings break each rule of a split ring. The ring has 256
// descriptors and is in use.
var badRings = []struct {
	name  string
	descs [][4]uint64 // address from the start of the buffers, length, flags, next
	ahead int         // chains that are made available; 0: 1
	head  int
	want  virtqueue.Reason
}{
	{name: "more available than descriptors", ahead: 300, want: virtqueue.ReasonAvailIndex},
	{name: "head past the end", head: 256, want: virtqueue.ReasonHead},
	{name: "next past the end", descs: [][4]uint64{{0, 1, 1, 256}}, want: virtqueue.ReasonNext},
	{name: "loop", descs: [][4]uint64{{0, 1, 1, 0}}, want: virtqueue.ReasonLoop},
	{name: "no bytes", descs: [][4]uint64{{0, 0, 0, 0}}, want: virtqueue.ReasonZeroLength},
	{name: "past the memory", descs: [][4]uint64{{vMemory - vData, 16, 0, 0}}, want: virtqueue.ReasonAddress},
	{name: "writable before readable", descs: [][4]uint64{{0, 1, 3, 1}, {0, 1, 0, 0}}, want: virtqueue.ReasonOrder},
	{name: "4 GiB", descs: [][4]uint64{{0, 16, 1, 1}, {0, 1<<32 - 8, 0, 0}}, want: virtqueue.ReasonTooLong},
	{name: "half a descriptor", descs: [][4]uint64{{0, 24, 4, 0}}, want: virtqueue.ReasonIndirectLength},
	{name: "indirect with a next", descs: [][4]uint64{{0, 16, 5, 1}}, want: virtqueue.ReasonIndirectNext},
}

// spoil breaks a rule of a split ring, with descriptors that are not in use.
func (r *vring) spoil(descs [][4]uint64, ahead, head int, base uint64) {
	const first = 100
	for i, d := range descs {
		next := d[3]
		if next < 256 {
			next += first
		}
		virtqueue.PutDesc(r.set.Desc.Mem, first+i, base+vData+d[0], d[1]|d[2]<<32|next<<48)
	}
	if head == 0 {
		head = first
	}
	avail := r.set.Avail.Mem
	idx := binary.LittleEndian.Uint16(avail[2:])
	for i := range min(max(ahead, 1), r.set.Size) {
		binary.LittleEndian.PutUint16(avail[4+2*(int(idx)+i)%r.set.Size:], uint16(head))
	}
	binary.LittleEndian.PutUint16(avail[2:], idx+uint16(max(ahead, 1)))
	r.wake()
}

// TestVirtHostileRings: a ring that breaks a rule is not served any more, its front end is
// told, and its owner. The other ring of the pair and the other pair go on, and the ring too
// when it was stopped and started again.
func TestVirtHostileRings(t *testing.T) {
	o := vOptions{features: vModern, queues: 2, indirect: false}
	inFormats(t, vnetModes, []vOptions{o}, func(t *testing.T, m mode, o vOptions) {
		b := newVbed(t, m, o)
		g, other := b.guests[0], b.guests[1]
		for _, tt := range badRings {
			g.post(50)
			g.send(vsent{frame: udp(100, 1)}, vsent{frame: udp(100, 1)})
			g.tx.d.Publish()
			g.tx.spoil(tt.descs, tt.ahead, tt.head, g.base)
			b.settle()
			if len(b.notices) != 1 || b.notices[0].Kind != Breach || b.notices[0].Queue != 0 || reasonOf(b.notices[0].Err) != tt.want {
				t.Errorf("%s: notices %+v", tt.name, b.notices)
			}
			if eventCount(g.tx.err) != 1 || eventCount(g.rx.err) != 0 {
				t.Errorf("%s: the front end is not told", tt.name)
			}
			if n := len(b.host.frames()); n != 2 && tt.want != virtqueue.ReasonAvailIndex {
				t.Errorf("%s: %d packets before the bad one", tt.name, n)
			}
			if s := b.queue().virt.tx.state(); reasonOf(s.Err) != tt.want {
				t.Errorf("%s: state %+v", tt.name, s)
			}
			other.post(3)
			other.send(vsent{frame: udp(100, 1)})
			b.host.sendPlain(udp(100, 1), udp(100, 1))
			b.settle()
			if n := len(g.received()) + len(other.received()); n != 2 || other.sent() != 1 {
				t.Errorf("%s: %d packets to the guest by the others", tt.name, n)
			}
			before := b.stat(Wakes)
			g.tx.wake()
			b.settle()
			if b.stat(Wakes) != before {
				t.Errorf("%s: a ring that is broken wakes the worker", tt.name)
			}
			b.notices = nil
			b.stop(&g.tx)
			g.renew(&g.tx)
			b.startRing(0, &g.tx)
			g.tx.wake()
			b.settle()
			b.host.drain()
		}
	})
}

// TestVirtHostileBuffers: rings for packets to the guest that cannot be used.
func TestVirtHostileBuffers(t *testing.T) {
	inFormats(t, vnetModes, []vOptions{{features: vModern}, {features: vModern, packed: true}}, func(t *testing.T, m mode, o vOptions) {
		b := newVbed(t, m, o)
		g := b.guest()
		// Nothing to write to.
		_, ok := g.rx.d.Add(virtqueue.Buffer{Addr: g.base + vPosted, Len: 2000})
		if !ok {
			t.Fatal("the ring is full")
		}
		g.rx.push()
		b.host.sendPlain(udp(100, 1))
		b.settle()
		if err := b.breach(); reasonOf(err) != virtqueue.ReasonNotWritable || eventCount(g.rx.err) != 1 {
			t.Errorf("breach %v", err)
		}
		g.send(vsent{frame: udp(100, 1)})
		b.settle()
		if g.sent() != 1 {
			t.Error("the other ring does not go on")
		}
	})
	// Buffers that are too small for a packet, one by one or all together.
	for _, o := range []vOptions{
		{features: vModern &^ virtMrgRxbuf, buffer: []int{200}},
		{features: vModern, buffer: []int{1}, size: 64},
		{features: vModern, buffer: []int{1, 1}, size: 64, packed: true},
	} {
		inFormats(t, vnetModes, []vOptions{o}, func(t *testing.T, m mode, o vOptions) {
			b := newVbed(t, m, o)
			g := b.guest()
			g.post(-1)
			b.host.sendPlain(udp(1000, 1), udp(10, 2))
			b.settle()
			if b.stat(DropRxSize) == 0 || b.breach() != nil {
				t.Errorf("drops %v, %v", b.stats(Drop), b.breach())
			}
		})
	}
}

// TestVirtTruncatedMemory: memory that goes away costs the device, and no other.
func TestVirtTruncatedMemory(t *testing.T) {
	inFormats(t, vnetModes, []vOptions{{features: vModern, queues: 2}, {features: vModern, packed: true, queues: 2}}, func(t *testing.T, m mode, o vOptions) {
		for _, size := range []int64{0, vData, vPosted} {
			b := newVbed(t, m, o)
			g, other := b.guests[0], b.guests[1]
			g.post(100)
			g.put(vsent{frame: udp(100, 1)})
			g.put(vsent{frame: udp(30000, 1)})
			g.tx.d.Publish()
			must(t, unix.Ftruncate(g.fd, size))
			g.tx.wake()
			for range 10 {
				b.host.sendPlain(udp(100, 1), udp(5000, 1))
			}
			b.settle()
			if len(b.notices) == 0 && size != vPosted {
				t.Errorf("%d bytes: no breach", size)
			}
			if n := len(b.notices); n > 1 || n == 1 && (b.notices[0].Kind != Breach || eventCount(g.tx.err) != 1 || eventCount(g.rx.err) != 1) {
				t.Errorf("%d bytes: notices %+v", size, b.notices)
			}
			for _, n := range b.notices {
				if !errors.Is(n.Err, ErrMemoryGone) {
					t.Errorf("%d bytes: the reason is %v", size, n.Err)
				}
			}
			b.host.drain()
			other.post(50)
			for range 20 {
				other.send(vsent{frame: udp(100, 1)}, vsent{frame: udp(9000, 1)})
				b.settle()
			}
			if n := other.sent(); n != 40 || b.host.drain() != 40 {
				t.Errorf("%d bytes: %d packets from the other guest", size, n)
			}
			b.disconnect()
		}
	})
}

// TestVirtRandomRings writes random bytes over rings and buffers while they are in use. The
// worker must survive, keep to its memory, and serve other guests.
func TestVirtRandomRings(t *testing.T) {
	rounds := 300
	if s, err := strconv.Atoi(os.Getenv(envSteps)); err == nil {
		rounds = s
	}
	formats := []vOptions{
		{features: vModern, queues: 2, indirect: true, size: 64},
		{features: vModern, queues: 2, packed: true, indirect: true, size: 64},
		{features: vModern, queues: 2, grants: true, size: 64},
	}
	inFormats(t, vnetModes, formats, func(t *testing.T, m mode, o vOptions) {
		b := newVbed(t, m, o)
		seed := uint64(time.Now().UnixNano())
		rnd := rand.New(rand.NewPCG(seed, 1))
		g, other := b.guests[0], b.guests[1]
		other.post(-1)
		for round := range rounds {
			g.post(8)
			for range 4 {
				g.put(vsent{vnet: vnetOf(partial(tcp(4, 3000)), 1000), frame: partial(tcp(4, 3000)).Bytes(), alone: true})
			}
			g.tx.d.Publish()
			for range 1 + rnd.IntN(8) {
				at := rnd.IntN(0x2000)
				switch rnd.IntN(4) {
				case 0:
					at += vRingAt
				case 1:
					at += vTables
				case 2:
					at += vData
				}
				for i := range 1 + rnd.IntN(16) {
					g.mem[at+i] = byte(rnd.Uint32() >> (rnd.IntN(4) * 8))
				}
			}
			g.tx.wake()
			g.rx.wake()
			b.host.sendPlain(udp(100, 1))
			b.pass(time.Millisecond)
			other.send(vsent{frame: udp(100, 1)})
			b.settle()
			if other.sent() != 1 {
				t.Fatalf("seed %d, round %d: the other guest is not served", seed, round)
			}
			b.host.drain()
			other.received()
			other.post(-1)
			for _, r := range []*vring{&g.rx, &g.tx} {
				if b.queue().virt.ring(r.set.Index).broken != nil || round%20 == 0 {
					b.stop(r)
					g.renew(r)
					b.startRing(0, r)
				}
			}
			for len(g.rx.bufs) > 1000 {
				clear(g.rx.bufs)
			}
		}
		if len(b.warned) > 0 {
			t.Errorf("seed %d: %v", seed, b.warned)
		}
	})
}
