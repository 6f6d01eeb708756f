// SPDX-License-Identifier: Apache-2.0

package gntdev

import (
	"os"

	"golang.org/x/sys/unix"
)

// Arena is local memory for grant copies: a private anonymous mapping, page
// aligned and zeroed.
//
// It is not on the Go heap because a [Segment] holds its local address as a
// number, which the garbage collector does not see. The collector could move or
// free the buffer while the kernel writes into it. An Arena stays in its place until
// Close and is not scanned. It starts on a page boundary, because the kernel splits
// every copy at the page ends of local memory.
type Arena struct {
	mem []byte
}

// NewArena reserves at least bytes of memory, rounded up to whole pages. Pages
// take up memory from their first use on, so an idle arena costs next to
// nothing.
func NewArena(bytes int) (*Arena, error) { return newArena(bytes, 0) }

// NewPopulatedArena is NewArena with all pages present from the start
// (MAP_POPULATE): the first copies do not fault them in one by one.
func NewPopulatedArena(bytes int) (*Arena, error) { return newArena(bytes, unix.MAP_POPULATE) }

func newArena(bytes, flags int) (*Arena, error) {
	page := os.Getpagesize()
	if bytes <= 0 || bytes > maxArena {
		return nil, &Error{Op: "arena", Index: -1, Err: unix.EINVAL}
	}
	n := (bytes + page - 1) &^ (page - 1)
	mem, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|flags)
	if err != nil {
		return nil, &Error{Op: "arena", Index: -1, Err: err}
	}
	return &Arena{mem: mem}, nil
}

// maxArena bounds the size of an arena, against sizes that were computed wrongly. 256
// queues of a full ring each need far less.
const maxArena = 1 << 32

// Bytes returns the whole arena. It is nil after Close.
func (a *Arena) Bytes() []byte { return a.mem }

// Close unmaps the memory. No slice of Bytes may be used any more, and no Copy may be
// under way. Close may be called again.
func (a *Arena) Close() error {
	mem := a.mem
	if mem == nil {
		return nil
	}
	a.mem = nil
	if err := unix.Munmap(mem); err != nil {
		return &Error{Op: "arena", Index: -1, Err: err}
	}
	return nil
}
