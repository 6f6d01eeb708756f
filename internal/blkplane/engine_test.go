// SPDX-License-Identifier: Apache-2.0

package blkplane

import (
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/iouring"
	"github.com/netbackd/netbackd/internal/lab/powercut"
	"github.com/netbackd/netbackd/pkg/blkif"
	"github.com/netbackd/netbackd/pkg/xentest"
)

// TestBellNotPolled: a queue whose bell the kernel does not poll any more stops with a
// notice, and ends when it is told to.
func TestBellNotPolled(t *testing.T) {
	b := newBed(t, bedConfig{})
	needRing(t)
	if err := b.tryConnect(); err != nil {
		t.Fatal(err)
	}
	bell := &b.conn.queues[0].bell
	if err := unix.Close(bell.fd); err != nil {
		t.Fatal(err)
	}
	bell.fd = 1 << 30 // not open, so that its poll fails
	b.conn.Start()
	b.broken(unix.EBADF)
	b.drain()
	b.disconnect()
}

// TestEngineFails: a queue whose engine fails stops with a notice. It keeps its memory and the
// disk until its operations have ended, and then releases everything.
func TestEngineFails(t *testing.T) {
	for name, noUring := range map[string]bool{"io_uring": false, "threads": true} {
		t.Run(name, func(t *testing.T) {
			if !noUring {
				needRing(t)
			}
			gate, entered := make(chan struct{}), make(chan struct{})
			var open atomic.Bool
			b := newBed(t, bedConfig{opts: Options{NoUring: noUring}, store: hooked(func(o powercut.Op) powercut.Fault {
				if o.Kind == powercut.Write {
					close(entered)
					<-gate
				}
				return powercut.Fault{}
			})})
			b.connect()
			b.put(b.request(blkif.OpWrite, 0, 0, 1, 0))
			b.push()
			<-entered
			spoil(t, b.conn.queues[0].engine.FD())
			_ = b.guest.Send(b.port) // the next wait fails
			b.broken(unix.EINVAL, unix.EOPNOTSUPP)

			early := make(chan bool, 1)
			c := b.conn
			go func() {
				<-c.Done()
				early <- !open.Load()
			}()
			c.Close()
			select {
			case <-early:
				t.Error("the queue ended while the disk had an operation")
			case <-time.After(50 * time.Millisecond):
			}
			if u := b.guest.Usage(); u.Pages == 0 {
				t.Error("the ring was unmapped")
			}
			open.Store(true)
			close(gate)
			b.disconnect()
			if u := b.guest.Usage(); u != (xentest.Usage{}) {
				t.Errorf("left: %v", u)
			}
		})
	}
}

// spoil replaces a file by one for which no wait works.
func spoil(t *testing.T, fd int) {
	t.Helper()
	other, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err == nil {
		err = errors.Join(unix.Dup3(other, fd, unix.O_CLOEXEC), unix.Close(other))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// needRing skips a test without io_uring.
func needRing(t *testing.T) {
	t.Helper()
	if err := iouring.Supported(); err != nil {
		t.Skip(err)
	}
}

// broken waits for the notice that the queue has stopped for one of these errors.
func (b *bed) broken(want ...error) {
	b.Helper()
	select {
	case n := <-b.notices:
		is := func(err error) bool { return errors.Is(n.Err, err) }
		if n.Kind != Broken || !slices.ContainsFunc(want, is) {
			b.Fatalf("notice %+v, want one of %v", n, want)
		}
	case <-time.After(patience):
		b.Fatal("no notice")
	}
}
