// SPDX-License-Identifier: Apache-2.0

package diskio

import (
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/disk"
	"github.com/netbackd/netbackd/internal/lab/powercut"
)

// ram is a disk in memory, whose errors are set by the test.
type ram struct {
	mu   sync.Mutex
	data []byte
	err  error
	most int // bytes of one transfer; 0: all
}

func (m *ram) disk() *disk.Disk {
	return disk.New("ram", disk.Geometry{Sectors: uint64(len(m.data) / 512), Discard: disk.Discard{Granularity: 512}}, m)
}

func (m *ram) move(n int, off int64) (int, error) {
	if m.most > 0 {
		n = min(n, m.most)
	}
	if off+int64(n) > int64(len(m.data)) {
		return 0, unix.EINVAL
	}
	return n, m.err
}

func (m *ram) ReadAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.move(len(p), off)
	copy(p[:n], m.data[off:])
	return n, err
}

func (m *ram) WriteAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.move(len(p), off)
	copy(m.data[off:], p[:n])
	return n, err
}

func (m *ram) Sync() error { return m.err }

func (m *ram) Discard(off, n int64, secure bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.data[off : off+n])
	return m.err
}

func TestBackingErrors(t *testing.T) {
	eachMode(t, func(t *testing.T, m mode) {
		b := &ram{data: make([]byte, 1<<16)}
		e := m.engine(t, b.disk())
		mem := mapMemory(t, 1<<16)
		addr := address(mem)
		vec := newIovecs(t, 2)
		vec.Set(0, addr, 4096)
		vec.Set(1, addr+4096, 4096)
		for _, tt := range []struct {
			name       string
			err        error
			most       int
			move, sync int32 // results of transfers and flush
		}{
			{"errno", unix.ENOSPC, 1 << 20, 8192, -int32(unix.ENOSPC)}, // bytes were moved before the error
			{"wrapped errno", fmt.Errorf("disk: %w", unix.ENXIO), -1, -int32(unix.ENXIO), -int32(unix.ENXIO)},
			{"other error", io.ErrUnexpectedEOF, -1, -int32(unix.EIO), -int32(unix.EIO)},
			{"short", nil, 1024, 1024, 0},
			{"well", nil, 0, 8192, 0},
		} {
			b.err, b.most = tt.err, tt.most
			if tt.most < 0 {
				b.most = 0
			}
			want := tt.move
			if tt.most < 0 { // the double fails without moving anything
				b.data = b.data[:0]
				b.err = nil
				want = -int32(unix.EINVAL)
			}
			for name, res := range map[string]int32{
				"read":   one(t, e, e.Read(0, addr, 8192, 1)),
				"write":  one(t, e, e.Write(0, addr, 8192, 1)),
				"readv":  one(t, e, e.Readv(0, vec.At(0), 2, 1)),
				"writev": one(t, e, e.Writev(0, vec.At(0), 2, 1)),
			} {
				wanted := want
				if tt.err != nil && tt.most > 0 && (name == "readv" || name == "writev") {
					wanted = 4096 // it ends at the part with the error
				}
				if res != wanted {
					t.Errorf("%s, %s: %d, want %d", tt.name, name, res, wanted)
				}
			}
			b.data, b.err = b.data[:1<<16], tt.err
			if res := one(t, e, e.Sync(1)); res != tt.sync {
				t.Errorf("%s, flush: %d, want %d", tt.name, res, tt.sync)
			}
			if res := one(t, e, e.Discard(0, 4096, false, 1)); res != tt.sync {
				t.Errorf("%s, discard: %d, want %d", tt.name, res, tt.sync)
			}
		}
	})
}

// TestSlowOperations: operations that take long do not hold up others, up to the number of
// threads, and a discard has a thread of its own.
func TestSlowOperations(t *testing.T) {
	eachMode(t, func(t *testing.T, m mode) {
		p := powercut.New(1<<16, 1)
		release := make(chan struct{})
		p.Hook = func(op powercut.Op) powercut.Fault {
			if op.Off == 0 && op.N > 0 {
				<-release
			}
			return powercut.Fault{}
		}
		m.cfg.Threads = 2
		e := m.engine(t, p.Open())
		mem := mapMemory(t, 8192)
		if !e.Read(0, address(mem), 512, 1) || !e.Discard(0, 512, false, 2) || !e.Read(512, address(mem[4096:]), 512, 3) {
			t.Fatal("full")
		}
		if got := finish(t, e, 1); got[3] != 512 {
			t.Errorf("%v: want that operation 3 ends first", got)
		}
		close(release)
		if got := finish(t, e, 2); got[1] != 512 || got[2] != 0 {
			t.Errorf("%v", got)
		}
	})
}

// TestStopDiscards: a long discard ends after the part that is under way.
func TestStopDiscards(t *testing.T) {
	eachMode(t, func(t *testing.T, m mode) {
		b := &slowDiscards{begun: make(chan int64), release: make(chan struct{})}
		d := disk.New("slow", disk.Geometry{Sectors: 1 << 40, Discard: disk.Discard{Granularity: 512}}, b)
		e := m.engine(t, d)
		if !e.Discard(0, 100*disk.DiscardChunk, false, 1) || !e.Discard(0, 512, false, 2) {
			t.Fatal("full")
		}
		for range 2 {
			<-b.begun
			b.release <- struct{}{}
		}
		<-b.begun
		e.StopDiscards()
		b.release <- struct{}{}
		if got := finish(t, e, 2); got[1] != -int32(unix.ECANCELED) || got[2] != -int32(unix.ECANCELED) {
			t.Errorf("%v: want ECANCELED for both", got)
		}
		m.set(t, e, d)
		if !e.Discard(0, 512, false, 3) {
			t.Fatal("full")
		}
		if n := <-b.begun; n != 512 {
			t.Errorf("a discard of %d bytes", n)
		}
		b.release <- struct{}{}
		if got := finish(t, e, 1); got[3] != 0 {
			t.Errorf("after the disk was set again: %v", got)
		}
	})
}

// slowDiscards is a store whose discards wait for the test.
type slowDiscards struct {
	ram
	begun   chan int64
	release chan struct{}
}

func (s *slowDiscards) Discard(_, n int64, _ bool) error {
	s.begun <- n
	<-s.release
	return nil
}

// TestFlushSurvivesPowerCut: after any power cut, writes whose completions were taken before a
// flush was queued are there if the flush succeeded.
func TestFlushSurvivesPowerCut(t *testing.T) {
	const sectors, size = 64, 64 * 512
	eachMode(t, func(t *testing.T, m mode) {
		mem := mapMemory(t, size) // one sector for each operation
		for seed := range uint64(60) {
			p := powercut.New(size, seed)
			e := m.engine(t, p.Open())
			r := rand.New(rand.NewPCG(seed, 3))
			x := powerRun{e: e, mem: mem, r: r}
			for range 200 {
				x.step(t)
			}
			after := p.Cut().Bytes()
			for i := range sectors {
				v := after[i*512]
				for _, b := range after[i*512 : (i+1)*512] {
					if b != v {
						t.Fatalf("seed %d: sector %d is torn", seed, i)
					}
				}
				if v < x.durable[i] || v > x.issued[i] {
					t.Fatalf("seed %d: sector %d has version %d, want %d to %d", seed, i, v, x.durable[i], x.issued[i])
				}
			}
			x.drain(t)
		}
	})
}

// powerRun has writes and flushes under way, of one at most for each sector.
type powerRun struct {
	e   *Engine
	mem []byte
	r   *rand.Rand

	busy                     [64]bool
	issued, written, durable [64]byte  // versions
	flush                    *[64]byte // versions that the flush under way covers
}

const flushUser = 64

// step queues an operation or takes completions.
func (x *powerRun) step(t *testing.T) {
	t.Helper()
	i := x.r.IntN(64)
	switch k := x.r.IntN(10); {
	case k < 6 && !x.busy[i] && x.issued[i] < 255:
		x.busy[i] = true
		x.issued[i]++
		mem := x.mem[i*512 : (i+1)*512]
		for j := range mem {
			mem[j] = x.issued[i]
		}
		if !x.e.Write(uint64(i*512), address(mem), 512, uint64(i)) {
			t.Fatal("full")
		}
	case k == 6 && x.flush == nil:
		covered := x.written
		x.flush = &covered
		if !x.e.Sync(flushUser) {
			t.Fatal("full")
		}
	default:
		x.take(t, 0)
	}
}

// take takes completions, and waits for n.
func (x *powerRun) take(t *testing.T, n int) {
	t.Helper()
	if err := x.e.SubmitAndWait(n, -1); err != nil {
		t.Fatal(err)
	}
	var done [8]Completion
	for _, c := range done[:x.e.Completions(done[:])] {
		switch c.User {
		case flushUser:
			if c.Res == 0 {
				for i, v := range x.flush {
					x.durable[i] = max(x.durable[i], v)
				}
			}
			x.flush = nil
		default:
			x.busy[c.User] = false
			if c.Res == 512 {
				x.written[c.User] = x.issued[c.User]
			}
		}
	}
}

// drain takes what is under way after the cut.
func (x *powerRun) drain(t *testing.T) {
	t.Helper()
	for x.e.UnderWay() > 0 {
		x.take(t, 1)
	}
	if err := x.e.SetDisk(nil); err != nil {
		t.Error(err)
	}
}
