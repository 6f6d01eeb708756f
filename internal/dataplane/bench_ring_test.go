// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"testing"

	"github.com/netbackd/netbackd/pkg/virtqueue"
)

// anyRing has the methods that a pass would use if it knew a ring as an interface.
type anyRing interface {
	TakeFor(b *virtqueue.Batch, n uint32, most int) (int, error)
	Publish(b *virtqueue.Batch) bool
}

// place takes a chain for each of n packets and publishes them, through a type parameter.
func place[R anyRing](r R, b *virtqueue.Batch, n int) {
	for range n {
		k, err := r.TakeFor(b, 76, 1)
		if k != 1 || err != nil {
			panic("no chain")
		}
		b.Spread(b.Len()-1, 1, 76)
	}
	r.Publish(b)
}

// BenchmarkRingChoice compares ways to choose the format of a ring for each packet: the two
// fields of virtRing, an interface, a type parameter, and no choice. The rest of the work is
// the same.
func BenchmarkRingChoice(b *testing.B) {
	const n = 128
	o := vOptions{features: vModern, size: n}
	for _, how := range []string{"fields", "interface", "type parameter", "none"} {
		b.Run(how, func(b *testing.B) {
			g := newVguest(b, o)
			r := virtRing{}
			must(b, r.attach(nil, g.rx.set, 0, g.memory))
			batch := virtqueue.NewBatch(n)
			var face anyRing = r.split
			for b.Loop() {
				b.StopTimer()
				takeAll(&g.rx)
				for i := range n {
					g.rx.d.Add(virtqueue.Buffer{Addr: g.base + vPosted + uint64(i)*2048, Len: 1536, Write: true})
				}
				g.rx.d.Publish()
				b.StartTimer()
				switch how {
				case "fields":
					for range n {
						_, _ = r.takeFor(batch, 76, 1)
						batch.Spread(batch.Len()-1, 1, 76)
					}
					r.publish(batch)
				case "interface":
					for range n {
						_, _ = face.TakeFor(batch, 76, 1)
						batch.Spread(batch.Len()-1, 1, 76)
					}
					face.Publish(batch)
				case "type parameter":
					place(r.split, batch, n)
				case "none":
					for range n {
						_, _ = r.split.TakeFor(batch, 76, 1)
						batch.Spread(batch.Len()-1, 1, 76)
					}
					r.split.Publish(batch)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/packet")
		})
	}
}
