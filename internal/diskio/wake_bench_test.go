// SPDX-License-Identifier: Apache-2.0

package diskio

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// BenchmarkWake sends an event to a thread that waits, and waits for its answer: once with
// a blocking read, and with the polls of both engines.
func BenchmarkWake(b *testing.B) {
	none := func() {}
	engine := func(m mode) func(b *testing.B, fd int) (wait, end func()) {
		return func(b *testing.B, fd int) (wait, end func()) {
			e, err := New(m.cfg)
			if err != nil {
				b.Error(err)
				return none, none
			}
			if err := e.Poll(fd, unix.POLLIN, 1); err != nil {
				b.Error(err)
			}
			var done [4]Completion
			return func() {
				for {
					if err := e.SubmitAndWait(1, -1); err != nil {
						b.Error(err)
					}
					if e.Completions(done[:]) > 0 {
						return
					}
				}
			}, func() { shut(b, e) }
		}
	}
	for _, tt := range []struct {
		name string
		flag int
		wait func(b *testing.B, fd int) (wait, end func())
	}{
		{"read", 0, func(*testing.B, int) (wait, end func()) { return none, none }},
		{"io_uring", unix.EFD_NONBLOCK, engine(modes[0])},
		{"epoll", unix.EFD_NONBLOCK, engine(modes[2])},
	} {
		b.Run(tt.name, func(b *testing.B) {
			there, err1 := unix.Eventfd(0, unix.EFD_CLOEXEC|tt.flag)
			back, err2 := unix.Eventfd(0, unix.EFD_CLOEXEC)
			if err1 != nil || err2 != nil {
				b.Fatal(err1, err2)
			}
			defer closeAll(there, back)
			n := b.N
			done := make(chan struct{})
			go func() {
				defer close(done)
				runtime.LockOSThread()
				wait, end := tt.wait(b, there)
				defer end()
				var buf [8]byte
				for range n {
					wait()
					unix.Read(there, buf[:])
					unix.Write(back, []byte{1, 0, 0, 0, 0, 0, 0, 0})
				}
			}()
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			var buf [8]byte
			one := []byte{1, 0, 0, 0, 0, 0, 0, 0}
			for range n {
				unix.Write(there, one)
				unix.Read(back, buf[:])
			}
			<-done
		})
	}
}

func closeAll(fds ...int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
