// SPDX-License-Identifier: Apache-2.0

package virtqueue

import (
	"encoding/binary"
	"errors"
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestSplitRoundTrip moves chains of all shapes through a small ring, often enough for its
// indices to wrap.
func TestSplitRoundTrip(t *testing.T) {
	for _, f := range allFeatures {
		t.Run(f.String(), func(t *testing.T) {
			b := newBed(t)
			d, _, r := b.split(t, 8, f)
			start := uint16(math.MaxUint16 - 20)
			moveSplit(d, r, start)
			c := b.config(8, f)
			c.Base = uint32(start)
			q := b.attachSplit(t, c, r)
			batch := NewBatch(8)
			for round := range 40 {
				var want []uint16
				add := added(t)
				want = append(want, add(d.Add(read(10), write(20))))
				if f.indirect {
					want = append(want, add(d.AddIndirect(b.at(bedTable), bedTable, read(1), read(2), write(3))))
				}
				want = append(want, add(d.Add(Buffer{Addr: bedHole + 4, Len: 5, Write: true})))
				d.Publish()
				n, err := q.Take(batch, 8)
				if err != nil || n != len(want) {
					t.Fatalf("round %d: took %d, %v", round, n, err)
				}
				if got, want := q.Base(), uint32(start+uint16(round*n)); got != want {
					t.Fatalf("base %d before publish, want %d", got, want)
				}
				last := batch.Writable(n - 1)
				if len(last) != 1 || last[0].Mem != nil || last[0].Len != 5 || last[0].Addr != bedHole+4 || last[0].Tag != 7 {
					t.Fatalf("piece of the region that is not mapped: %+v", last)
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

// moveSplit makes a new ring start at index i.
func moveSplit(d *SplitDriver, r SplitRings, i uint16) {
	d.idx, d.shown, d.seen = i, i, i
	binary.LittleEndian.PutUint16(r.Avail[2:], i)
	binary.LittleEndian.PutUint16(r.Used[2:], i)
}

// TestSplitBadRings has a ring for each rule that a driver can break.
func TestSplitBadRings(t *testing.T) {
	const next, wr, ind = descNext, descWrite, descIndirect
	type d = [4]uint64 // address, length, flags, next
	table := func(descs ...d) func(b *bed) {
		return func(b *bed) {
			for i, d := range descs {
				PutDesc(b.at(bedTable), i, d[0], d[1]|d[2]<<32|d[3]<<48)
			}
		}
	}
	for _, tc := range []struct {
		name  string
		ahead uint16 // avail.idx
		head  uint16
		descs []d
		also  func(b *bed)
		plain bool // without indirect descriptors
		want  Reason
	}{
		{name: "nothing wrong", ahead: 1, descs: []d{{bedData, 1, next, 1}, {bedData, 1, wr, 0}}, want: ReasonNone},
		{name: "more available than descriptors", ahead: 5, want: ReasonAvailIndex},
		{name: "available index went back", ahead: math.MaxUint16, want: ReasonAvailIndex},
		{name: "head past the end", ahead: 1, head: 4, want: ReasonHead},
		{name: "next past the end", ahead: 1, descs: []d{{bedData, 1, next, 4}}, want: ReasonNext},
		{name: "chain that follows itself", ahead: 1, descs: []d{{bedData, 1, next, 0}}, want: ReasonLoop},
		{name: "loop of two", ahead: 1, descs: []d{{bedData, 1, next, 1}, {bedData, 1, next, 0}}, want: ReasonLoop},
		{name: "no bytes", ahead: 1, descs: []d{{bedData, 0, 0, 0}}, want: ReasonZeroLength},
		{name: "before the memory", ahead: 1, descs: []d{{bedBase - 1, 2, 0, 0}}, want: ReasonAddress},
		{name: "past the memory", ahead: 1, descs: []d{{bedBase + bedSize - 1, 2, 0, 0}}, want: ReasonAddress},
		{name: "address wraps", ahead: 1, descs: []d{{math.MaxUint64, 2, 0, 0}}, want: ReasonAddress},
		{name: "writable before readable", ahead: 1, descs: []d{{bedData, 1, wr | next, 1}, {bedData, 1, 0, 0}}, want: ReasonOrder},
		{name: "4 GiB", ahead: 1, descs: []d{{bedData, 8, next, 1}, {bedData, math.MaxUint32 - 7, 0, 0}}, want: ReasonTooLong},
		{name: "indirect without the feature", ahead: 1, plain: true, descs: []d{{bedTable, 16, ind, 0}}, want: ReasonIndirect},
		{name: "indirect with a next", ahead: 1, descs: []d{{bedTable, 16, ind | next, 1}}, want: ReasonIndirectNext},
		{name: "indirect of no bytes", ahead: 1, descs: []d{{bedTable, 0, ind, 0}}, want: ReasonIndirectLength},
		{name: "indirect of half a descriptor", ahead: 1, descs: []d{{bedTable, 24, ind, 0}}, want: ReasonIndirectLength},
		{name: "indirect too long", ahead: 1, descs: []d{{bedTable, 16 * (MaxPieces + 1), ind, 0}}, want: ReasonTooLong},
		{name: "indirect outside", ahead: 1, descs: []d{{bedBase + bedSize - 8, 16, ind, 0}}, want: ReasonAddress},
		{name: "indirect wraps", ahead: 1, descs: []d{{math.MaxUint64 - 7, 16, ind, 0}}, want: ReasonAddress},
		{name: "indirect not mapped", ahead: 1, descs: []d{{bedHole, 16, ind, 0}}, want: ReasonIndirectRead},
		{name: "indirect in indirect", ahead: 1, descs: []d{{bedTable, 16, ind, 0}},
			also: table(d{bedTable, 16, ind, 0}), want: ReasonIndirectNested},
		{name: "next past the table", ahead: 1, descs: []d{{bedTable, 32, ind, 0}},
			also: table(d{bedData, 1, next, 2}), want: ReasonNext},
		{name: "loop in the table", ahead: 1, descs: []d{{bedTable, 32, ind, 0}},
			also: table(d{bedData, 1, next, 1}, d{bedData, 1, next, 0}), want: ReasonLoop},
		{name: "zero length in the table", ahead: 1, descs: []d{{bedTable, 16, ind, 0}},
			also: table(d{bedData, 0, 0, 0}), want: ReasonZeroLength},
		{name: "order across the table", ahead: 1, descs: []d{{bedData, 1, next | wr, 1}, {bedTable, 16, ind, 0}},
			also: table(d{bedData, 1, 0, 0}), want: ReasonOrder},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBed(t)
			_, q, r := b.split(t, 4, features{indirect: !tc.plain})
			for i, d := range tc.descs {
				PutDesc(r.Desc, i, d[0], d[1]|d[2]<<32|d[3]<<48)
			}
			if tc.also != nil {
				tc.also(b)
			}
			binary.LittleEndian.PutUint16(r.Avail[4:], tc.head)
			binary.LittleEndian.PutUint16(r.Avail[2:], tc.ahead)
			batch := NewBatch(8)
			n, err := q.Take(batch, 8)
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

func TestSplitRefusesToAttach(t *testing.T) {
	b := newBed(t)
	all := b.at(bedRing)
	good := SplitRingsIn(all, 4)
	change := func(f func(r *SplitRings)) SplitRings {
		r := good
		f(&r)
		return r
	}
	c := b.config(4, features{eventIdx: true})
	sized := func(n int) Config { c := c; c.Size = n; return c }
	inflight := c
	inflight.Inflight = make([]byte, SplitInflightSize(4)-8)
	for _, tc := range []struct {
		name  string
		c     Config
		rings SplitRings
		want  Reason
	}{
		{"nothing wrong", c, good, ReasonNone},
		{"no descriptors", sized(0), good, ReasonSize},
		{"not a power of 2", sized(3), good, ReasonSize},
		{"too many", sized(2 * MaxSize), good, ReasonSize},
		{"descriptors end early", c, change(func(r *SplitRings) { r.Desc = r.Desc[:63] }), ReasonRing},
		{"descriptors not aligned", c, change(func(r *SplitRings) { r.Desc = all[8:72] }), ReasonRing},
		{"available ring ends early", c, change(func(r *SplitRings) { r.Avail = r.Avail[:13] }), ReasonRing},
		{"available ring not aligned", c, change(func(r *SplitRings) { r.Avail = all[65:129] }), ReasonRing},
		{"available ring aligned to 2", c, change(func(r *SplitRings) { r.Avail = all[66:80] }), ReasonNone},
		{"used ring ends early", c, change(func(r *SplitRings) { r.Used = r.Used[:37] }), ReasonRing},
		{"used ring not aligned", c, change(func(r *SplitRings) { r.Used = all[130:200] }), ReasonRing},
		{"no ring", c, SplitRings{}, ReasonRing},
		{"inflight region ends early", inflight, good, ReasonInflight},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := NewSplit(tc.c, tc.rings)
			if got := reasonOf(t, err); got != tc.want {
				t.Errorf("got %v, want %v", err, tc.want)
			}
		})
	}
}

// TestSplitBaseIsThatOfTheRing: a queue goes on where the used index stands, for any base that a
// front end sends.
func TestSplitBaseIsThatOfTheRing(t *testing.T) {
	b := newBed(t)
	d, q, r := b.split(t, 8, features{})
	batch := NewBatch(8)
	add := func(n int) {
		for range n {
			added(t)(d.Add(write(4)))
		}
		d.Publish()
	}
	add(5)
	if n, err := q.Take(batch, 3); n != 3 || err != nil {
		t.Fatalf("took %d, %v", n, err)
	}
	q.Publish(batch)
	if n, err := q.Take(batch, 1); n != 1 || err != nil { // it is not published
		t.Fatalf("took %d, %v", n, err)
	}
	for _, base := range []uint32{0, 3, 4, 7, 1 << 15, math.MaxUint32} {
		c := b.config(8, features{})
		c.Base = base
		next, err := NewSplit(c, r)
		if err != nil {
			t.Fatalf("base %d: %v", base, err)
		}
		if got := next.Base(); got != 3 {
			t.Errorf("base %d: begins at %d", base, got)
		}
		batch := NewBatch(8)
		if n, err := next.Take(batch, 8); n != 2 || err != nil {
			t.Errorf("base %d: took %d, %v", base, n, err)
		}
	}
}

// TestSplitEvents has each side ask for events, with both ways to do so.
func TestSplitEvents(t *testing.T) {
	for _, f := range []features{{}, {eventIdx: true}} {
		t.Run(f.String(), func(t *testing.T) {
			b := newBed(t)
			d, q, _ := b.split(t, 8, f)
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
			q.Arm()
			d.Arm()
			if kicks, calls := move(3); kicks == 0 || calls != 1 {
				t.Errorf("both armed: %d kicks, %d calls", kicks, calls)
			}
			q.Disarm()
			d.Disarm()
			if kicks, calls := move(3); kicks != 0 || calls != 0 {
				t.Errorf("both disarmed: %d kicks, %d calls", kicks, calls)
			}
			d.Arm()
			if _, calls := move(1); calls != 1 {
				t.Errorf("driver armed again: %d calls", calls)
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
				t.Errorf("kicks of a device that waits for three (-want +got):\n%s", diff)
			}
			if more, err := q.ArmFor(3); !more || err != nil {
				t.Errorf("three are there: %t, %v", more, err)
			}
			if more, err := q.ArmFor(4); more || err != nil || q.Available() != 3 {
				t.Errorf("four are not: %t, %v, %d available", more, err, q.Available())
			}
		})
	}
}

// TestSplitFirstPublishNotifies: the event index of a driver whose back end died before it
// called is behind.
func TestSplitFirstPublishNotifies(t *testing.T) {
	b := newBed(t)
	d, q, r := b.split(t, 8, features{eventIdx: true})
	batch := NewBatch(8)
	d.Arm()
	added(t)(d.Add(write(1)))
	added(t)(d.Add(write(1)))
	d.Publish()
	q.Take(batch, 1)
	q.Publish(batch) // and dies before it calls
	c := b.config(8, features{eventIdx: true})
	c.Base = q.Base()
	q = b.attachSplit(t, c, r)
	q.Take(batch, 1)
	if !q.Publish(batch) {
		t.Error("the driver is not notified")
	}
}

func TestSplitTakeFor(t *testing.T) {
	b := newBed(t)
	d, q, _ := b.split(t, 8, features{})
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
	if left := batch.Spread(0, 3, 301); left != 0 {
		t.Errorf("%d bytes left", left)
	}
	PutNumBuffers(batch.Writable(0)[0].Mem, 3)
	if got := binary.LittleEndian.Uint16(b.at(bedData)[NumBuffersOffset:]); got != 3 {
		t.Errorf("num_buffers %d", got)
	}
	q.Publish(batch)
	for _, want := range []uint32{150, 150, 1} {
		if _, n, ok := d.Poll(); !ok || n != want {
			t.Errorf("%d bytes, want %d", n, want)
		}
	}
	if left := (&Batch{chains: []Chain{{WriteLen: 3}}}).Spread(0, 1, 5); left != 2 {
		t.Errorf("%d bytes left of 5 in 3", left)
	}

	added(t)(d.Add(read(100)))
	d.Publish()
	n, err := q.TakeFor(batch, 10, 1)
	if n != 0 || batch.Len() != 0 || reasonOf(t, err) != ReasonNotWritable {
		t.Errorf("a chain without writable bytes: %d, %v", n, err)
	}
}

// TestSplitReturn: chains that are given back are taken again.
func TestSplitReturn(t *testing.T) {
	b := newBed(t)
	d, q, _ := b.split(t, 8, features{})
	batch := NewBatch(8)
	for range 5 {
		added(t)(d.Add(write(1)))
	}
	d.Publish()
	q.Take(batch, 4)
	id := batch.Chain(2).ID
	q.Return(batch, 2)
	if batch.Len() != 2 || q.Base() != 0 {
		t.Fatalf("%d chains, base %d", batch.Len(), q.Base())
	}
	if n, err := q.Take(batch, 8); n != 3 || err != nil || batch.Chain(2).ID != id {
		t.Errorf("took %d, %v", n, err)
	}
	q.Publish(batch)
	if q.Base() != 5 {
		t.Errorf("base %d", q.Base())
	}
}

// TestSplitPiecesAcrossRegions: a descriptor that spans two regions is two pieces.
func TestSplitPiecesAcrossRegions(t *testing.T) {
	b := newBed(t)
	d, q, _ := b.split(t, 4, features{indirect: true})
	end := uint64(bedBase + bedSize - 0x1000)
	added(t)(d.AddIndirect(b.at(end-8), end-8, Buffer{Addr: end - 3, Len: 5})) // the table does, too
	d.Publish()
	batch := NewBatch(1)
	if _, err := q.Take(batch, 1); err != nil {
		t.Fatal(err)
	}
	got := batch.Readable(0)
	if len(got) != 2 || got[0].Len != 3 || got[1].Len != 2 || got[1].Addr != end || got[1].Tag != 2 || len(got[1].Mem) != 2 {
		t.Errorf("pieces %+v", got)
	}
}

type fetcher struct {
	table []byte
	err   error
}

func (f fetcher) Fetch(dst []byte, r Region, addr uint64) error {
	if r.Tag != 7 {
		return errors.New("wrong region")
	}
	copy(dst, f.table[addr-bedHole:])
	return f.err
}

// TestSplitFetch reads an indirect table that is not mapped.
func TestSplitFetch(t *testing.T) {
	for _, fail := range []error{nil, errors.New("grant copy failed")} {
		b := newBed(t)
		d, _, r := b.split(t, 4, features{})
		f := fetcher{table: make([]byte, 0x2000), err: fail}
		c := b.config(4, features{indirect: true})
		c.Fetcher = f
		q := b.attachSplit(t, c, r)
		added(t)(d.AddIndirect(f.table[32:], bedHole+32, read(3), write(4)))
		d.Publish()
		batch := NewBatch(1)
		_, err := q.Take(batch, 1)
		if fail != nil {
			if !errors.Is(err, fail) || reasonOf(t, err) != ReasonIndirectRead {
				t.Errorf("error %v", err)
			}
		} else if err != nil || batch.Chain(0).ReadLen != 3 || batch.Chain(0).WriteLen != 4 {
			t.Errorf("%+v, %v", batch.Chain(0), err)
		}
	}
}

// TestSplitTooManyPieces: the pieces of a chain are bounded in a queue of any size.
func TestSplitTooManyPieces(t *testing.T) {
	b := newBed(t)
	_, q, r := b.split(t, 2048, features{})
	for i := range 2048 {
		PutDesc(r.Desc, i, bedData, 1|descNext<<32|uint64(i+1)%2048<<48)
	}
	binary.LittleEndian.PutUint16(r.Avail[2:], 1)
	if _, err := q.Take(NewBatch(1), 1); reasonOf(t, err) != ReasonTooLong {
		t.Errorf("error %v", err)
	}
}

// TestSplitLogs records the pages of data and of the ring.
func TestSplitLogs(t *testing.T) {
	b := newBed(t)
	d, q, _ := b.split(t, 4, features{eventIdx: true})
	mem := make([]byte, 64)
	l, err := NewLog(mem)
	if err != nil {
		t.Fatal(err)
	}
	q.SetLogging(Logging{Log: l, Ring: true, RingAddr: 0x2000})
	added(t)(d.Add(read(1), Buffer{Addr: bedData + 0xfff, Len: 0x2000, Write: true}))
	d.Publish()
	batch := NewBatch(1)
	q.Take(batch, 1)
	batch.Chain(0).Written = 2
	q.Publish(batch)
	want := make([]byte, 64)
	for _, page := range []int{2, bedData >> 12, bedData>>12 + 1} {
		want[page/8] |= 1 << (page % 8)
	}
	if diff := cmp.Diff(want, mem); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
	clear(mem)
	q.Arm()
	if mem[0] != 4 {
		t.Error("the event index is not in the log")
	}
}

// TestSplitInOrderBatch: one used entry stands for a batch that the device wrote nothing to.
func TestSplitInOrderBatch(t *testing.T) {
	b := newBed(t)
	d, q, r := b.split(t, 8, features{inOrder: true})
	batch := NewBatch(8)
	for range 3 {
		added(t)(d.Add(read(1)))
	}
	d.Publish()
	q.Take(batch, 8)
	last := batch.Chain(2).ID
	q.Publish(batch)
	if got := binary.LittleEndian.Uint32(r.Used[4:]); got != uint32(last) {
		t.Errorf("entry 0 has chain %d", got)
	}
	if [16]byte(r.Used[12:28]) != [16]byte{} {
		t.Error("there are more entries")
	}
	for range 3 {
		if _, n, ok := d.Poll(); !ok || n != 0 {
			t.Errorf("%d bytes, %t", n, ok)
		}
	}
	if _, _, ok := d.Poll(); ok {
		t.Error("more than three")
	}
}

// TestSplitSetMemory: chains in a batch keep the memory that they were taken with.
func TestSplitSetMemory(t *testing.T) {
	b := newBed(t)
	d, q, _ := b.split(t, 4, features{})
	added(t)(d.Add(read(1)))
	added(t)(d.Add(read(1)))
	d.Publish()
	batch := NewBatch(4)
	q.Take(batch, 1)
	other, err := NewMemory(Region{Addr: bedData, Size: 0x1000, Mem: make([]byte, 0x1000), Tag: 9})
	if err != nil {
		t.Fatal(err)
	}
	q.SetMemory(other)
	q.Take(batch, 1)
	if first, second := batch.Readable(0)[0].Tag, batch.Readable(1)[0].Tag; first != 0 || second != 9 {
		t.Errorf("tags %d and %d", first, second)
	}
	if q.Err() != nil {
		t.Error(q.Err())
	}
}

// TestSplitShortChains: a vnet header may be spread over chains, and over pieces of one
// byte.
func TestSplitShortChains(t *testing.T) {
	b := newBed(t)
	d, q, _ := b.split(t, 8, features{})
	added(t)(d.Add(write(1), write(1)))
	added(t)(d.Add(write(10)))
	d.Publish()
	batch := NewBatch(4)
	if n, err := q.TakeFor(batch, 12, 2); n != 2 || err != nil {
		t.Fatal(n, err)
	}
	if n := len(batch.Writable(0)); n != 2 || batch.Spread(0, 2, 12) != 0 || batch.Chain(1).Written != 10 {
		t.Errorf("%d pieces, chains %+v", n, batch.chains)
	}
}

// TestAvailableUpTo counts what is available without taking it.
func TestAvailableUpTo(t *testing.T) {
	d, q, _ := newBed(t).split(t, 8, features{})
	pd, p, _ := newBed(t).packed(t, 8, features{})
	for _, r := range []struct {
		name string
		add  func() (uint16, bool)
		push func() bool
		look func(n int) (int, error)
	}{
		{"split", func() (uint16, bool) { return d.Add(write(1)) }, d.Publish, q.AvailableUpTo},
		{"packed", func() (uint16, bool) { return pd.Add(write(1)) }, pd.Publish, p.AvailableUpTo},
	} {
		for want := range 5 {
			for _, most := range []int{0, want, 8} {
				if n, err := r.look(most); n != min(want, most) || err != nil {
					t.Errorf("%s: %d of %d, at most %d, %v", r.name, n, want, most, err)
				}
			}
			added(t)(r.add())
			r.push()
		}
	}
}
