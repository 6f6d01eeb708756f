// SPDX-License-Identifier: Apache-2.0

package virtqueue

import "testing"

// TestSplitAllocatesNothing on the data path: what is allocated there is allocated for each
// packet.
func TestSplitAllocatesNothing(t *testing.T) {
	b := newBed(t)
	c := b.config(256, features{true, true, false})
	c.Inflight = make([]byte, SplitInflightSize(256))
	d, _, r := b.split(t, 256, features{true, true, false})
	q := b.attachSplit(t, c, r)
	batch := NewBatch(64)
	bufs := []Buffer{read(12), write(1500)}
	if n := testing.AllocsPerRun(50, func() {
		for range 32 {
			d.Add(bufs...)
			d.AddIndirect(b.at(bedTable), bedTable, bufs...)
		}
		d.Publish()
		if n, err := q.Take(batch, 32); n != 32 || err != nil {
			t.Fatal(n, err)
		}
		for batch.Len() < 64 {
			if n, err := q.TakeFor(batch, 1000, 4); n != 1 || err != nil {
				t.Fatal(n, err)
			}
		}
		q.Publish(batch)
		q.Arm()
		for range 64 {
			d.Poll()
		}
	}); n != 0 {
		t.Errorf("%.1f allocations for 64 chains", n)
	}
}

// BenchmarkSplit measures a batch of 64 chains: the device's part and the driver's.
func BenchmarkSplit(b *testing.B) {
	for name, indirect := range map[string]bool{"direct": false, "indirect": true} {
		b.Run(name, func(b *testing.B) {
			bed := newBed(b)
			d, q, _ := bed.split(b, 256, features{true, true, false})
			batch := NewBatch(64)
			bufs := []Buffer{read(12), read(1500)}
			b.ReportAllocs()
			for b.Loop() {
				for range 64 {
					if indirect {
						d.AddIndirect(bed.at(bedTable), bedTable, bufs...)
					} else {
						d.Add(bufs...)
					}
				}
				d.Publish()
				if n, err := q.Take(batch, 64); n != 64 || err != nil {
					b.Fatal(n, err)
				}
				q.Publish(batch)
				for range 64 {
					d.Poll()
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/64, "ns/chain")
		})
	}
}

func TestPackedAllocatesNothing(t *testing.T) {
	b := newBed(t)
	f := features{true, true, false}
	c := b.config(256, f)
	c.Base = newBase
	c.Inflight = make([]byte, PackedInflightSize(256))
	d, _, r := b.packed(t, 256, f)
	q := b.attachPacked(t, c, r)
	batch := NewBatch(64)
	bufs := []Buffer{read(12), write(1500)}
	if n := testing.AllocsPerRun(50, func() {
		for range 32 {
			d.Add(bufs...)
			d.AddIndirect(b.at(bedTable), bedTable, bufs...)
		}
		d.Publish()
		if n, err := q.Take(batch, 32); n != 32 || err != nil {
			t.Fatal(n, err)
		}
		for batch.Len() < 64 {
			if n, err := q.TakeFor(batch, 1000, 4); n != 1 || err != nil {
				t.Fatal(n, err)
			}
		}
		q.Publish(batch)
		q.Arm()
		for range 64 {
			d.Poll()
		}
	}); n != 0 {
		t.Errorf("%.1f allocations for 64 chains", n)
	}
}

// BenchmarkPacked is BenchmarkSplit for the other format.
func BenchmarkPacked(b *testing.B) {
	for name, indirect := range map[string]bool{"direct": false, "indirect": true} {
		b.Run(name, func(b *testing.B) {
			bed := newBed(b)
			d, q, _ := bed.packed(b, 256, features{true, true, false})
			batch := NewBatch(64)
			bufs := []Buffer{read(12), read(1500)}
			b.ReportAllocs()
			for b.Loop() {
				for range 64 {
					if indirect {
						d.AddIndirect(bed.at(bedTable), bedTable, bufs...)
					} else {
						d.Add(bufs...)
					}
				}
				d.Publish()
				if n, err := q.Take(batch, 64); n != 64 || err != nil {
					b.Fatal(n, err)
				}
				q.Publish(batch)
				for range 64 {
					d.Poll()
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/64, "ns/chain")
		})
	}
}
