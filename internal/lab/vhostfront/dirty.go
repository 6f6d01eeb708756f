// SPDX-License-Identifier: Apache-2.0

package vhostfront

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// dirtyLog is the log of the pages that the back end writes.
type dirtyLog struct {
	fd   int
	mem  []byte // shared with the back end
	seen []byte // bits that were taken from mem
	// must has the pages that each pair has seen written. While pumps run it is theirs.
	must [maxPairs][]byte
}

// newDirtyLog makes a log for guest addresses below end.
func newDirtyLog(end uint64, pairs int) (*dirtyLog, error) {
	size := int(end/pageSize/8+8+pageSize-1) &^ (pageSize - 1)
	fd, mem, err := newMemfd("vhostfront-log", size)
	if err != nil {
		return nil, err
	}
	l := &dirtyLog{fd: fd, mem: mem, seen: make([]byte, size)}
	for i := range pairs {
		l.must[i] = make([]byte, size)
	}
	return l, nil
}

func (l *dirtyLog) close() error { return errors.Join(unix.Munmap(l.mem), unix.Close(l.fd)) }

// mark sets the bits of the pages of n bytes at a guest address.
func mark(bits []byte, addr uint64, n int) {
	if n == 0 {
		return
	}
	for page := addr / pageSize; page <= (addr+uint64(n)-1)/pageSize; page++ {
		bits[page/8] |= 1 << (page % 8)
	}
}

func marked(bits []byte, page uint64) bool { return bits[page/8]&(1<<(page%8)) != 0 }

// take reads and clears the log, as a front end does that copies a guest's memory.
func (l *dirtyLog) take() { takeWords(l.mem, l.seen) }

// check compares the log with the pages that must be in it, and returns how many these are.
func (l *dirtyLog) check(allowed []byte) (pages int, err error) {
	l.take()
	for page := range uint64(len(l.seen)) * 8 {
		written := false
		for _, bits := range l.must {
			written = written || bits != nil && marked(bits, page)
		}
		switch got := marked(l.seen, page); {
		case written && !got:
			return pages, fmt.Errorf("the page at %#x was written and is not in the log", page*pageSize)
		case got && !marked(allowed, page):
			return pages, fmt.Errorf("the page at %#x is in the log, and is not for the back end", page*pageSize)
		case written:
			pages++
		}
	}
	return pages, nil
}
