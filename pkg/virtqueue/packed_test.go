// SPDX-License-Identifier: Apache-2.0

package virtqueue

import (
	"encoding/binary"
	"fmt"
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// newBase is the base of a packed ring that is new.
const newBase = 0x80008000

// packed makes a packed ring and both its ends.
func (b *bed) packed(t testing.TB, size int, f features) (*PackedDriver, *Packed, PackedRings) {
	t.Helper()
	r := PackedRingsIn(b.at(bedRing), size)
	d, err := NewPackedDriver(DriverConfig{Size: size, EventIdx: f.eventIdx, InOrder: f.inOrder}, r)
	if err != nil {
		t.Fatal(err)
	}
	c := b.config(size, f)
	c.Base = newBase
	return d, b.attachPacked(t, c, r), r
}

func (b *bed) attachPacked(t testing.TB, c Config, r PackedRings) *Packed {
	t.Helper()
	q, err := NewPacked(c, r)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

// TestPackedRoundTrip moves chains of all shapes through a ring whose size is no power of
// 2, and attaches again at each base.
func TestPackedRoundTrip(t *testing.T) {
	for _, f := range allFeatures {
		t.Run(f.String(), func(t *testing.T) {
			b := newBed(t)
			d, q, r := b.packed(t, 7, f)
			batch := NewBatch(8)
			for round := range 40 {
				var want []uint16
				add := added(t)
				want = append(want, add(d.Add(read(10), write(20), write(5))))
				if f.indirect {
					want = append(want, add(d.AddIndirect(b.at(bedTable), bedTable, read(1), read(2), write(3))))
				}
				want = append(want, add(d.Add(Buffer{Addr: bedHole + 4, Len: 5, Write: true})))
				d.Publish()
				c := b.config(7, f)
				c.Base = q.Base()
				q = b.attachPacked(t, c, r)
				n, err := q.Take(batch, 8)
				if err != nil || n != len(want) {
					t.Fatalf("round %d: took %d, %v", round, n, err)
				}
				if got := q.Base(); got != c.Base {
					t.Fatalf("base %#x before publish, want %#x", got, c.Base)
				}
				if c := batch.Chain(0); c.ReadLen != 10 || c.WriteLen != 25 || len(batch.Writable(0)) != 2 {
					t.Fatalf("chain %+v", c)
				}
				for i := range n {
					batch.Chain(i).Written = uint32(i + 1)
				}
				q.Publish(batch)
				for i, id := range want {
					got, written, ok := d.Poll()
					if !ok || got != id || written != uint32(i+1) {
						t.Fatalf("round %d: got %d, %d bytes, %t; want %d", round, got, written, ok, id)
					}
				}
				if _, _, ok := d.Poll(); ok {
					t.Fatal("more than was published")
				}
			}
		})
	}
}

// TestPackedBadRings has a ring for each rule that a driver can break.
func TestPackedBadRings(t *testing.T) {
	const next, wr, ind = descNext, descWrite, descIndirect
	type d = [3]uint64 // address, length, flags
	table := func(descs ...d) func(b *bed) {
		return func(b *bed) {
			for i, d := range descs {
				PutDesc(b.at(bedTable), i, d[0], d[1]|d[2]<<48)
			}
		}
	}
	for _, tc := range []struct {
		name  string
		descs []d
		also  func(b *bed)
		plain bool // without indirect descriptors
		want  Reason
	}{
		{name: "nothing wrong", descs: []d{{bedData, 1, next}, {bedData, 1, wr}}, want: ReasonNone},
		{name: "flags of table entries", descs: []d{{bedTable, 32, ind | wr}},
			also: table(d{bedData, 1, 0}, d{bedData, 1, wr | next}), want: ReasonNone},
		{name: "chain without end", descs: []d{{bedData, 1, next}, {bedData, 1, next}, {bedData, 1, next}, {bedData, 1, next}}, want: ReasonLoop},
		{name: "no bytes", descs: []d{{bedData, 0, 0}}, want: ReasonZeroLength},
		{name: "past the memory", descs: []d{{bedBase + bedSize - 1, 2, 0}}, want: ReasonAddress},
		{name: "address wraps", descs: []d{{math.MaxUint64, 2, 0}}, want: ReasonAddress},
		{name: "writable before readable", descs: []d{{bedData, 1, wr | next}, {bedData, 1, 0}}, want: ReasonOrder},
		{name: "4 GiB", descs: []d{{bedData, 8, next}, {bedData, math.MaxUint32 - 7, 0}}, want: ReasonTooLong},
		{name: "indirect without the feature", plain: true, descs: []d{{bedTable, 16, ind}}, want: ReasonIndirect},
		{name: "indirect with a next", descs: []d{{bedTable, 16, ind | next}}, want: ReasonIndirectNext},
		{name: "indirect of no bytes", descs: []d{{bedTable, 0, ind}}, want: ReasonIndirectLength},
		{name: "indirect of half a descriptor", descs: []d{{bedTable, 24, ind}}, want: ReasonIndirectLength},
		{name: "indirect outside", descs: []d{{bedBase + bedSize - 8, 16, ind}}, want: ReasonAddress},
		{name: "indirect not mapped", descs: []d{{bedHole, 16, ind}}, want: ReasonIndirectRead},
		{name: "indirect in indirect", descs: []d{{bedTable, 16, ind}}, also: table(d{bedTable, 16, ind}), want: ReasonIndirectNested},
		{name: "zero length in the table", descs: []d{{bedTable, 32, ind}}, also: table(d{bedData, 1, 0}), want: ReasonZeroLength},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBed(t)
			_, q, r := b.packed(t, 4, features{indirect: !tc.plain})
			for i, d := range tc.descs {
				PutDesc(r.Desc, i, d[0], d[1]|(d[2]|descAvail)<<48)
			}
			if tc.also != nil {
				tc.also(b)
			}
			batch := NewBatch(8)
			n, err := q.Take(batch, 1)
			if got := reasonOf(t, err); got != tc.want {
				t.Fatalf("took %d, %v; want %v", n, err, tc.want)
			}
			if tc.want == ReasonNone {
				return
			}
			if n != 0 || batch.Len() != 0 || len(batch.pieces) != 0 {
				t.Errorf("%d chains and %d pieces of a bad ring", n, len(batch.pieces))
			}
			if _, again := q.Take(batch, 1); again != err {
				t.Errorf("the next call returns %v", again)
			}
			if _, again := q.Arm(); again != err || q.Err() != err {
				t.Errorf("Arm returns %v, Err %v", again, q.Err())
			}
		})
	}
}

// TestPackedOverrun: a driver that makes slots available which are in flight.
func TestPackedOverrun(t *testing.T) {
	b := newBed(t)
	d, q, r := b.packed(t, 4, features{})
	for range 4 {
		added(t)(d.Add(write(1)))
	}
	d.Publish()
	batch := NewBatch(8)
	q.Take(batch, 8)
	PutDesc(r.Desc, 0, bedData, 1|descUsed<<48) // of the next lap
	if n, err := q.Take(batch, 8); n != 0 || reasonOf(t, err) != ReasonAvailIndex {
		t.Errorf("took %d, %v", n, err)
	}
	if batch.Len() != 4 {
		t.Errorf("%d chains", batch.Len())
	}
}

func TestPackedRefusesToAttach(t *testing.T) {
	b := newBed(t)
	all := b.at(bedRing)
	good := PackedRingsIn(all, 4)
	c := b.config(4, features{})
	with := func(size int, base uint32) Config { c := c; c.Size, c.Base = size, base; return c }
	short := with(4, newBase)
	short.Inflight = make([]byte, PackedInflightSize(4)-8)
	for _, tc := range []struct {
		name  string
		c     Config
		rings PackedRings
		want  Reason
	}{
		{"a new ring", with(4, newBase), good, ReasonNone},
		{"a base of 16 bits", with(4, 0x8000), good, ReasonNone},
		{"chains in flight across the end", with(4, 0x00038001), good, ReasonNone},
		{"all in flight", with(4, 0x80010001), good, ReasonNone},
		{"no descriptors", with(0, newBase), good, ReasonSize},
		{"too many", with(MaxSize+1, newBase), good, ReasonSize},
		{"descriptors end early", c, PackedRings{all[:63], good.Driver, good.Device}, ReasonRing},
		{"descriptors not aligned", c, PackedRings{all[8:72], good.Driver, good.Device}, ReasonRing},
		{"driver events not aligned", c, PackedRings{good.Desc, all[2:6], good.Device}, ReasonRing},
		{"device events end early", c, PackedRings{good.Desc, good.Driver, all[:3]}, ReasonRing},
		{"next slot is past the end", with(4, 0x80008004), good, ReasonBase},
		{"used slot is past the end", with(4, 0x80048000), good, ReasonBase},
		{"used slot is ahead", with(4, 0x80038002), good, ReasonBase},
		{"more than a ring between them", with(4, 0x80000001), good, ReasonBase},
		{"inflight region ends early", short, good, ReasonInflight},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := NewPacked(tc.c, tc.rings)
			if got := reasonOf(t, err); got != tc.want {
				t.Errorf("got %v, want %v", err, tc.want)
			}
		})
	}
}

// TestPackedEvents has each side ask for events, at each position of the ring.
func TestPackedEvents(t *testing.T) {
	for _, f := range []features{{}, {eventIdx: true}} {
		t.Run(f.String(), func(t *testing.T) {
			b := newBed(t)
			d, q, _ := b.packed(t, 5, f)
			batch := NewBatch(8)
			move := func(n int) (kicks, calls int) {
				for range n {
					added(t)(d.Add(write(4)))
					if d.Publish() {
						kicks++
					}
				}
				if got, err := q.Take(batch, 8); err != nil || got != n {
					t.Fatalf("took %d, %v", got, err)
				}
				if q.Publish(batch) {
					calls++
				}
				for range n {
					d.Poll()
				}
				return kicks, calls
			}
			move(1)
			for round := range 12 {
				q.Arm()
				d.Arm()
				if kicks, calls := move(3); kicks == 0 || calls != 1 {
					t.Errorf("round %d, both armed: %d kicks, %d calls", round, kicks, calls)
				}
				if f.eventIdx {
					if kicks, calls := move(1); kicks != 0 || calls != 0 {
						t.Errorf("round %d, past the events: %d kicks, %d calls", round, kicks, calls)
					}
				}
				q.Disarm()
				d.Disarm()
				if kicks, calls := move(3); kicks != 0 || calls != 0 {
					t.Errorf("round %d, both disarmed: %d kicks, %d calls", round, kicks, calls)
				}
				if more, err := q.ArmFor(3); more || err != nil {
					t.Fatalf("more: %t, %v", more, err)
				}
				kick := make([]bool, 3)
				for i := range kick {
					added(t)(d.Add(write(4)))
					kick[i] = d.Publish()
				}
				want := []bool{true, true, true}
				if f.eventIdx {
					want = []bool{false, false, true}
				}
				if diff := cmp.Diff(want, kick); diff != "" {
					t.Errorf("round %d: kicks of a device that waits for three (-want +got):\n%s", round, diff)
				}
				if more, err := q.ArmFor(3); !more || err != nil {
					t.Errorf("three are there: %t, %v", more, err)
				}
				if more, err := q.ArmFor(4); more || err != nil || q.Available() != 3 {
					t.Errorf("four are not: %t, %v, %d available", more, err, q.Available())
				}
				q.Take(batch, 8)
				q.Publish(batch)
				for range 3 {
					d.Poll()
				}
			}
		})
	}
}

func TestPackedTakeForAndReturn(t *testing.T) {
	b := newBed(t)
	d, q, _ := b.packed(t, 8, features{})
	batch := NewBatch(8)
	for range 3 {
		added(t)(d.Add(write(100), write(50)))
	}
	d.Publish()
	for _, tc := range []struct {
		bytes uint32
		max   int
		want  int
		err   error
	}{
		{451, 8, 0, nil}, {300, 1, 0, ErrMax}, {301, 3, 3, nil},
	} {
		n, err := q.TakeFor(batch, tc.bytes, tc.max)
		if n != tc.want || err != tc.err || batch.Len() != tc.want {
			t.Fatalf("TakeFor(%d, %d) = %d, %v with %d chains", tc.bytes, tc.max, n, err, batch.Len())
		}
	}
	q.Return(batch, 1)
	if q.Base() != newBase || q.Available() != 4 {
		t.Errorf("base %#x, %d available", q.Base(), q.Available())
	}
	q.Take(batch, 8)
	q.Publish(batch)
	if q.Base() != 0x80068006 {
		t.Errorf("base %#x", q.Base())
	}
	for range 3 {
		d.Poll()
	}
	added(t)(d.Add(read(100)))
	d.Publish()
	n, err := q.TakeFor(batch, 10, 1)
	if n != 0 || batch.Len() != 0 || reasonOf(t, err) != ReasonNotWritable {
		t.Errorf("a chain without writable bytes: %d, %v", n, err)
	}
}

// TestPackedLogs records the pages of data, of the ring and of the event suppression.
func TestPackedLogs(t *testing.T) {
	b := newBed(t)
	d, q, _ := b.packed(t, 4, features{})
	mem := make([]byte, 64)
	l, err := NewLog(mem)
	if err != nil {
		t.Fatal(err)
	}
	q.SetLogging(Logging{Log: l, Ring: true, RingAddr: 0x2000, EventAddr: 0x3000})
	added(t)(d.Add(write(3)))
	d.Publish()
	batch := NewBatch(1)
	q.Take(batch, 1)
	batch.Chain(0).Written = 2
	q.Publish(batch)
	if mem[0] != 4 || mem[bedData>>15] != 1<<(bedData>>12%8) {
		t.Errorf("log %x", mem)
	}
	q.Arm()
	if mem[0] != 12 {
		t.Error("the event suppression is not in the log")
	}
}

// TestPackedInOrderBatch: one used descriptor stands for a batch.
func TestPackedInOrderBatch(t *testing.T) {
	b := newBed(t)
	d, q, r := b.packed(t, 8, features{inOrder: true})
	batch := NewBatch(8)
	for range 3 {
		added(t)(d.Add(read(1), read(2)))
	}
	d.Publish()
	q.Take(batch, 8)
	last := batch.Chain(2).ID
	before := append([]byte(nil), r.Desc[16:]...)
	q.Publish(batch)
	if got := binary.LittleEndian.Uint16(r.Desc[12:]); got != last {
		t.Errorf("descriptor 0 has id %d", got)
	}
	if diff := cmp.Diff(before, r.Desc[16:]); diff != "" {
		t.Error("there are more used descriptors")
	}
	for range 3 {
		if _, n, ok := d.Poll(); !ok || n != 0 {
			t.Errorf("%d bytes, %t", n, ok)
		}
	}
	if q.Base() != 0x80068006 {
		t.Errorf("base %#x", q.Base())
	}
}

// TestPackedKilledBetweenSteps kills a back end at each step of publishing a batch. Its
// successor takes exactly the chains that the driver did not get back, in order.
func TestPackedKilledBetweenSteps(t *testing.T) {
	for steps := range 7 {
		for _, n := range []int{2, 4} { // 4 chains are all slots of the ring
			t.Run(fmt.Sprint(steps, " steps done, chains: ", n), func(t *testing.T) { testPackedKilled(t, steps, n) })
		}
	}
}

func testPackedKilled(t *testing.T, steps, n int) {
	b := newBed(t)
	d, _, r := b.packed(t, 7, features{})
	c := b.config(7, features{indirect: true})
	c.Base = newBase
	c.Inflight = make([]byte, PackedInflightSize(7))
	q := b.attachPacked(t, c, r)
	batch := NewBatch(8)
	for range 2 { // so that the next chains wrap
		added(t)(d.Add(write(1)))
	}
	d.Publish()
	q.Take(batch, 8)
	q.Publish(batch)
	d.Poll()
	d.Poll()
	var order []uint16
	for i := range 3 {
		order = append(order, added(t)(d.Add(read(uint32(1+i)), write(1))))
	}
	order = append(order, added(t)(d.AddIndirect(b.at(bedTable), bedTable, read(4), write(1))))
	d.Publish()
	q.Take(batch, n)
	publishSteps(q, batch, steps)

	q = b.attachPacked(t, c, r)
	done := 0
	if steps >= 4 {
		done = n
	}
	for i := range done {
		if id, _, ok := d.Poll(); !ok || id != order[i] {
			t.Fatalf("chain %d, %t", id, ok)
		}
	}
	if _, _, ok := d.Poll(); ok {
		t.Fatal("a chain that was not published")
	}
	var got []uint16
	next := NewBatch(8)
	q.Take(next, 8)
	q.Return(next, min(1, next.Len()))
	q.Take(next, 8)
	for i := range next.Len() {
		got = append(got, next.Chain(i).ID)
	}
	if diff := cmp.Diff(order[done:], got, cmpopts.EquateEmpty()); diff != "" {
		t.Fatalf("chains of the successor (-want +got):\n%s", diff)
	}
	q.Publish(next)
	for _, want := range order[done:] {
		if id, _, ok := d.Poll(); !ok || id != want {
			t.Errorf("chain %d, %t; want %d", id, ok, want)
		}
	}
	for range 10 { // and the ring goes on
		id := added(t)(d.Add(read(1), write(2)))
		d.Publish()
		if n, err := q.Take(next, 8); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		q.Return(next, 0)
		q.Take(next, 8)
		q.Publish(next)
		if got, _, ok := d.Poll(); !ok || got != id {
			t.Fatalf("chain %d, %t", got, ok)
		}
	}
}

// publishSteps does the first steps of Publish. The fourth one shows the batch to the
// driver.
func publishSteps(q *Packed, batch *Batch, steps int) {
	old := q.used
	var first uint64
	for step, do := range []func(){
		func() { first = q.putUsed(batch) },
		func() { linkHalf(q.inflight, batch.chains) },
		func() { oldUsed := q.inflight.used; q.inflight.used = q.used; q.inflight.putUsed(oldUsed) },
		func() { q.desc[old.slot][1] = first },
		func() { q.inflight.putState(batch.chains[0].entry, 0) },
		func() { q.inflight.publish(batch.chains) },
	} {
		if step < steps {
			do()
		}
	}
}

// linkHalf is the first half of link.
func linkHalf(f *packedInflight, chains []Chain) {
	old := f.free
	for i := range chains {
		f.unlink(chains[i].entry)
	}
	f.putHeads(old)
}

// TestPackedInflightOfOverwrittenChain: a chain is replayed from the region when the driver
// has used its slots for others.
func TestPackedInflightOfOverwrittenChain(t *testing.T) {
	b := newBed(t)
	d, _, r := b.packed(t, 4, features{})
	c := b.config(4, features{})
	c.Base = newBase
	c.Inflight = make([]byte, PackedInflightSize(4))
	q := b.attachPacked(t, c, r)
	slow := added(t)(d.Add(read(3), write(9)))
	added(t)(d.Add(read(1), write(1)))
	d.Publish()
	first, second := NewBatch(4), NewBatch(4)
	q.Take(first, 1)
	q.Take(second, 1)
	q.Publish(second) // out of order: into the slots of the first
	d.Poll()
	added(t)(d.Add(read(1)))
	added(t)(d.Add(read(1)))
	d.Publish()
	q.Take(second, 2)
	q.Publish(second)
	q = b.attachPacked(t, c, r)
	if n, err := q.Take(first, 1); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	last := first.Len() - 1
	if c := first.Chain(last); c.ID != slow || c.ReadLen != 3 || c.WriteLen != 9 {
		t.Errorf("chain %+v", c)
	}
}

// TestPackedInflightRefused: a front end can write anything into the region.
func TestPackedInflightRefused(t *testing.T) {
	good := func() []uint64 {
		w := make([]uint64, hdrWords+4*entWords)
		w[hdrHeads] = 1 | 4<<16 | 1<<32 | 1<<48 // entry 0 is in flight
		w[hdrUsed] = 1<<32 | 1<<40
		w[hdrWords] = 1 | 4<<16 | 0<<32 | 1<<48
		w[hdrWords+2], w[hdrWords+3] = 7|1<<32, bedData
		for i := uint64(1); i < 4; i++ {
			w[hdrWords+entWords*i] = (i + 1) << 16
		}
		return w
	}
	for _, tc := range []struct {
		name   string
		change func(w []uint64)
		want   Reason
	}{
		{"nothing wrong", func([]uint64) {}, ReasonNone},
		{"version of the future", func(w []uint64) { w[hdrHeads]++ }, ReasonInflight},
		{"another queue", func(w []uint64) { w[hdrHeads] += 1 << 16 }, ReasonInflight},
		{"used slot past the end", func(w []uint64) { w[hdrUsed] |= 4 | 4<<16 }, ReasonInflight},
		{"free list is a loop", func(w []uint64) { w[hdrWords+3*entWords] = 1 << 16 }, ReasonInflight},
		{"chain of no entries", func(w []uint64) { w[hdrWords] &= 1<<48 - 1 }, ReasonInflight},
		{"chain leaves the region", func(w []uint64) { w[hdrWords] = 1 | 4<<16 | 2<<48 }, ReasonInflight},
		{"chain is a loop", func(w []uint64) { w[hdrWords] = 1 | 2<<48 }, ReasonInflight},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBed(t)
			_, _, r := b.packed(t, 4, features{})
			c := b.config(4, features{})
			c.Base = newBase
			c.Inflight = make([]byte, PackedInflightSize(4))
			w := good()
			tc.change(w)
			for i, v := range w {
				binary.LittleEndian.PutUint64(c.Inflight[8*i:], v)
			}
			q, err := NewPacked(c, r)
			if got := reasonOf(t, err); got != tc.want {
				t.Fatalf("got %v, want %v", err, tc.want)
			}
			if err == nil {
				batch := NewBatch(1)
				if n, err := q.Take(batch, 1); n != 1 || err != nil || batch.Chain(0).ID != 7 {
					t.Errorf("took %d, %v", n, err)
				}
			}
		})
	}
}
