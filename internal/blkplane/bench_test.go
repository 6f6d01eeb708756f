// SPDX-License-Identifier: Apache-2.0

package blkplane

import (
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/disk"
	"github.com/netbackd/netbackd/internal/diskio"
	"github.com/netbackd/netbackd/internal/heldwait"
	"github.com/netbackd/netbackd/pkg/blkif"
	"github.com/netbackd/netbackd/pkg/gntdev"
)

// envBench enables the measurements: they take a minute, and their figures mean nothing
// on a machine that has other work.
const envBench = "BLKPLANE_BENCH"

// benchBytes is the size of the file, and of the part of it that is read or written.
const benchBytes = 256 << 20

// workload is one way to use a disk.
type workload struct {
	name   string
	op     blkif.Op
	bytes  int // of a request
	depth  int
	random bool
	count  int // requests of a round
}

// next returns the offset of request i.
func (l *workload) next(r *rand.Rand, i int) int64 {
	n := benchBytes / l.bytes
	if l.random {
		return int64(r.IntN(n)) * int64(l.bytes)
	}
	return int64(i%n) * int64(l.bytes)
}

// bare runs requests straight on io_uring.
type bare struct {
	engine *diskio.Engine
	mem    []byte
	base   uintptr
}

func newBare(tb testing.TB, d *disk.Disk) *bare {
	e, err := diskio.New(diskio.Config{})
	if err != nil {
		tb.Fatal(err)
	}
	if err := e.SetDisk(d); err != nil {
		tb.Fatal(err)
	}
	a, err := gntdev.NewPopulatedArena(32 << 20)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = e.Close(); _ = a.Close() })
	return &bare{engine: e, mem: a.Bytes(), base: a.Addr(0)}
}

func (p *bare) run(tb testing.TB, l *workload) {
	r := rand.New(rand.NewPCG(1, 2))
	var done [256]diskio.Completion
	begin := func(slot uint64, i int) {
		addr := p.base + uintptr(slot)*uintptr(l.bytes)
		if l.op == blkif.OpRead {
			p.engine.Read(uint64(l.next(r, i)), addr, uint32(l.bytes), slot)
		} else {
			p.engine.Write(uint64(l.next(r, i)), addr, uint32(l.bytes), slot)
		}
	}
	begun, ended := 0, 0
	for ; begun < l.depth; begun++ {
		begin(uint64(begun), begun)
	}
	for ended < l.count {
		if err := p.engine.SubmitAndWait(1, -1); err != nil {
			tb.Fatal(err)
		}
		for _, c := range done[:p.engine.Completions(done[:])] {
			if int(c.Res) != l.bytes {
				tb.Fatalf("completion %+v", c)
			}
			ended++
			if begun < l.count {
				begin(c.User, begun)
				begun++
			}
		}
	}
}

// benchFront runs requests over a ring.
type benchFront struct{ *bed }

func newBenchFront(tb testing.TB, d *disk.Disk, config func(*Config), direct bool) *benchFront {
	b := newBed(tb, bedConfig{order: 3, pages: 1 << 13, disk: d, noJournal: false, config: func(c *Config) {
		config(c)
		if direct {
			c.MaxSegments = 0
		}
	}})
	b.connect()
	return &benchFront{b}
}

// run runs a load. Each request has pages of its own, by its id. Without indirect segments a
// request of the load becomes several, as with Linux's frontend.
func (f *benchFront) run(l *workload) {
	r := rand.New(rand.NewPCG(1, 2))
	limit := l.bytes
	limit = min(limit, max(f.cfg.MaxSegments, blkif.MaxDirect)*blkif.PageSize)
	parts := (l.bytes + limit - 1) / limit
	pages := l.bytes / blkif.PageSize
	depth := min(l.depth, int(f.front.Size())/parts)
	made := make([]blkif.Request, depth*parts)
	for i := range made {
		slot, part := i/parts, i%parts
		first := part * limit / blkif.PageSize
		made[i] = f.request(l.op, 0, slot*pages+first, min(limit/blkif.PageSize, pages-first), slot)
		made[i].ID = uint64(i)
	}
	left := make([]int, depth)
	begin := func(slot, i int) {
		left[slot] = parts
		off := l.next(r, i)
		for part := range parts {
			q := &made[slot*parts+part]
			q.Sector = uint64(off+int64(part*limit)) / blkif.SectorSize
			f.front.Put(q)
		}
	}
	begun, ended := 0, 0
	for ; begun < depth; begun++ {
		begin(begun, begun)
	}
	f.push()
	for ended < l.count {
		have, err := f.front.Responses()
		if err != nil {
			f.Fatal(err)
		}
		if have == 0 {
			if more, _ := f.front.Arm(); !more {
				<-f.guest.Wake(f.port)
			}
			continue
		}
		for range have {
			rsp := f.front.Response(f.front.RspCons())
			f.front.Take(1)
			if rsp.Status != blkif.StatusOkay {
				f.Fatalf("response %+v", rsp)
			}
			slot := int(rsp.ID) / parts
			if left[slot]--; left[slot] > 0 {
				continue
			}
			ended++
			if begun < l.count {
				begin(slot, begun)
				begun++
			}
		}
		f.push()
	}
}

// TestBench measures the line beside bare io_uring, with copies, with persistent maps and
// without indirect segments, all in turn.
func TestBench(t *testing.T) {
	if os.Getenv(envBench) == "" {
		t.Skip("set " + envBench + "=1")
	}
	runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + 8) // as blkbackd does
	heldwait.Allow(8)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for _, cache := range []disk.Cache{disk.CacheWriteback, disk.CacheDirect} {
		d := fileDisk(t, benchBytes, cache)
		if err := unix.Fallocate(d.FD(), 0, 0, benchBytes); err != nil {
			t.Fatal(err)
		}
		base := newBare(t, d)
		base.run(t, &workload{op: blkif.OpWrite, bytes: 1 << 20, depth: 8, count: benchBytes >> 20})
		fronts := []*benchFront{
			newBenchFront(t, d, func(*Config) {}, false),
			newBenchFront(t, d, func(c *Config) { c.Persistent = true }, false),
			newBenchFront(t, d, func(*Config) {}, true),
		}
		w := tabwriter.NewWriter(t.Output(), 0, 8, 2, ' ', 0)
		fmt.Fprintf(w, "%v\tbare/s\tcopies\tmaps\tdirect\t| by CPU: copies\tmaps\tdirect\t| per MiB: requests\tnotifies\tgrant ops\tsystem calls\t| without indirect: requests\tnotifies\n", cache)
		for _, l := range benchLoads(cache) {
			if only := os.Getenv(envBench + "_ONLY"); only != "" && !strings.Contains(cache.String()+" "+l.name, only) {
				continue
			}
			benchLine(t, w, &l, base, fronts)
			_ = w.Flush()
		}
		_ = w.Flush()
		for _, f := range fronts {
			f.disconnect()
		}
	}
}

// TestBenchSegments measures transfers of 4 MiB, in requests of as many segments as a backend
// may offer.
func TestBenchSegments(t *testing.T) {
	if os.Getenv(envBench) == "" {
		t.Skip("set " + envBench + "=1")
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	d := fileDisk(t, benchBytes, disk.CacheDirect)
	base := newBare(t, d)
	base.run(t, &workload{op: blkif.OpWrite, bytes: 1 << 20, depth: 8, count: benchBytes >> 20})
	offers := []int{0, 32, 64, 128, 256, 512, 1024}
	var fronts []*benchFront
	for _, n := range offers {
		fronts = append(fronts, newBenchFront(t, d, func(c *Config) { c.MaxSegments = n }, false))
	}
	for _, op := range []blkif.Op{blkif.OpRead, blkif.OpWrite} {
		l := workload{op: op, bytes: 4 << 20, depth: 2, count: 24}
		took := make([][]time.Duration, 1+len(fronts))
		for round := range 6 {
			for i := range took {
				start := time.Now()
				if i == 0 {
					base.run(t, &l)
				} else {
					fronts[i-1].run(&l)
				}
				if round > 0 {
					took[i] = append(took[i], time.Since(start))
				}
			}
		}
		for i := range took {
			slices.Sort(took[i])
		}
		for i, n := range offers {
			t.Logf("%v of 4 MiB, %d segments: %.2f of bare io_uring", op, max(n, blkif.MaxDirect), took[0][2].Seconds()/took[1+i][2].Seconds())
		}
	}
	for _, f := range fronts {
		f.disconnect()
	}
}

func benchLoads(cache disk.Cache) (loads []workload) {
	scale := 2
	if cache == disk.CacheDirect {
		scale = 1
	}
	for _, op := range []blkif.Op{blkif.OpRead, blkif.OpWrite} {
		loads = append(loads,
			workload{"4k random " + op.String(), op, 4 << 10, 32, true, 8000 * scale},
			workload{"4k random QD1 " + op.String(), op, 4 << 10, 1, true, 1500 * scale},
			workload{"128k " + op.String(), op, 128 << 10, 16, false, 1000 * scale},
			workload{"1m " + op.String(), op, 1 << 20, 8, false, 128 * scale})
	}
	return loads
}

// benchLine measures one load on all peers in turn.
func benchLine(tb testing.TB, w *tabwriter.Writer, l *workload, base *bare, fronts []*benchFront) {
	const rounds = 5
	took := make([][]time.Duration, 1+len(fronts))
	cpu := make([][]time.Duration, 1+len(fronts))
	measure := func(i int, run func()) {
		start, all, own := time.Now(), cpuTime(unix.RUSAGE_SELF), cpuTime(unix.RUSAGE_THREAD)
		run()
		took[i] = append(took[i], time.Since(start))
		used := cpuTime(unix.RUSAGE_SELF) - all
		if i > 0 {
			used -= cpuTime(unix.RUSAGE_THREAD) - own // the frontend's
		}
		cpu[i] = append(cpu[i], used)
	}
	before := make([][NumCounters]uint64, len(fronts))
	for i, f := range fronts {
		f.run(l) // warms up
		before[i] = f.conn.Stats(0).Snapshot()
	}
	for range rounds {
		measure(0, func() { base.run(tb, l) })
		for i, f := range fronts {
			measure(1+i, func() { f.run(l) })
		}
	}
	middle := func(d []time.Duration) float64 {
		slices.Sort(d)
		return d[rounds/2].Seconds()
	}
	mid := func(i int) float64 { return middle(took[i]) }
	work := func(i int) float64 { return middle(cpu[0]) / middle(cpu[i]) }
	mib := float64(rounds*l.count*l.bytes) / (1 << 20)
	per := func(i int, c ...Counter) (n float64) {
		for _, c := range c {
			n += float64(fronts[i].conn.Stats(0).Load(c)-before[i][c]) / mib
		}
		return n
	}
	fmt.Fprintf(w, "%s\t%.0f\t%.2f\t%.2f\t%.2f\t| %.2f\t%.2f\t%.2f\t| %.2f\t%.2f\t%.1f\t%.2f\t| %.2f\t%.2f\n", l.name,
		float64(l.count)/mid(0), mid(0)/mid(1), mid(0)/mid(2), mid(0)/mid(3), work(1), work(2), work(3),
		per(0, Reads, Writes), per(0, Notifies), per(0, GrantOps), per(0, Syscalls),
		per(2, Reads, Writes), per(2, Notifies))
}

// cpuTime returns the time that a thread or the process has run.
func cpuTime(who int) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(who, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
