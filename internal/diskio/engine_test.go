// SPDX-License-Identifier: Apache-2.0

package diskio

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/disk"
	"github.com/netbackd/netbackd/internal/iouring"
)

// store is a kind of disk for a test.
type store struct {
	name string
	open func(t *testing.T, size int64) *disk.Disk
}

var stores = []store{
	{"buffered file", func(t *testing.T, size int64) *disk.Disk {
		return open(t, disk.Options{Path: image(t, size), Cache: disk.CacheWriteback})
	}},
	{"direct file", func(t *testing.T, size int64) *disk.Disk {
		return open(t, disk.Options{Path: image(t, size), Cache: disk.CacheDirect})
	}},
	{"loop device", func(t *testing.T, size int64) *disk.Disk {
		return open(t, disk.Options{Path: loop(t, image(t, size))})
	}},
	{"4Kn loop device", func(t *testing.T, size int64) *disk.Disk {
		return open(t, disk.Options{Path: loop(t, image(t, size), "--sector-size", "4096")})
	}},
	{"memory", func(t *testing.T, size int64) *disk.Disk { return (&ram{data: make([]byte, size)}).disk() }},
}

// loop attaches a loop device to a file, or skips the test.
func loop(t testing.TB, path string, args ...string) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("loop devices need root")
	}
	out, err := exec.Command("losetup", append(args, "--find", "--show", path)...).CombinedOutput()
	if err != nil {
		t.Skipf("losetup: %v: %s", err, out)
	}
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", dev).CombinedOutput(); err != nil {
			t.Errorf("detach %s: %v: %s", dev, err, out)
		}
	})
	return dev
}

// TestModel runs random operations, many at a time, on every kind of store and compares
// the disk with a model. Operations under way at once are for different parts of the disk.
func TestModel(t *testing.T) {
	const blocks, block, slots, rounds = 256, 4096, 16, 25
	for _, s := range stores {
		t.Run(s.name, func(t *testing.T) {
			eachMode(t, func(t *testing.T, m mode) {
				e := m.engine(t, s.open(t, blocks*block))
				x := &modelRun{e: e, r: rand.New(rand.NewPCG(1, 7)), model: make([]byte, blocks*block), block: block,
					mem: mapMemory(t, slots*8*block), vec: newIovecs(t, slots*8)}
				for range rounds {
					x.round(t, slots, blocks)
				}
				if n := e.UnderWay(); n != 0 {
					t.Errorf("%d operations are under way at the end", n)
				}
			})
		})
	}
}

func newIovecs(t testing.TB, n int) *iouring.Iovecs {
	t.Helper()
	v, err := iouring.NewIovecs(n)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { shut(t, v) })
	return v
}

// modelRun is an engine beside its model.
type modelRun struct {
	e     *Engine
	r     *rand.Rand
	model []byte
	block int
	mem   []byte // 8 blocks for each slot
	vec   *iouring.Iovecs
}

// round queues one operation in each slot, each for a part of the disk of its own, and
// checks the results.
func (x *modelRun) round(t *testing.T, slots, blocks int) {
	t.Helper()
	part := blocks / slots
	want := map[uint64]int32{}
	reads := map[int][]byte{} // memory of a read, and what it must have
	for i := range slots {
		n := 1 + x.r.IntN(8)
		at := i*part + x.r.IntN(part-n+1)
		off, size := at*x.block, n*x.block
		mem := x.mem[i*8*x.block:][:size]
		on := x.model[off : off+size]
		want[uint64(i)] = int32(size)
		var ok bool
		switch kind := x.r.IntN(6); kind {
		case 0, 1:
			for j := range mem {
				mem[j] = byte(x.r.Uint32())
			}
			copy(on, mem)
			if kind == 0 {
				ok = x.e.Write(uint64(off), address(mem), uint32(size), uint64(i))
			} else {
				ok = x.e.Writev(uint64(off), x.parts(i, n), uint32(n), uint64(i))
			}
		case 2, 3:
			reads[i*8*x.block] = slices.Clone(on)
			if kind == 2 {
				ok = x.e.Read(uint64(off), address(mem), uint32(size), uint64(i))
			} else {
				ok = x.e.Readv(uint64(off), x.parts(i, n), uint32(n), uint64(i))
			}
		case 4:
			want[uint64(i)] = 0
			ok = x.e.Sync(uint64(i))
		case 5:
			want[uint64(i)] = 0
			clear(on)
			ok = x.e.Discard(uint64(off), uint64(size), false, uint64(i))
		}
		if !ok {
			t.Fatalf("operation %d is refused", i)
		}
	}
	if diff := cmp.Diff(want, finish(t, x.e, slots)); diff != "" {
		t.Fatalf("results (-want +got)\n%s", diff)
	}
	for at, data := range reads {
		if !bytes.Equal(x.mem[at:at+len(data)], data) {
			t.Fatalf("a read of %d bytes differs from the model", len(data))
		}
	}
}

// parts sets the iovecs of a slot to its n blocks.
func (x *modelRun) parts(slot, n int) uintptr {
	for i := range n {
		x.vec.Set(slot*8+i, address(x.mem[(slot*8+i)*x.block:]), uint32(x.block))
	}
	return x.vec.At(slot * 8)
}

func TestResults(t *testing.T) {
	const size = 1 << 16
	eachMode(t, func(t *testing.T, m mode) {
		path := image(t, size)
		mem := mapMemory(t, 2*size)
		addr := address(mem)
		vec := newIovecs(t, 2)
		vec.Set(0, addr, 4096)
		vec.Set(1, addr+4096, 4096)

		e := m.engine(t, nil)
		check := func(name string, ok bool, want int32) {
			t.Helper()
			if got := one(t, e, ok); got != want {
				t.Errorf("%s: %d, want %d", name, got, want)
			}
		}
		check("no disk", e.Read(0, addr, 512, 1), -int32(unix.EBADF))

		d := open(t, disk.Options{Path: path})
		m.set(t, e, d)
		check("read across the end", e.Read(size-4096, addr, 8192, 1), 4096)
		check("read behind the end", e.Read(size, addr, 4096, 1), 0)
		check("vector across the end", e.Readv(size-4096, vec.At(0), 2, 1), 4096)
		check("odd write", e.Write(512, addr, 1024, 1), 1024)
		check("memory that is not mapped", e.Read(0, 4096, 4096, 1), -int32(unix.EFAULT))
		check("write from memory that is not mapped", e.Write(0, 4096, 4096, 1), -int32(unix.EFAULT))
		check("secure discard", e.Discard(0, 4096, true, 1), -int32(unix.EOPNOTSUPP))
		check("long discard", e.Discard(0, 8*disk.DiscardChunk, false, 1), 0)
		if _, err := d.Refresh(); err != nil || d.Sectors() != size/512 {
			t.Errorf("%d sectors after a discard behind the end, %v", d.Sectors(), err)
		}
		m.set(t, e, nil)
		shut(t, d)

		m.set(t, e, open(t, disk.Options{Path: path, ReadOnly: true}))
		check("write to a read-only disk", e.Write(0, addr, 4096, 1), -int32(unix.EBADF))
		check("vector to a read-only disk", e.Writev(0, vec.At(0), 2, 1), -int32(unix.EBADF))
		check("flush of a read-only disk", e.Sync(1), 0)
		if res := one(t, e, e.Discard(0, 4096, false, 1)); res >= 0 {
			t.Errorf("discard on a read-only disk: %d", res)
		}

		m.set(t, e, open(t, disk.Options{NullSize: size}))
		mem[0], mem[4096] = 1, 1
		check("null read", e.Read(0, addr, 4096, 1), 4096)
		if mem[0] != 0 || mem[4096] != 1 {
			t.Error("a null read must zero its memory and no other")
		}
		check("null vector", e.Readv(size-4096, vec.At(0), 2, 1), 4096)
		check("null write", e.Write(0, addr, 4096, 1), 4096)
		check("null write across the end", e.Write(size-512, addr, 4096, 1), 512)
		check("null behind the end", e.Read(size, addr, 4096, 1), 0)
		check("null flush", e.Sync(1), 0)
		check("null discard", e.Discard(0, 4096, false, 1), 0)
		mem[0] = 1
		m.set(t, e, open(t, disk.Options{NullSize: size, NullLeave: true, ReadOnly: true}))
		check("null read that leaves", e.Read(0, addr, 4096, 1), 4096)
		check("null write, read-only", e.Write(0, addr, 4096, 1), -int32(unix.EBADF))
		if mem[0] != 1 {
			t.Error("the null read changed its memory")
		}
	})
}

// TestFixedBuffers: operations inside, across and outside of registered memory.
func TestFixedBuffers(t *testing.T) {
	const size = 1 << 16
	eachMode(t, func(t *testing.T, m mode) {
		for _, cache := range []disk.Cache{disk.CacheDirect, disk.CacheWriteback} {
			d := open(t, disk.Options{Path: image(t, size), Cache: cache})
			e := m.engine(t, d)
			mem := mapMemory(t, size)
			if err := e.RegisterBuffers(mem[:size/4], mem[size/4:size/2]); err != nil {
				t.Fatal(err)
			}
			for i := range mem {
				mem[i] = byte(i>>8 + i)
			}
			want := bytes.Clone(mem)
			for off := uint64(0); off < size; off += 4096 {
				if !e.Write(off, address(mem[off:]), 4096, off) {
					t.Fatal("full")
				}
			}
			finish(t, e, size/4096)
			clear(mem)
			if res := one(t, e, e.Read(0, address(mem), size, 1)); res != size || !bytes.Equal(mem, want) {
				t.Errorf("%v: read across buffers: %d", cache, res)
			}
			clear(mem)
			for off := uint64(0); off < size; off += 8192 {
				if !e.Read(off, address(mem[off:]), 8192, off) {
					t.Fatal("full")
				}
			}
			finish(t, e, size/8192)
			if !bytes.Equal(mem, want) {
				t.Errorf("%v: reads to buffers differ", cache)
			}
			if err := e.RegisterBuffers(mem); m.cfg.NoIOUring != (err == nil) {
				t.Errorf("second registration: %v", err)
			}
		}
	})
}

func TestFull(t *testing.T) {
	eachMode(t, func(t *testing.T, m mode) {
		m.cfg.Entries = 5
		e := m.engine(t, open(t, disk.Options{Path: image(t, 1<<16)}))
		mem := mapMemory(t, 4096)
		for range 3 {
			for i := range uint64(5) {
				var ok bool
				switch i {
				case 0:
					ok = e.Discard(0, 2*disk.DiscardChunk, false, i) // on a thread
				case 1:
					ok = e.Sync(i)
				default:
					ok = e.Write(4096*i, address(mem), 4096, i)
				}
				if !ok {
					t.Fatalf("operation %d of 5 is refused", i)
				}
			}
			if e.Read(0, address(mem), 4096, 9) || e.Write(0, address(mem), 4096, 9) || e.Discard(0, 4096, false, 9) || e.Discard(0, 2*disk.DiscardChunk, false, 9) {
				t.Fatal("a sixth operation is taken")
			}
			if n := e.UnderWay(); n != 5 {
				t.Errorf("%d operations under way, want 5", n)
			}
			if err := e.Close(); !errors.Is(err, ErrBusy) {
				t.Errorf("close: %v, want %v", err, ErrBusy)
			}
			if err := e.SetDisk(nil); !errors.Is(err, ErrBusy) {
				t.Errorf("set disk: %v, want %v", err, ErrBusy)
			}
			finish(t, e, 5)
		}
	})
}

// TestSetDiskEndsLock: when the disk is taken away, nothing in the kernel keeps its lock.
func TestSetDiskEndsLock(t *testing.T) {
	eachMode(t, func(t *testing.T, m mode) {
		path := image(t, 1<<20)
		e := m.engine(t, nil)
		mem := mapMemory(t, 1<<20)
		for i := range 20 {
			d := open(t, disk.Options{Path: path, Cache: []disk.Cache{disk.CacheWriteback, disk.CacheDirect}[i%2]})
			m.set(t, e, d)
			for off := uint64(0); off < 1<<20; off += 1 << 16 {
				e.Write(off, address(mem[off:]), 1<<16, off)
			}
			finish(t, e, 16)
			m.set(t, e, nil)
			shut(t, d)
			ctx, cancel := context.WithCancel(context.Background())
			cancel() // no waiting
			again, err := disk.Open(ctx, disk.Options{Path: path})
			if err != nil {
				t.Fatalf("round %d: %v", i, err)
			}
			shut(t, again)
		}
	})
}

func TestOperationsDoNotAllocate(t *testing.T) {
	for _, s := range stores[:2] {
		t.Run(s.name, func(t *testing.T) {
			eachMode(t, func(t *testing.T, m mode) {
				e := m.engine(t, s.open(t, 1<<20))
				mem := mapMemory(t, 1<<16)
				done := make([]Completion, 8)
				run := func() {
					e.Read(0, address(mem), 4096, 1)
					e.Write(4096, address(mem), 4096, 2)
					e.Sync(3)
					e.Discard(8192, 4096, false, 4)
					for left := 4; left > 0; {
						if err := e.SubmitAndWait(1, time.Second); err != nil {
							t.Fatal(err)
						}
						left -= e.Completions(done)
					}
				}
				run() // starts threads
				if n := testing.AllocsPerRun(50, run); n != 0 {
					t.Errorf("%v allocations for 4 operations", n)
				}
			})
		})
	}
}

func TestNewRefuses(t *testing.T) {
	for _, cfg := range []Config{{Entries: -1}, {Entries: MaxEntries + 1}, {Threads: -1}} {
		if e, err := New(cfg); err == nil {
			shut(t, e)
			t.Errorf("%+v is accepted", cfg)
		}
	}
}

// TestInlineWrites: the engine makes writes of whole pages, but not after one that took long.
func TestInlineWrites(t *testing.T) {
	m := modes[0]
	eachMode(t, func(t *testing.T, now mode) {
		if now.name != m.name {
			t.Skip("only this mode makes writes itself")
		}
		e := now.engine(t, open(t, disk.Options{Path: image(t, 1<<20)}))
		mem := mapMemory(t, 4096)
		vec := newIovecs(t, 3)
		vec.Set(0, address(mem), 512)
		vec.Set(1, address(mem[512:]), 3584)
		vec.Set(2, address(mem), 512)
		for _, tt := range []struct {
			name   string
			until  time.Time
			off    uint64
			n      uint32 // bytes, or 0
			parts  uint32
			inline bool
		}{
			{"page", time.Time{}, 4096, 4096, 0, true},
			{"part of a page", time.Time{}, 4096, 512, 0, false},
			{"across pages", time.Time{}, 512, 4096, 0, false},
			{"parts of a page", time.Time{}, 4096, 0, 2, true},
			{"parts of two pages", time.Time{}, 4096, 0, 3, false},
			{"parts across pages", time.Time{}, 512, 0, 2, false},
			{"page after a slow write", time.Now().Add(time.Hour), 4096, 4096, 0, false},
			{"parts after a slow write", time.Now().Add(time.Hour), 4096, 0, 2, false},
		} {
			e.inline.until = tt.until
			want := int32(tt.n)
			if tt.n > 0 {
				e.Write(tt.off, address(mem), tt.n, 1)
			} else {
				want = []int32{2: 4096, 3: 4608}[tt.parts]
				e.Writev(tt.off, vec.At(0), tt.parts, 1)
			}
			if n := e.UnderWay(); n != 1 {
				t.Errorf("%s: %d operations under way", tt.name, n)
			}
			if err := e.SubmitAndWait(0, 0); err != nil {
				t.Fatal(err)
			}
			if inline := e.local.n == 1 && e.ring.Owed() == 0; inline != tt.inline {
				t.Errorf("%s: made by the engine: %v, want %v", tt.name, inline, tt.inline)
			}
			if got := finish(t, e, 1); got[1] != want {
				t.Errorf("%s: %d, want %d", tt.name, got[1], want)
			}
		}
	})
}

func TestInlinePauses(t *testing.T) {
	var w inlineWrites
	now := time.Now()
	for i, step := range []struct{ after, pause time.Duration }{
		{0, time.Second},
		{time.Second, 2 * time.Second},
		{2*time.Second + 100*time.Millisecond, 4 * time.Second},
		{8 * time.Second, time.Second}, // it was well for 4 s
		{1500 * time.Millisecond, 2 * time.Second},
	} {
		now = now.Add(step.after)
		if w.stopped(now); w.pause != step.pause || !w.until.Equal(now.Add(step.pause)) {
			t.Errorf("step %d: a pause of %v, want %v", i, w.pause, step.pause)
		}
	}
	for range 10 {
		now = w.until
		w.stopped(now)
	}
	if w.pause != inlineLongest {
		t.Errorf("the longest pause is %v, want %v", w.pause, inlineLongest)
	}
}

// TestFilesEnd: engines leave nothing open, also after an error in New.
func TestFilesEnd(t *testing.T) {
	eachMode(t, func(t *testing.T, m mode) {
		before := openFiles()
		for range 5 {
			e, err := New(m.cfg)
			if err != nil {
				t.Fatal(err)
			}
			shut(t, e)
			shut(t, e) // may be called again
		}
		if after := openFiles(); after > before {
			t.Errorf("%d files before, %d after", before, after)
		}
	})
}
