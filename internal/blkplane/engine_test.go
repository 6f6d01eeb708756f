// SPDX-License-Identifier: Apache-2.0

package blkplane

import (
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/iouring"
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

// needRing skips a test without io_uring.
func needRing(t *testing.T) {
	t.Helper()
	if err := iouring.Supported(); err != nil {
		t.Skip(err)
	}
}

// broken waits for the notice that the queue has stopped for this error.
func (b *bed) broken(err error) {
	b.Helper()
	select {
	case n := <-b.notices:
		if n.Kind != Broken || !errors.Is(n.Err, err) {
			b.Fatalf("notice %+v, want %v", n, err)
		}
	case <-time.After(patience):
		b.Fatal("no notice")
	}
}
