// SPDX-License-Identifier: Apache-2.0

package iouring

import (
	"errors"
	"runtime"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

const (
	again = -int32(unix.EAGAIN)
	badf  = -int32(unix.EBADF)
	fault = -int32(unix.EFAULT)
)

// pipe makes a non-blocking pipe.
func pipe(t testing.TB) (r, w int) {
	t.Helper()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	closeLater(t, p[0], p[1])
	return p[0], p[1]
}

// datagrams makes a non-blocking pair of sockets that preserve packet boundaries.
func datagrams(t testing.TB) (a, b int) {
	t.Helper()
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	closeLater(t, p[0], p[1])
	return p[0], p[1]
}

func eventfd(t testing.TB) int {
	t.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	closeLater(t, fd)
	return fd
}

func TestNoWait(t *testing.T) {
	for _, m := range modes {
		r := m.ring(t, 1)
		var p [2]int
		if err := unix.Pipe2(p[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		closeLater(t, p[0])
		closeLater(t, p[1])
		m.set(t, r, 1, p[0])
		if got := r.NoWait(1); got != m.noWait {
			t.Errorf("%v: a pipe: %v", m, got)
		}
		if r.NoWait(-1) || r.NoWait(8) {
			t.Errorf("%v: there is no such slot", m)
		}
	}
}

func TestEveryOperationMovesBytes(t *testing.T) {
	eachMode(t, func(t *testing.T, m mode) {
		for _, tt := range []struct {
			name string
			pair func(testing.TB) (r, w int)
		}{
			{"pipe", pipe},
			{"datagrams", datagrams},
		} {
			t.Run(tt.name, func(t *testing.T) {
				runtime.LockOSThread()
				t.Cleanup(runtime.UnlockOSThread)
				r := m.ring(t, 8)
				mem := memory(t, 8192)
				base := address(mem)
				if err := r.RegisterBuffers(mem[:4096], mem[4096:]); err != nil {
					t.Fatal(err)
				}
				vecs := iovecs(t, 4)
				rfd, wfd := tt.pair(t)
				m.set(t, r, 3, rfd)
				m.set(t, r, 5, wfd)

				copy(mem, "fixed!")
				copy(mem[100:], "plain.")
				copy(mem[200:], "vec")
				copy(mem[300:], "tor")
				vecs.Set(0, base+200, 3)
				vecs.Set(1, base+300, 3)
				vecs.Set(2, base+4096+200, 2)
				vecs.Set(3, base+4096+300, 4)
				r.WriteFixed(5, base, 6, 0, 1)
				r.Write(5, base+100, 6, 2)
				r.Writev(5, vecs.At(0), 2, 3)
				r.ReadFixed(3, base+4096, 6, 1, 4)
				r.Read(3, base+4096+100, 6, 5)
				r.Readv(3, vecs.At(2), 2, 6)
				want := map[uint64]int32{1: 6, 2: 6, 3: 6, 4: 6, 5: 6, 6: 6}
				if diff := cmp.Diff(want, submit(t, r)); diff != "" {
					t.Fatalf("results (-want +got)\n%s", diff)
				}
				got := []string{string(mem[4096:4102]), string(mem[4196:4202]), string(mem[4296:4298]), string(mem[4396:4400])}
				if diff := cmp.Diff([]string{"fixed!", "plain.", "ve", "ctor"}, got); diff != "" {
					t.Errorf("bytes (-want +got)\n%s", diff)
				}
			})
		}
	})
}

func TestWhatWouldWaitCompletesWithEAGAIN(t *testing.T) {
	eachMode(t, func(t *testing.T, m mode) {
		r := m.ring(t, 32)
		mem := memory(t, 1<<20)
		rfd, wfd := pipe(t)
		m.set(t, r, 0, rfd)
		m.set(t, r, 1, wfd)
		m.set(t, r, 2, eventfd(t))

		for user := range uint64(16) {
			r.Read(int(user%2)*2, address(mem), 8, user) // empty pipe, eventfd without events
		}
		for user, res := range submit(t, r) {
			if res != again {
				t.Errorf("read %d with nothing there: %d, want -EAGAIN", user, res)
			}
		}

		r.Write(1, address(mem), uint32(len(mem)), 100) // fills the pipe
		r.Write(1, address(mem), 1, 101)
		r.Write(1, address(mem), 1, 102)
		got := submit(t, r)
		if got[100] <= 0 || got[100] >= int32(len(mem)) {
			t.Errorf("write of more than fits: %d, want a short count", got[100])
		}
		if got[101] != again || got[102] != again {
			t.Errorf("writes to a full pipe: %d and %d, want -EAGAIN", got[101], got[102])
		}

		r.Read(0, address(mem), uint32(len(mem)), 200)
		r.Write(1, address(mem), 1, 201)
		if diff := cmp.Diff(map[uint64]int32{200: got[100], 201: 1}, submit(t, r)); diff != "" {
			t.Errorf("the pipe after EAGAIN (-want +got)\n%s", diff)
		}
	})
}

// TestReadsThatWaitDoNotStealTheNextPacket: no read of a batch stays pending after it. A
// packet that arrives after the batch is read by the next batch.
func TestReadsThatWaitDoNotStealTheNextPacket(t *testing.T) {
	eachMode(t, func(t *testing.T, m mode) {
		r := m.ring(t, 8)
		mem := memory(t, 4096)
		a, b := datagrams(t)
		m.set(t, r, 0, a)
		for range 1000 {
			for user := range uint64(3) {
				r.Read(0, address(mem)+uintptr(user)*64, 64, user)
			}
			want := map[uint64]int32{0: again, 1: again, 2: again}
			if diff := cmp.Diff(want, submit(t, r)); diff != "" {
				t.Fatalf("empty socket (-want +got)\n%s", diff)
			}
			if _, err := unix.Write(b, []byte("one")); err != nil {
				t.Fatal(err)
			}
			for user := range uint64(2) {
				r.Read(0, address(mem)+uintptr(user)*64, 64, user)
			}
			if diff := cmp.Diff(map[uint64]int32{0: 3, 1: again}, submit(t, r)); diff != "" {
				t.Fatalf("one packet (-want +got)\n%s", diff)
			}
		}
	})
}

// TestPacketsThatArriveDuringABatch writes packets from another thread while reads run
// dry, so that reads are woken while they are canceled. No packet may be lost.
func TestPacketsThatArriveDuringABatch(t *testing.T) {
	const packets = 20000
	eachMode(t, func(t *testing.T, m mode) {
		r := m.ring(t, 8)
		mem := memory(t, 4096)
		a, b := datagrams(t)
		m.set(t, r, 0, a)
		sent := make(chan error, 1)
		go func() {
			for i := range packets {
				packet := []byte{byte(i), byte(i >> 8)}
				for {
					_, err := unix.Write(b, packet)
					if err == nil {
						break
					}
					if err != unix.EAGAIN {
						sent <- err
						return
					}
					runtime.Gosched()
				}
			}
			sent <- nil
		}()
		seen := make([]bool, packets)
		for got := 0; got < packets; {
			for user := range uint64(4) {
				r.Read(0, address(mem)+uintptr(user)*64, 64, user)
			}
			for user, res := range submit(t, r) {
				if res == again {
					continue
				}
				n := int(mem[user*64]) | int(mem[user*64+1])<<8
				if res != 2 || seen[n] {
					t.Fatalf("result %d, packet %d, seen before: %v", res, n, seen[n])
				}
				seen[n] = true
				got++
			}
		}
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
	})
}

func TestErrorsOfOneOperationAreItsOwn(t *testing.T) {
	eachMode(t, func(t *testing.T, m mode) {
		r := m.ring(t, 16)
		mem := memory(t, 4096)
		if err := r.RegisterBuffers(mem); err != nil {
			t.Fatal(err)
		}
		rfd, wfd := pipe(t)
		m.set(t, r, 0, rfd)
		m.set(t, r, 1, wfd)
		base := address(mem)
		for range 3 { // the ring works after errors
			r.WriteFixed(1, base, 10, 0, 0)
			r.WriteFixed(2, base, 10, 0, 1)      // empty slot
			r.WriteFixed(8, base, 10, 0, 2)      // behind the table
			r.WriteFixed(-1, base, 10, 0, 3)     // before it
			r.WriteFixed(1<<32, base, 10, 0, 4)  // not slot 0
			r.WriteFixed(0, base, 10, 0, 5)      // not open for writing
			r.WriteFixed(1, base, 10, 1, 6)      // no such buffer
			r.WriteFixed(1, base+4090, 10, 0, 7) // beyond the buffer
			r.Write(1, 4096, 10, 8)              // not mapped
			r.Writev(1, base, 5000, 9)           // more parts than there may be
			r.ReadFixed(0, base, 4096, 0, 10)    // short
			r.ReadFixed(0, base, 4096, 0, 11)    // nothing left
			want := map[uint64]int32{0: 10, 1: badf, 2: badf, 3: badf, 4: badf, 5: badf,
				6: fault, 7: fault, 8: fault, 9: -int32(unix.EINVAL), 10: 10, 11: again}
			if diff := cmp.Diff(want, submit(t, r)); diff != "" {
				t.Fatalf("results (-want +got)\n%s", diff)
			}
		}
	})
}

func TestFullRingRefusesUntilCompletionsAreTaken(t *testing.T) {
	eachMode(t, func(t *testing.T, m mode) {
		r := m.ring(t, 6)
		mem := memory(t, 4096)
		m.set(t, r, 0, eventfd(t))
		if r.Entries() < 6 {
			t.Fatalf("%d entries, want 6 at least", r.Entries())
		}
		one := address(mem)
		mem[0] = 1
		for round := range 100 {
			queued := 0
			for r.Write(0, one, 8, uint64(queued)) {
				queued++
				if queued%3 == 0 { // submitted or not, it counts until taken
					if _, err := r.Submit(); err != nil {
						t.Fatal(err)
					}
				}
			}
			if queued != r.Entries() {
				t.Fatalf("round %d: %d operations fit, want %d", round, queued, r.Entries())
			}
			ready, err := r.Submit()
			if err != nil || ready != queued {
				t.Fatalf("round %d: %d ready, %v, want %d", round, ready, err, queued)
			}
			var few [2]Completion // fewer than there are
			taken := 0
			for n := r.Completions(few[:]); n > 0; n = r.Completions(few[:]) {
				for _, c := range few[:n] {
					if c != (Completion{User: uint64(taken), Res: 8}) {
						t.Fatalf("round %d: completion %d is %+v", round, taken, c)
					}
					taken++
				}
			}
			if taken != queued {
				t.Fatalf("round %d: %d taken of %d", round, taken, queued)
			}
		}
	})
}

// TestFullRingOfReadsThatWait needs the entry that is reserved for the cancellation.
func TestFullRingOfReadsThatWait(t *testing.T) {
	eachMode(t, func(t *testing.T, m mode) {
		r := m.ring(t, 100)
		mem := memory(t, 4096)
		m.set(t, r, 0, eventfd(t))
		for range 50 {
			queued := 0
			for r.Read(0, address(mem), 8, uint64(queued)) {
				queued++
			}
			results := submit(t, r)
			if len(results) != r.Entries() {
				t.Fatalf("%d completions, want %d", len(results), r.Entries())
			}
			for user, res := range results {
				if res != again {
					t.Fatalf("read %d: %d, want -EAGAIN", user, res)
				}
			}
		}
	})
}

func TestFileSlotsMayChangeBetweenBatches(t *testing.T) {
	eachMode(t, func(t *testing.T, m mode) {
		r := m.ring(t, 8)
		mem := memory(t, 4096)
		mem[0] = 1
		for range 500 {
			fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
			if err != nil {
				t.Fatal(err)
			}
			for slot := range 8 {
				m.set(t, r, slot, fd)
			}
			closeNow(t, fd) // the slots keep it open
			r.Write(0, address(mem), 8, 0)
			r.Write(7, address(mem), 8, 1)
			r.Read(3, address(mem)+8, 8, 2)
			if diff := cmp.Diff(map[uint64]int32{0: 8, 1: 8, 2: 8}, submit(t, r)); diff != "" {
				t.Fatalf("results (-want +got)\n%s", diff)
			}
			if mem[8] != 2 {
				t.Fatalf("the event counter is %d, want 2", mem[8])
			}
			for slot := range 8 {
				if err := r.ClearFile(slot); err != nil {
					t.Fatal(err)
				}
			}
			r.Write(0, address(mem), 8, 0)
			if diff := cmp.Diff(map[uint64]int32{0: badf}, submit(t, r)); diff != "" {
				t.Fatalf("cleared slot (-want +got)\n%s", diff)
			}
		}
	})
}

func TestSlotCallsRefuse(t *testing.T) {
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	r := modes[0].ring(t, 8)
	fd := eventfd(t)
	blocking, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	closeLater(t, blocking)
	closed := func() int {
		fd, err := unix.Dup(blocking)
		if err != nil {
			t.Fatal(err)
		}
		closeNow(t, fd)
		return fd
	}()
	for name, err := range map[string]error{
		"slot behind the table": r.SetFile(8, fd),
		"negative slot":         r.SetFile(-1, fd),
		"negative fd":           r.SetFile(0, -1),
		"closed fd":             r.SetFile(0, closed),
		"blocking file":         r.SetFile(0, blocking),
		"the ring itself":       r.SetFile(0, r.fd),
		"a second table":        r.RegisterFiles(8),
		"an empty table":        r.RegisterFiles(0),
		"a huge table":          r.RegisterFiles(1 << 30),
		"no buffers":            r.RegisterBuffers(),
		"an empty buffer":       r.RegisterBuffers(nil),
	} {
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	mem := memory(t, 4096)
	r.Write(0, address(mem), 8, 0)
	if diff := cmp.Diff(map[uint64]int32{0: badf}, submit(t, r)); diff != "" {
		t.Errorf("the slot of a refused file (-want +got)\n%s", diff)
	}

	r.Write(0, address(mem), 8, 0)
	if err := r.SetFile(1, fd); !errors.Is(err, ErrBusy) {
		t.Errorf("with an operation queued: %v, want ErrBusy", err)
	}
	if _, err := r.Submit(); err != nil {
		t.Fatal(err)
	}
	if err := r.ClearFile(1); !errors.Is(err, ErrBusy) {
		t.Errorf("with a completion to take: %v, want ErrBusy", err)
	}
	r.Completions(make([]Completion, 1))
	if err := r.SetFile(1, fd); err != nil {
		t.Errorf("idle: %v", err)
	}
}

func TestClosedRingRefuses(t *testing.T) {
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	r := modes[0].ring(t, 8)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if r.Write(0, 0, 0, 0) || r.Read(0, 0, 0, 0) {
		t.Error("an operation was queued")
	}
	if n := r.Completions(make([]Completion, 1)); n != 0 {
		t.Errorf("%d completions", n)
	}
	_, submitErr := r.Submit()
	for name, err := range map[string]error{
		"Submit":          submitErr,
		"SetFile":         r.SetFile(0, 0),
		"ClearFile":       r.ClearFile(0),
		"RegisterFiles":   r.RegisterFiles(1),
		"RegisterBuffers": r.RegisterBuffers(make([]byte, 1)),
	} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%s: %v, want ErrClosed", name, err)
		}
	}
}

// TestCloseLetsGoOfFiles: Close drops the references of the slots. The read end of a pipe
// then has no writer and reports the end of the file.
func TestCloseLetsGoOfFiles(t *testing.T) {
	eachMode(t, func(t *testing.T, m mode) {
		r := m.ring(t, 8)
		var p [2]int
		if err := unix.Pipe2(p[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		closeLater(t, p[0])
		m.set(t, r, 0, p[1])
		closeNow(t, p[1])
		if n, err := unix.Read(p[0], make([]byte, 1)); err != unix.EAGAIN {
			t.Fatalf("with the slot set: %d, %v, want EAGAIN", n, err)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		deadline := time.Now().Add(5 * time.Second) // before 6.4 a worker of the kernel does it
		for {
			n, err := unix.Read(p[0], make([]byte, 1))
			if n == 0 && err == nil {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("the pipe still has a writer: %d, %v", n, err)
			}
			runtime.Gosched()
		}
	})
}

func TestOtherThreadIsRefused(t *testing.T) {
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	r := modes[0].ring(t, 8)
	fd := eventfd(t)
	mem := memory(t, 4096)
	mem[0] = 1
	if err := r.SetFile(0, fd); err != nil {
		t.Fatal(err)
	}
	r.Write(0, address(mem), 8, 42)
	errs := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		_, err := r.Submit()
		errs <- err
	}()
	if err := <-errs; !errors.Is(err, unix.EEXIST) {
		t.Errorf("Submit on another thread: %v, want EEXIST", err)
	}
	// The ring still works and has lost no operation.
	if diff := cmp.Diff(map[uint64]int32{42: 8}, submit(t, r)); diff != "" {
		t.Errorf("results (-want +got)\n%s", diff)
	}
}
