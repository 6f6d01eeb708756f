// SPDX-License-Identifier: Apache-2.0

package diskio

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/disk"
	"github.com/netbackd/netbackd/internal/iouring"
)

// load is a pattern of operations.
type load struct {
	name   string
	cache  disk.Cache
	write  bool
	random bool
	size   int
	depth  int
	total  int // bytes of one round
}

// peer runs one round of a load.
type peer struct {
	name string
	run  func(offsets []uint64)
}

const benchFile = 256 << 20

// benchDisk opens a file whose blocks are allocated and written.
func benchDisk(b *testing.B, dir string, cache disk.Cache) *disk.Disk {
	b.Helper()
	path := filepath.Join(dir, "bench.img")
	if _, err := os.Stat(path); err != nil {
		f, err := os.Create(path)
		if err != nil {
			b.Fatal(err)
		}
		block := make([]byte, 1<<20)
		for i := range block {
			block[i] = byte(i*7 + i>>8)
		}
		for range benchFile >> 20 {
			if _, err := f.Write(block); err != nil {
				b.Fatal(err)
			}
		}
		if err := f.Sync(); err != nil {
			b.Fatal(err)
		}
		if err := f.Close(); err != nil {
			b.Fatal(err)
		}
	}
	d, err := disk.Open(context.Background(), disk.Options{Path: path, Cache: cache})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { d.Close() })
	return d
}

// compare runs the peers in turn on the same offsets, so that other load on the machine
// affects them alike, and reports each one's median time for an operation and its rate
// relative to the first: above 1 is faster.
func compare(b *testing.B, l load, peers []peer) {
	took, cpu := make([][]time.Duration, len(peers)), make([][]time.Duration, len(peers))
	count := l.total / l.size
	r := rand.New(rand.NewPCG(1, 2))
	offsets := make([]uint64, count)
	for b.Loop() {
		for i := range offsets {
			at := i % (benchFile / l.size)
			if l.random {
				at = r.IntN(benchFile / l.size)
			}
			offsets[i] = uint64(at * l.size)
		}
		for i, p := range peers {
			start, used := time.Now(), processorTime(b)
			p.run(offsets)
			took[i] = append(took[i], time.Since(start))
			cpu[i] = append(cpu[i], processorTime(b)-used)
		}
	}
	b.ReportMetric(0, "ns/op")
	for i, p := range peers {
		slices.Sort(took[i])
		slices.Sort(cpu[i])
		mid := func(i int) float64 { return float64(took[i][len(took[i])/2]) }
		b.ReportMetric(mid(i)/float64(count), p.name+"-ns/io")
		b.ReportMetric(float64(cpu[i][len(cpu[i])/2])/float64(count), p.name+"-cpu-ns/io")
		if i > 0 {
			b.ReportMetric(mid(0)/mid(i), p.name+"-ratio")
		}
	}
}

// processorTime returns the processor time of all threads, with those of the kernel that
// run operations of io_uring.
func processorTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// engineRound keeps the load's depth of operations under way.
func engineRound(b *testing.B, e *Engine, l load, base uintptr) func([]uint64) {
	var free []int
	done := make([]Completion, 64)
	for i := range l.depth {
		free = append(free, i)
	}
	return func(offsets []uint64) {
		next, left := 0, len(offsets)
		for left > 0 {
			for next < len(offsets) && len(free) > 0 {
				i := free[len(free)-1]
				free = free[:len(free)-1]
				addr := base + uintptr(i*l.size)
				if l.write {
					e.Write(offsets[next], addr, uint32(l.size), uint64(i))
				} else {
					e.Read(offsets[next], addr, uint32(l.size), uint64(i))
				}
				next++
			}
			if err := e.SubmitAndWait(1, -1); err != nil {
				b.Fatal(err)
			}
			for _, c := range done[:e.Completions(done)] {
				if int(c.Res) != l.size {
					b.Fatal(c)
				}
				free = append(free, int(c.User))
				left--
			}
		}
	}
}

// bareRound is the same with a ring alone.
func bareRound(b *testing.B, a *iouring.Async, l load, base uintptr) func([]uint64) {
	var free []int
	done := make([]Completion, 64)
	for i := range l.depth {
		free = append(free, i)
	}
	return func(offsets []uint64) {
		next, left := 0, len(offsets)
		for left > 0 {
			for next < len(offsets) && len(free) > 0 {
				i := free[len(free)-1]
				free = free[:len(free)-1]
				addr := base + uintptr(i*l.size)
				if l.write {
					a.Write(0, offsets[next], addr, uint32(l.size), uint64(i))
				} else {
					a.Read(0, offsets[next], addr, uint32(l.size), uint64(i))
				}
				next++
			}
			if _, err := a.SubmitAndWait(1, -1); err != nil {
				b.Fatal(err)
			}
			for _, c := range done[:a.Completions(done)] {
				if int(c.Res) != l.size {
					b.Fatal(c)
				}
				free = append(free, int(c.User))
				left--
			}
		}
	}
}

// callsRound makes one system call for each operation.
func callsRound(b *testing.B, fd int, l load, base uintptr) func([]uint64) {
	trap := uintptr(unix.SYS_PREAD64)
	if l.write {
		trap = unix.SYS_PWRITE64
	}
	return func(offsets []uint64) {
		for i, off := range offsets {
			addr := base + uintptr(i%l.depth*l.size)
			if n, _, errno := unix.Syscall6(trap, uintptr(fd), addr, uintptr(l.size), uintptr(off), 0, 0); int(n) != l.size {
				b.Fatal(n, errno)
			}
		}
	}
}

func BenchmarkEngine(b *testing.B) {
	dir := b.TempDir()
	var loads []load
	for _, cache := range []disk.Cache{disk.CacheWriteback, disk.CacheDirect} {
		for _, write := range []bool{false, true} {
			op := "read"
			if write {
				op = "write"
			}
			for _, l := range []load{
				{name: "4K-random-1", random: true, size: 4096, depth: 1, total: 1 << 20},
				{name: "4K-random-32", random: true, size: 4096, depth: 32, total: 4 << 20},
				{name: "128K-8", size: 128 << 10, depth: 8, total: 32 << 20},
				{name: "1M-4", size: 1 << 20, depth: 4, total: 64 << 20},
			} {
				l.name, l.cache, l.write = cache.String()+"/"+op+"/"+l.name, cache, write
				loads = append(loads, l)
			}
		}
	}
	for _, l := range loads {
		b.Run(l.name, func(b *testing.B) {
			runtime.LockOSThread()
			b.Cleanup(runtime.UnlockOSThread)
			d := benchDisk(b, dir, l.cache)
			mem := mapMemory(b, l.depth*l.size)
			clear(mem)
			base := address(mem)
			a, err := iouring.NewAsync(256)
			if err != nil {
				b.Skip(err)
			}
			b.Cleanup(func() { a.Close() })
			if err := a.RegisterFiles(1); err != nil {
				b.Fatal(err)
			}
			if err := a.SetFile(0, d.FD()); err != nil {
				b.Fatal(err)
			}
			engine := func(cfg Config, fixed, inline bool) func([]uint64) {
				e, err := New(cfg)
				if err != nil {
					b.Fatal(err)
				}
				if fixed {
					if err := e.RegisterBuffers(mem); err != nil {
						b.Fatal(err)
					}
				}
				if err := e.SetDisk(d); err != nil {
					b.Fatal(err)
				}
				e.inline.on = e.inline.on && inline
				b.Cleanup(func() { e.SetDisk(nil); e.Close() })
				return engineRound(b, e, l, base)
			}
			compare(b, l, []peer{
				{"bare", bareRound(b, a, l, base)},
				{"engine", engine(Config{}, false, true)},
				{"ring", engine(Config{}, false, false)},
				{"fixed", engine(Config{}, true, false)},
				{"threads", engine(Config{NoIOUring: true}, false, false)},
				{"calls", callsRound(b, d.FD(), l, base)},
			})
		})
	}
}
