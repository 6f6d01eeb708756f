// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/iouring"
	"github.com/netbackd/netbackd/pkg/gntdev"
)

// Where a child keeps things. test/benchpeer/peer.c has the same.
const (
	page     = 4096
	hdrLen   = 12        // of the vnet header
	maxPages = 17        // of a frame
	room     = 18 * page // for a frame in private memory

	guestPages = 256 // to read into
)

// goChild does in Go what test/benchpeer/peer.c does in C.
type goChild struct {
	private *gntdev.Arena // MaxBatch frames
	pages   *gntdev.Arena // MaxBatch frames in pages
	headers *gntdev.Arena
	iov     *iouring.Iovecs
	frame   []byte // with header
	stride  int    // of frames in private memory
	perPkt  int    // pages of one frame
	turn    int    // pages read into
}

// Serve is a [Child] written in Go, for machines without a C compiler. It answers
// commands until its standard input ends.
func Serve() error {
	runtime.LockOSThread()
	c := &goChild{}
	var err error
	if c.private, err = gntdev.NewPopulatedArena(MaxBatch * room); err != nil {
		return err
	}
	if c.pages, err = gntdev.NewPopulatedArena(MaxBatch * maxPages * page); err != nil {
		return err
	}
	if c.headers, err = gntdev.NewPopulatedArena(MaxBatch * 64); err != nil {
		return err
	}
	if c.iov, err = iouring.NewIovecs(MaxBatch * (maxPages + 1)); err != nil {
		return err
	}
	ne := binary.NativeEndian
	command, answer := make([]byte, 12), make([]byte, 16)
	for {
		if _, err := io.ReadFull(os.Stdin, command); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		n := int(ne.Uint32(command[4:]))
		data := make([]byte, ne.Uint32(command[8:]))
		if _, err := io.ReadFull(os.Stdin, data); err != nil {
			return err
		}
		var took time.Duration
		done := n
		switch op := Op(ne.Uint32(command)); {
		case op == OpLoad:
			c.frame = data
			c.stride = (len(data) + 63) &^ 63
			c.perPkt = (len(data) - hdrLen + page - 1) / page
		case n > MaxBatch:
			done = -int(unix.EINVAL)
		default:
			took, done = c.run(op, n)
		}
		ne.PutUint64(answer, uint64(took))
		ne.PutUint64(answer[8:], uint64(int64(done)))
		if _, err := os.Stdout.Write(answer); err != nil {
			return err
		}
	}
}

// spread is where in its page the k-th small frame stands, so that they do not
// all meet in one set of the cache.
func spread(k int) int { return k % 16 * 64 }

// prepare is not timed: the frames are written, the pieces listed.
func (c *goChild) prepare(op Op, n int) (pieces int) {
	frame := c.frame[hdrLen:]
	for k := range n {
		switch op {
		case OpWrite:
			copy(c.private.Bytes()[k*c.stride:], c.frame)
			continue
		case OpRead:
			continue
		}
		copy(c.headers.Bytes()[k*64:], c.frame[:hdrLen])
		c.iov.Set(k*(maxPages+1), c.headers.Addr(k*64), hdrLen)
		if op == OpReadv {
			// Into one page after the other, as many as a guest has.
			for p := range c.perPkt {
				c.iov.Set(k*(maxPages+1)+1+p, c.pages.Addr(c.turn%guestPages*page), page)
				c.turn++
			}
			continue
		}
		off := 0
		if c.perPkt == 1 && len(frame) <= page-spread(15) {
			off = spread(k)
		}
		for p, rest := 0, frame; len(rest) > 0; p++ {
			at := (k*c.perPkt+p)*page + off
			m := copy(c.pages.Bytes()[at:at+min(len(rest), page-off)], rest)
			c.iov.Set(k*(maxPages+1)+1+p, c.pages.Addr(at), uint32(m))
			rest = rest[m:]
		}
	}
	return c.perPkt + 1
}

func (c *goChild) run(op Op, n int) (time.Duration, int) {
	pieces := uintptr(c.prepare(op, n))
	start := time.Now()
	for k := range n {
		var e unix.Errno
		switch op {
		case OpWrite:
			_, _, e = unix.RawSyscall(unix.SYS_WRITE, childTap, c.private.Addr(k*c.stride), uintptr(len(c.frame)))
		case OpWritev:
			_, _, e = unix.RawSyscall(unix.SYS_WRITEV, childTap, c.iov.At(k*(maxPages+1)), pieces)
		case OpRead:
			_, _, e = unix.RawSyscall(unix.SYS_READ, childTap, c.private.Addr(0), room)
		case OpReadv:
			_, _, e = unix.RawSyscall(unix.SYS_READV, childTap, c.iov.At(k*(maxPages+1)), pieces)
		default:
			e = unix.ENOSYS
		}
		if e != 0 {
			return 0, -int(e)
		}
	}
	return time.Since(start), n
}
