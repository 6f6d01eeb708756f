// SPDX-License-Identifier: Apache-2.0

package iouring

import (
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/heldwait"
)

// holdProcessors allows n held waits during a test.
func holdProcessors(t testing.TB, n int) {
	before := runtime.GOMAXPROCS(0)
	runtime.GOMAXPROCS(before + n)
	heldwait.Allow(n)
	t.Cleanup(func() {
		heldwait.Allow(0)
		runtime.GOMAXPROCS(before)
		if n := heldwait.Held(); n != 0 {
			t.Errorf("%d held waits are left", n)
		}
	})
}

// eventually waits until ok returns true.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

// TestHeldWaits: threads that wait keep their P for a while, up to the limit, stop for the
// garbage collector, and give the P back when no event comes. Events reach them all the time.
func TestHeldWaits(t *testing.T) {
	const threads, limit, rounds = 4, 2, 200
	holdProcessors(t, limit)
	type waiter struct{ event, answer int }
	waiters := make([]waiter, threads)
	done := make(chan error, threads)
	for i := range waiters {
		w := &waiters[i]
		for _, fd := range []*int{&w.event, &w.answer} {
			var err error
			if *fd, err = unix.Eventfd(0, unix.EFD_CLOEXEC); err != nil {
				t.Fatal(err)
			}
			closeLater(t, *fd)
		}
		go func() { done <- waitAndAnswer(w.event, w.answer, rounds+1) }()
	}
	var buf [8]byte
	seen := 0
	for i := range rounds {
		for _, w := range waiters {
			if _, err := unix.Write(w.event, []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
				t.Fatal(err)
			}
			n := heldwait.Held()
			if seen = max(seen, n); n > limit+threads { // those over it are counted for a moment
				t.Errorf("%d held waits, the limit is %d", n, limit)
			}
		}
		for _, w := range waiters {
			if _, err := unix.Read(w.answer, buf[:]); err != nil {
				t.Fatal(err)
			}
		}
		if i%50 == 0 {
			runtime.GC() // stops all threads
		}
	}
	if seen == 0 {
		t.Error("no wait was held")
	}
	eventually(t, "no held wait without events", func() bool { return heldwait.Held() == 0 })
	for _, w := range waiters {
		if _, err := unix.Write(w.event, []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
			t.Fatal(err)
		}
	}
	for range waiters {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// waitAndAnswer waits for n events, and answers each.
func waitAndAnswer(event, answer, n int) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	a, err := NewAsync(4)
	if err != nil {
		return err
	}
	if err := a.Poll(event, unix.POLLIN, 1); err != nil {
		return err
	}
	var c [2]Completion
	var buf [8]byte
	for range n {
		for a.Completions(c[:]) == 0 {
			if _, err := a.SubmitAndWait(1, -1); err != nil {
				return err
			}
		}
		if _, err := unix.Read(event, buf[:]); err != nil {
			return err
		}
		if _, err := unix.Write(answer, []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
			return err
		}
	}
	return a.Close()
}

// TestHeldWaitEnds: the time limit of a held wait holds, however the wait is interrupted.
func TestHeldWaitEnds(t *testing.T) {
	holdProcessors(t, 1)
	eachAsync(t, func(t *testing.T, a *Async) {
		for _, timeout := range []time.Duration{time.Millisecond, 100 * time.Millisecond} {
			for _, queued := range []bool{false, true} {
				start := time.Now()
				want := 1
				if queued {
					a.Nop(1)
					want = 2
				}
				ready, err := a.SubmitAndWait(want, timeout)
				took := time.Since(start)
				if ready != want-1 || err != nil || took > timeout+5*time.Second || took < timeout/2 {
					t.Errorf("wait of %v, queued %v: %d completions after %v, %v", timeout, queued, ready, took, err)
				}
				if queued {
					await(t, a, 1)
				}
			}
		}
	})
}
