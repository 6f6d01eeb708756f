// SPDX-License-Identifier: Apache-2.0

package iouring

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// asyncModes are the flags of a ring on new and on old kernels.
var asyncModes = []struct {
	name  string
	flags uint32
}{
	{"as on 6.1", setupSubmitAll | setupTaskrunFlag | setupSingleIssuer | setupDeferTaskrun},
	{"as on 5.19", setupSubmitAll | setupTaskrunFlag | setupCoopTaskrun},
}

// eachAsync runs a test in every mode with a ring of 8 entries, on a thread that it keeps.
func eachAsync(t *testing.T, test func(t *testing.T, a *Async)) {
	t.Helper()
	for _, m := range asyncModes {
		t.Run(m.name, func(t *testing.T) {
			runtime.LockOSThread()
			t.Cleanup(runtime.UnlockOSThread)
			watchdog(t, 30*time.Second)
			a, err := openAsync(8, m.flags)
			if errors.Is(err, ErrNotSupported) {
				t.Skip(err)
			}
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := a.Close(); err != nil {
					t.Error(err)
				}
			})
			test(t, a)
		})
	}
}

// diskFile opens a file of size bytes.
func diskFile(t *testing.T, size int64) int {
	t.Helper()
	fd, err := unix.Open(filepath.Join(t.TempDir(), "file"), unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	if err == nil {
		err = unix.Ftruncate(fd, size)
	}
	if err != nil {
		t.Fatal(err)
	}
	closeLater(t, fd)
	return fd
}

// await waits for n completions and returns the results by user value.
func await(t *testing.T, a *Async, n int) map[uint64]int32 {
	t.Helper()
	results := map[uint64]int32{}
	var done [3]Completion
	for len(results) < n {
		ready, err := a.SubmitAndWait(1, -1)
		if err != nil {
			t.Fatal(err)
		}
		got := a.Completions(done[:])
		if got > ready {
			t.Fatalf("%d completions, %d were promised", got, ready)
		}
		for _, c := range done[:got] {
			if _, twice := results[c.User]; twice {
				t.Fatalf("operation %d has completed twice", c.User)
			}
			results[c.User] = c.Res
		}
	}
	return results
}

func TestAsyncOperations(t *testing.T) {
	const size = 1 << 20
	eachAsync(t, func(t *testing.T, a *Async) {
		fd := diskFile(t, size)
		mem := memory(t, 1<<16)
		vec := iovecs(t, 2)
		vec.Set(0, address(mem), 4096)
		vec.Set(1, address(mem)+8192, 4096)
		if err := errors.Join(a.RegisterFiles(2), a.SetFile(1, fd), a.RegisterBuffers(mem), a.SetWorkers(3)); err != nil {
			t.Fatal(err)
		}
		for i := range mem {
			mem[i] = byte(i>>8 + 3*i)
		}
		want := bytes.Clone(mem)
		ok := a.Write(1, 0, address(mem), 4096, 1) && a.WriteFixed(1, 4096, address(mem)+4096, 4096, 0, 2) &&
			a.Writev(1, 8192, vec.At(0), 2, 3) && a.Nop(4) && a.Datasync(1, 5) && a.Read(0, 0, address(mem), 1, 6)
		if !ok || !a.Queued() {
			t.Fatal("an operation is refused")
		}
		got := await(t, a, 6)
		for user, res := range map[uint64]int32{1: 4096, 2: 4096, 3: 8192, 4: 0, 5: 0, 6: -int32(unix.EBADF)} {
			if got[user] != res {
				t.Errorf("operation %d: %d, want %d", user, got[user], res)
			}
		}
		clear(mem)
		a.Read(1, 0, address(mem), 4096, 1)
		a.ReadFixed(1, 4096, address(mem)+4096, 4096, 0, 2)
		await(t, a, 2)
		if !bytes.Equal(mem[:8192], want[:8192]) {
			t.Error("plain and fixed operations differ")
		}
		a.Readv(1, 8192, vec.At(0), 2, 1)
		await(t, a, 1)
		if !bytes.Equal(mem[:4096], want[:4096]) || !bytes.Equal(mem[8192:12288], want[8192:12288]) {
			t.Error("the parts of a vector differ")
		}
		a.Fallocate(1, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 4096, 1)
		if got := await(t, a, 1); got[1] != 0 {
			t.Errorf("fallocate: %d", got[1])
		}
		a.Read(1, 0, address(mem), 8192, 1)
		a.Read(1, size, address(mem)+8192, 512, 2)
		if got := await(t, a, 2); got[1] != 8192 || got[2] != 0 || !bytes.Equal(mem[:4096], make([]byte, 4096)) {
			t.Errorf("after the hole: %v", got)
		}
	})
}

// TestAsyncBounds: a ring takes Entries operations, with any number of completions to take.
func TestAsyncBounds(t *testing.T) {
	eachAsync(t, func(t *testing.T, a *Async) {
		var done [3]Completion
		r := rand.New(rand.NewPCG(1, 1))
		queued, taken := 0, 0
		for range 2000 {
			for range r.IntN(10) {
				free := a.Owed() < a.Entries()
				if a.Nop(uint64(queued)) != free {
					t.Fatalf("with %d of %d under way, taken: %v", a.Owed(), a.Entries(), !free)
				}
				if free {
					queued++
				}
			}
			if _, err := a.SubmitAndWait(r.IntN(2)&a.Owed(), -1); err != nil {
				t.Fatal(err)
			}
			taken += a.Completions(done[:r.IntN(4)])
			if queued-taken != a.Owed() {
				t.Fatalf("%d operations are under way, Owed returns %d", queued-taken, a.Owed())
			}
		}
		if a.Owed() > 0 {
			if err := a.Close(); !errors.Is(err, ErrBusy) {
				t.Errorf("close with operations under way: %v", err)
			}
		}
		for a.Owed() > 0 {
			if _, err := a.SubmitAndWait(1, -1); err != nil {
				t.Fatal(err)
			}
			a.Completions(done[:])
		}
	})
}

func TestAsyncFiles(t *testing.T) {
	eachAsync(t, func(t *testing.T, a *Async) {
		fd := diskFile(t, 4096)
		if err := a.SetFile(0, fd); err == nil {
			t.Error("a slot without a table is accepted")
		}
		if err := a.RegisterFiles(1); err != nil {
			t.Fatal(err)
		}
		if err := a.RegisterFiles(1); !errors.Is(err, unix.EBUSY) {
			t.Errorf("second table: %v", err)
		}
		for _, slot := range []int{-1, 1} {
			if err := a.SetFile(slot, fd); err == nil {
				t.Errorf("slot %d is accepted", slot)
			}
		}
		var pipe [2]int
		if err := unix.Pipe2(pipe[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		closeLater(t, pipe[:]...)
		if err := a.SetFile(0, pipe[0]); err == nil {
			t.Error("a non-blocking file is accepted")
		}
		a.Nop(1)
		if err := a.SetFile(0, fd); !errors.Is(err, ErrBusy) {
			t.Errorf("file set while an operation is queued: %v", err)
		}
		await(t, a, 1)

		// The slot has the file's lock until it is empty.
		if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
			t.Fatal(err)
		}
		dup, err := unix.Dup(fd)
		if err != nil {
			t.Fatal(err)
		}
		if err := a.SetFile(0, dup); err != nil {
			t.Fatal(err)
		}
		closeNow(t, dup)
		mem := memory(t, 4096)
		a.Write(0, 0, address(mem), 4096, 1)
		if got := await(t, a, 1); got[1] != 4096 {
			t.Errorf("write to a file that was closed: %d", got[1])
		}
		if err := a.SetFile(0, -1); err != nil {
			t.Error(err)
		}
		a.Write(0, 0, address(mem), 4096, 1)
		if got := await(t, a, 1); got[1] != -int32(unix.EBADF) {
			t.Errorf("write to an empty slot: %d", got[1])
		}
	})
}

func TestAsyncPolls(t *testing.T) {
	eachAsync(t, func(t *testing.T, a *Async) {
		event, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
		if err != nil {
			t.Fatal(err)
		}
		closeLater(t, event)
		one := []byte{1, 0, 0, 0, 0, 0, 0, 0}
		for range 3 { // polls may end and begin again
			if err := a.Poll(event, unix.POLLIN, 5); err != nil {
				t.Fatal(err)
			}
			for range 200 {
				if _, err := unix.Write(event, one); err != nil {
					t.Fatal(err)
				}
				if got := await(t, a, 1); got[5] != unix.POLLIN {
					t.Fatalf("%v", got)
				}
				if _, err := unix.Read(event, make([]byte, 8)); err != nil {
					t.Fatal(err)
				}
			}
			if a.Owed() != 0 {
				t.Errorf("%d operations under way: polls do not count", a.Owed())
			}
			if err := a.Unpoll(event); err != nil {
				t.Error(err)
			}
			a.Nop(1)
			await(t, a, 1)
		}
		if err := a.Unpoll(event); !errors.Is(err, unix.ENOENT) {
			t.Errorf("end of no poll: %v", err)
		}
	})
}

// TestAsyncPollOfBadFile: a file that is closed gives its error once.
func TestAsyncPollOfBadFile(t *testing.T) {
	eachAsync(t, func(t *testing.T, a *Async) {
		var pipe [2]int
		if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		closeNow(t, pipe[:]...)
		if err := a.Poll(pipe[0], unix.POLLIN, 5); err != nil {
			t.Fatal(err)
		}
		if got := await(t, a, 1); got[5] != -int32(unix.EBADF) {
			t.Errorf("poll of a closed file: %v", got)
		}
		if ready, err := a.SubmitAndWait(0, 0); ready != 0 || err != nil {
			t.Errorf("%d more completions, %v", ready, err)
		}
	})
}

func TestAsyncWaitEnds(t *testing.T) {
	eachAsync(t, func(t *testing.T, a *Async) {
		start := time.Now()
		for range 10 { // a signal may end one early
			if ready, err := a.SubmitAndWait(1, 10*time.Millisecond); ready != 0 || err != nil {
				t.Errorf("%d completions, %v", ready, err)
			}
		}
		if took := time.Since(start); took < 30*time.Millisecond {
			t.Errorf("10 waits of 10 ms took %v", took)
		}
		if ready, err := a.SubmitAndWait(1, 0); ready != 0 || err != nil {
			t.Errorf("look: %d completions, %v", ready, err)
		}
	})
}

func TestAsyncBelongsToItsThread(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	a, err := openAsync(8, asyncModes[0].flags)
	if err != nil {
		t.Skip(err)
	}
	result := make(chan error)
	go func() {
		a.Nop(1)
		_, err := a.SubmitAndWait(1, time.Second)
		result <- err
	}()
	if err := <-result; !errors.Is(err, unix.EEXIST) {
		t.Errorf("from another thread: %v, want EEXIST", err)
	}
	await(t, a, 1)
	if err := a.Close(); err != nil {
		t.Error(err)
	}
}

func TestAsyncClosed(t *testing.T) {
	eachAsync(t, func(t *testing.T, a *Async) {
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		for name, err := range map[string]error{
			"files":   a.RegisterFiles(1),
			"file":    a.SetFile(0, 0),
			"buffers": a.RegisterBuffers(make([]byte, 1)),
			"workers": a.SetWorkers(1),
			"poll":    a.Poll(0, unix.POLLIN, 1),
		} {
			if !errors.Is(err, ErrClosed) {
				t.Errorf("%s: %v, want %v", name, err, ErrClosed)
			}
		}
		if _, err := a.SubmitAndWait(0, 0); !errors.Is(err, ErrClosed) {
			t.Errorf("submit: %v, want %v", err, ErrClosed)
		}
		if a.Nop(1) || a.Completions(make([]Completion, 1)) != 0 {
			t.Error("a closed ring takes operations")
		}
	})
}

func TestAsyncDoesNotAllocate(t *testing.T) {
	eachAsync(t, func(t *testing.T, a *Async) {
		var done [4]Completion
		n := testing.AllocsPerRun(100, func() {
			a.Nop(1)
			if _, err := a.SubmitAndWait(1, time.Second); err != nil {
				t.Fatal(err)
			}
			a.Completions(done[:])
		})
		if n != 0 {
			t.Errorf("%v allocations for an operation", n)
		}
	})
}

// TestAsyncExchange: a read and a write of one file, without completions unless they fail.
func TestAsyncExchange(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	a, err := NewAsync(4)
	if err != nil {
		t.Skip(err)
	}
	defer a.Close()
	fd, err := unix.Eventfd(3, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	good := fd
	defer func() { _ = unix.Close(good) }()
	mem := memory(t, 16)
	mem[8] = 5
	submit := func() []Completion {
		t.Helper()
		a.Exchange(fd, address(mem), address(mem[8:]), 8, 77)
		a.Nop(1)
		if _, err := a.SubmitAndWait(1, -1); err != nil {
			t.Fatal(err)
		}
		var done [4]Completion
		return done[:a.Completions(done[:])]
	}
	if got := submit(); len(got) != 1 || got[0].User != 1 || mem[0] != 3 {
		t.Errorf("completions %+v, read %d", got, mem[0])
	}
	if got := submit(); len(got) != 1 || mem[0] != 5 {
		t.Errorf("the write was not made: completions %+v, read %d", got, mem[0])
	}
	if n, err := unix.Read(fd, mem[:8]); n != 8 || err != nil || mem[0] != 5 {
		t.Fatal(n, err)
	}
	fd = -1
	failed := 0
	for _, c := range submit() {
		if c.User == 77 && c.Res < 0 {
			failed++
		}
	}
	if failed == 0 || a.Owed() != 0 {
		t.Errorf("%d failures of a bad file, %d owed", failed, a.Owed())
	}
}
