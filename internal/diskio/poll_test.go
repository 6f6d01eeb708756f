// SPDX-License-Identifier: Apache-2.0

package diskio

import (
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/disk"
)

// eventfd makes an eventfd, with functions that make it readable and empty it.
func eventfd(t *testing.T) (fd int, ring, clear func()) {
	t.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd, func() {
			if _, err := unix.Write(fd, []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
				t.Error(err)
			}
		}, func() {
			if _, err := unix.Read(fd, make([]byte, 8)); err != nil {
				t.Error(err)
			}
		}
}

// look returns the completions that are there without waiting.
func look(t *testing.T, e *Engine) (got []Completion) {
	t.Helper()
	if err := e.SubmitAndWait(1, 0); err != nil {
		t.Fatal(err)
	}
	var done [8]Completion
	return append(got, done[:e.Completions(done[:])]...)
}

func TestPoll(t *testing.T) {
	eachMode(t, func(t *testing.T, m mode) {
		e := m.engine(t, open(t, disk.Options{Path: image(t, 1<<16)}))
		fd, ring, clear := eventfd(t)
		ring() // ready before
		if err := e.Poll(fd, unix.POLLIN, 77); err != nil {
			t.Fatal(err)
		}
		for i := range 100 { // more than a completion ring has
			if got := finish(t, e, 1); got[77]&unix.POLLIN == 0 {
				t.Fatalf("round %d: %v", i, got)
			}
			if got := look(t, e); len(got) != 0 {
				t.Fatalf("round %d: the file was ready once, and %v came too", i, got)
			}
			clear()
			go ring() // from another thread
		}
		finish(t, e, 1)
		clear()
		if n := e.UnderWay(); n != 0 {
			t.Errorf("%d operations under way: polls do not count", n)
		}

		// One wait has both.
		mem := mapMemory(t, 4096)
		ring()
		if !e.Sync(1) || !e.Read(0, address(mem), 4096, 2) {
			t.Fatal("full")
		}
		if got := finish(t, e, 3); got[77]&unix.POLLIN == 0 || got[1] != 0 || got[2] != 4096 {
			t.Errorf("%v", got)
		}
		clear()

		if err := e.Unpoll(fd); err != nil {
			t.Error(err)
		}
		ring()
		if got := look(t, e); len(got) != 0 {
			t.Errorf("%v after the end of the poll", got)
		}
		if err := e.Unpoll(fd); !errors.Is(err, unix.ENOENT) {
			t.Errorf("second end: %v", err)
		}
		if err := e.Poll(fd, unix.POLLIN, 78); err != nil {
			t.Fatal(err)
		}
		if got := finish(t, e, 1); got[78]&unix.POLLIN == 0 {
			t.Errorf("polled again: %v", got)
		}
	})
}

// TestPollManyEvents: events that nothing takes do not fill anything up.
func TestPollManyEvents(t *testing.T) {
	eachMode(t, func(t *testing.T, m mode) {
		m.cfg.Entries = 1
		e := m.engine(t, open(t, disk.Options{Path: image(t, 1<<16)}))
		fd, ring, clear := eventfd(t)
		if err := e.Poll(fd, unix.POLLIN, 77); err != nil {
			t.Fatal(err)
		}
		for range 300 {
			ring()
			if err := e.SubmitAndWait(1, time.Second); err != nil {
				t.Fatal(err)
			}
			clear()
		}
		for len(look(t, e)) > 0 {
		}
		ring()
		if got := finish(t, e, 1); got[77]&unix.POLLIN == 0 {
			t.Errorf("%v", got)
		}
	})
}

func TestPollRefuses(t *testing.T) {
	eachMode(t, func(t *testing.T, m mode) {
		e := m.engine(t, nil)
		fd, _, _ := eventfd(t)
		if err := e.Poll(fd, unix.POLLIN, UserLimit); err == nil {
			t.Error("a user value at the limit is accepted")
		}
		if err := e.Poll(-1, unix.POLLIN, 1); !errors.Is(err, unix.EBADF) {
			t.Errorf("fd -1: %v", err)
		}
		if err := e.Poll(fd, unix.POLLIN, 1); err != nil {
			t.Fatal(err)
		}
		if err := e.Poll(fd, unix.POLLIN, 1); !errors.Is(err, unix.EEXIST) {
			t.Errorf("second poll of a file: %v", err)
		}
		for n := 1; ; n++ {
			more, _, _ := eventfd(t)
			err := e.Poll(more, unix.POLLIN, 2)
			if errors.Is(err, unix.ENOSPC) && n >= 6 {
				break
			}
			if err != nil {
				t.Fatalf("poll %d: %v", n, err)
			}
		}
	})
}

func TestWait(t *testing.T) {
	eachMode(t, func(t *testing.T, m mode) {
		e := m.engine(t, open(t, disk.Options{Path: image(t, 1<<16)}))
		fd, ring, clear := eventfd(t)
		if err := e.Poll(fd, unix.POLLIN, 77); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		for range 20 { // a signal may end one early
			if err := e.SubmitAndWait(1, 20*time.Millisecond); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(start); took < 100*time.Millisecond {
			t.Errorf("20 waits of 20 ms took %v", took)
		}
		time.AfterFunc(5*time.Millisecond, ring)
		if err := e.SubmitAndWait(1, -1); err != nil { // hangs if the wake-up is lost
			t.Fatal(err)
		}
		if got := finish(t, e, 1); got[77] == 0 {
			t.Errorf("%v", got)
		}
		clear()

		// The engine's file is readable when completions are there.
		ring()
		if n, err := unix.Poll([]unix.PollFd{{Fd: int32(e.FD()), Events: unix.POLLIN}}, 5000); n != 1 || err != nil {
			t.Errorf("poll of the engine: %d, %v", n, err)
		}
		if got := finish(t, e, 1); got[77] == 0 {
			t.Errorf("%v", got)
		}
	})
}

// TestCloseLetsGoOfPolledFiles: when an engine was closed, a polled file is closed with its
// last descriptor. An event channel stays bound as long as its file is open.
func TestCloseLetsGoOfPolledFiles(t *testing.T) {
	eachMode(t, func(t *testing.T, m mode) {
		for range 20 {
			e := m.engine(t, nil)
			var p [2]int
			if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
				t.Fatal(err)
			}
			if err := e.Poll(p[0], unix.POLLIN, 1); err != nil {
				t.Fatal(err)
			}
			if err := e.SubmitAndWait(0, 0); err != nil {
				t.Fatal(err)
			}
			shut(t, e)
			if err := unix.Close(p[0]); err != nil {
				t.Fatal(err)
			}
			if _, err := unix.Write(p[1], []byte{1}); err != unix.EPIPE {
				t.Fatalf("write to the pipe: %v, want EPIPE: its reading end is open", err)
			}
			_ = unix.Close(p[1])
		}
	})
}
