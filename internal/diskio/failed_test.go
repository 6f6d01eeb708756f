// SPDX-License-Identifier: Apache-2.0

package diskio

import (
	"errors"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/disk"
)

// ringEngine makes an engine that uses io_uring.
func ringEngine(t *testing.T, d *disk.Disk) *Engine {
	t.Helper()
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	return modes[0].engine(t, d)
}

// without runs f while the file descriptor is that of /dev/null, or closed.
func without(t *testing.T, fd int, null bool, f func()) {
	t.Helper()
	saved, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		err = unix.Close(fd)
	}
	if err == nil && null {
		var other int
		other, err = unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err == nil && other != fd {
			err = errors.Join(unix.Dup3(other, fd, unix.O_CLOEXEC), unix.Close(other))
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	f()
	if err := errors.Join(unix.Dup3(saved, fd, unix.O_CLOEXEC), unix.Close(saved)); err != nil {
		t.Fatal(err)
	}
}

// TestOwnWritesEnd: writes that the engine makes itself end also when the ring fails.
func TestOwnWritesEnd(t *testing.T) {
	e := ringEngine(t, open(t, disk.Options{Path: image(t, 1<<16), Cache: disk.CacheWriteback}))
	mem := mapMemory(t, 4096)
	without(t, e.FD(), true, func() {
		if !e.Write(0, address(mem), 4096, 5) {
			t.Fatal("not queued")
		}
		if err := e.SubmitAndWait(1, -1); err == nil {
			t.Error("no error")
		}
	})
	var done [2]Completion
	if n := e.Completions(done[:]); n != 1 || done[0] != (Completion{User: 5, Res: 4096}) {
		t.Errorf("%d completions: %+v", n, done[0])
	}
	if n := e.UnderWay(); n != 0 {
		t.Errorf("%d operations under way", n)
	}
}

// TestThreadsNotPolled: an engine that the kernel does not wake for its threads' completions
// reports that in each wait, and goes on otherwise.
func TestThreadsNotPolled(t *testing.T) {
	e := ringEngine(t, open(t, disk.Options{Path: image(t, 1<<16)}))
	var done [2]Completion
	without(t, e.done.event, false, func() {
		if err := e.SubmitAndWait(1, -1); err != nil {
			t.Fatal(err)
		}
	})
	if n := e.Completions(done[:]); n != 0 {
		t.Errorf("%d completions: %+v", n, done)
	}
	mem := mapMemory(t, 4096)
	if !e.Read(0, address(mem), 4096, 5) {
		t.Fatal("not queued")
	}
	for e.UnderWay() > 0 {
		if err := e.SubmitAndWait(1, -1); !errors.Is(err, unix.EBADF) {
			t.Fatalf("wait: %v, want %v", err, unix.EBADF)
		}
		if n := e.Completions(done[:]); n > 0 && done[0] != (Completion{User: 5, Res: 4096}) {
			t.Errorf("%d completions: %+v", n, done)
		}
	}
}
