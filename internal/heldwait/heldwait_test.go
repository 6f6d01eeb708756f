// SPDX-License-Identifier: Apache-2.0

package heldwait

import (
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// allow allows n held waits during a test.
func allow(t *testing.T, n int) {
	t.Helper()
	before := runtime.GOMAXPROCS(0)
	runtime.GOMAXPROCS(before + n)
	Allow(n)
	t.Cleanup(func() {
		Allow(0)
		runtime.GOMAXPROCS(before)
		if n := Held(); n != 0 {
			t.Errorf("%d held waits are left", n)
		}
	})
}

// waiter is a thread that waits for an event again and again, and answers each.
type waiter struct {
	event, answer int // eventfds
	done          chan error
}

func newWaiter(t *testing.T) *waiter {
	t.Helper()
	w := &waiter{done: make(chan error, 1)}
	for _, fd := range []*int{&w.event, &w.answer} {
		var err error
		if *fd, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Close(*fd) })
	}
	go func() { w.done <- w.run() }()
	return w
}

func (w *waiter) run() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(epoll) }()
	if err := unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, w.event, &unix.EpollEvent{Events: unix.EPOLLIN}); err != nil {
		return err
	}
	var e Epoll
	var events [4]unix.EpollEvent
	var buf [8]byte
	for {
		n, err := e.Wait(epoll, events[:], -1)
		if err != nil && err != unix.EINTR {
			return err
		}
		if n == 0 {
			continue
		}
		if _, err := unix.Read(w.event, buf[:]); err != nil {
			return err
		}
		if buf[7] != 0 {
			return nil
		}
		if _, err := unix.Write(w.answer, []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
			return err
		}
	}
}

// ring sends an event and waits for the answer.
func (w *waiter) ring(t *testing.T) {
	t.Helper()
	if _, err := unix.Write(w.event, []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
		t.Fatal(err)
	}
	var buf [8]byte
	for {
		if _, err := unix.Read(w.answer, buf[:]); err == nil {
			return
		} else if err != unix.EAGAIN {
			t.Fatal(err)
		}
		runtime.Gosched()
	}
}

func (w *waiter) end(t *testing.T) {
	t.Helper()
	if _, err := unix.Write(w.event, []byte{0, 0, 0, 0, 0, 0, 0, 1}); err != nil {
		t.Fatal(err)
	}
	if err := <-w.done; err != nil {
		t.Error(err)
	}
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

// TestWaits: threads with events in short intervals keep their P while they wait, up to the
// limit. All get their events, the collector stops them at once, and they give the P back
// when no event comes.
func TestWaits(t *testing.T) {
	const threads, limit = 4, 2
	allow(t, limit)
	var waiters []*waiter
	for range threads {
		waiters = append(waiters, newWaiter(t))
	}
	most := 0
	var stops []time.Duration
	for i := range 2000 {
		for _, w := range waiters {
			w.ring(t)
		}
		n := Held()
		most = max(most, n)
		if n > limit+threads { // those beyond the limit count for a moment
			t.Fatalf("%d held waits, the limit is %d", n, limit)
		}
		if i%100 == 0 {
			start := time.Now()
			runtime.GC()
			stops = append(stops, time.Since(start))
		}
	}
	if most == 0 {
		t.Error("no wait was held")
	}
	// A wait that could not be interrupted would end after 10 ms, at the monitor's tick.
	slices.Sort(stops)
	if median := stops[len(stops)/2]; median > 50*time.Millisecond {
		t.Errorf("a collection takes %v beside held waits: %v", median, stops)
	}
	eventually(t, "no held wait without events", func() bool { return Held() == 0 })
	for _, w := range waiters {
		w.ring(t)
		w.end(t)
	}
}

// TestStopTheWorld: a thread in a held wait stops for the process within a moment, although
// it gets no event.
func TestStopTheWorld(t *testing.T) {
	allow(t, 1)
	w := newWaiter(t)
	var stops []time.Duration
	for len(stops) < 50 {
		for Held() == 0 {
			w.ring(t) // until it waits in this way
		}
		start := time.Now()
		runtime.ReadMemStats(new(runtime.MemStats)) // stops the world
		stops = append(stops, time.Since(start))
	}
	slices.Sort(stops)
	if median := stops[len(stops)/2]; median > 5*time.Millisecond {
		t.Errorf("the world stops after %v: %v", median, stops)
	}
	w.end(t)
}

// TestQuietWait: the wait after a quiet time, and that after [Epoll.Release], is not held.
func TestQuietWait(t *testing.T) {
	allow(t, 1)
	fds := [2]int{}
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fds[0]) }()
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(epoll) }()
	if err := unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, fds[0], &unix.EpollEvent{Events: unix.EPOLLIN}); err != nil {
		t.Fatal(err)
	}
	var e Epoll
	var events [1]unix.EpollEvent
	for _, timeout := range []int{0, 20} {
		if n, err := e.Wait(epoll, events[:], timeout); n != 0 || err != nil && err != unix.EINTR || e.busy {
			t.Errorf("without an event: %d events, %v, busy %t", n, err, e.busy)
		}
	}
	_ = unix.Close(fds[1]) // an event from now on
	eventually(t, "a wait that an event ends soon", func() bool {
		n, err := e.Wait(epoll, events[:], 1000)
		return n == 1 && err == nil && e.busy
	})
	e.Release()
	if e.busy {
		t.Error("the next wait would be held")
	}
}

// TestAllowNothing: without signals for preemption nothing is held.
func TestAllowNothing(t *testing.T) {
	t.Setenv("GODEBUG", "madvdontneed=1,asyncpreemptoff=1")
	Allow(5)
	defer Allow(0)
	if Begin() {
		End()
		t.Error("a wait may be held")
	}
}
