// SPDX-License-Identifier: Apache-2.0

package iouring

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// peer is one way to move the same packets.
type peer struct {
	name string
	run  func()
}

// compare runs all peers in every round, each after prepare, so that other load on the
// machine affects them alike. It reports each peer's median time per packet in ns, and its
// rate relative to the first peer: above 1 is faster.
func compare(b *testing.B, packets int, prepare func(), peers []peer) {
	took := make([][]time.Duration, len(peers))
	for b.Loop() {
		for i, p := range peers {
			if prepare != nil {
				prepare()
			}
			start := time.Now()
			p.run()
			took[i] = append(took[i], time.Since(start))
		}
	}
	b.ReportMetric(0, "ns/op")
	for i, p := range peers {
		slices.Sort(took[i])
		mid := func(i int) float64 { return float64(took[i][len(took[i])/2]) }
		b.ReportMetric(mid(i)/float64(packets), p.name+"-ns/pkt")
		if i > 0 {
			b.ReportMetric(mid(0)/mid(i), p.name+"-ratio")
		}
	}
}

func BenchmarkTAPWrite(b *testing.B) {
	const batch = 64
	for _, size := range []int{64, 1514} {
		b.Run(fmt.Sprintf("%dB", size), func(b *testing.B) {
			d := newTAP(b)
			d.closePacketSocket(b)
			r := modes[0].ring(b, batch)
			mem := memory(b, batch*2048)
			base := address(mem)
			if err := r.RegisterBuffers(mem); err != nil {
				b.Fatal(err)
			}
			modes[0].set(b, r, 0, d.fd)
			for i := range batch {
				frame(mem[i*2048:], size, byte(i))
			}
			done := make([]Completion, batch)
			finish := func() {
				_, err := r.Submit()
				if n := r.Completions(done); err != nil || n != batch || int(done[batch-1].Res) != size {
					b.Fatal(err, n, done[batch-1])
				}
			}
			compare(b, batch, nil, []peer{
				{"write", func() {
					for i := range batch {
						if _, err := unix.Write(d.fd, mem[i*2048:i*2048+size]); err != nil {
							b.Fatal(err)
						}
					}
				}},
				{"rawwrite", func() {
					for i := range batch {
						if _, _, errno := unix.RawSyscall(unix.SYS_WRITE, uintptr(d.fd), base+uintptr(i)*2048, uintptr(size)); errno != 0 {
							b.Fatal(errno)
						}
					}
				}},
				{"ringfixed", func() {
					for i := range batch {
						r.WriteFixed(0, base+uintptr(i)*2048, uint32(size), 0, uint64(i))
					}
					finish()
				}},
				{"ringplain", func() {
					for i := range batch {
						r.Write(0, base+uintptr(i)*2048, uint32(size), uint64(i))
					}
					finish()
				}},
			})
		})
	}
}

// BenchmarkTAPRead empties a backlog, 16 reads at a time: with 128 packets and
// one batch that finds nothing, with 40 and a last batch that runs dry.
func BenchmarkTAPRead(b *testing.B) {
	const batch = 16
	for _, backlog := range []int{128, 40} {
		b.Run(fmt.Sprintf("backlog%d", backlog), func(b *testing.B) {
			d := newTAP(b)
			mem := memory(b, batch*2048)
			base := address(mem)
			done := make([]Completion, batch)
			ring := func(m mode) func() {
				r := m.ring(b, batch)
				if err := r.RegisterBuffers(mem); err != nil {
					b.Fatal(err)
				}
				m.set(b, r, 0, d.fd)
				return func() {
					for dry := false; !dry; {
						for i := range uint64(batch) {
							r.ReadFixed(0, base+uintptr(i)*2048, 2048, 0, i)
						}
						if _, err := r.Submit(); err != nil {
							b.Fatal(err)
						}
						for _, c := range done[:r.Completions(done)] {
							dry = dry || c.Res < 0
						}
					}
				}
			}
			compare(b, backlog, func() { d.fill(b, backlog, 64) }, []peer{
				{"rawread", func() {
					for {
						if _, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(d.fd), base, 2048); errno != 0 {
							return
						}
					}
				}},
				{"nowait", ring(modes[0])},
				{"takeback", ring(modes[1])},
			})
		})
	}
}

// BenchmarkQueue measures the user-space cost of a ring per packet.
func BenchmarkQueue(b *testing.B) {
	r, k := newMemoryRing(7, 0)
	done := make([]Completion, 64)
	for b.Loop() {
		for i := range uint64(64) {
			r.WriteFixed(0, 4096, 64, 0, i)
		}
		r.sqTail.Store(r.tail)
		r.head, k.sqHead = r.tail, r.tail
		k.cqTail.Store(k.cqTail.Load() + 64)
		r.Completions(done)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/64, "ns/pkt")
}
