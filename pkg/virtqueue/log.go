// SPDX-License-Identifier: Apache-2.0

package virtqueue

import (
	"errors"
	"sync/atomic"
)

// logShift: a bit of a log stands for a page of 4096 bytes (VHOST_LOG_PAGE).
const logShift = 12

// ErrLog: a log needs memory that is a multiple of 8 bytes and aligned to 8.
var ErrLog = errors.New("virtqueue: the memory of a log is not made of whole words")

// Log is a bitmap of the guest pages that were written, for live migration: bit page%8 of
// byte page/8. Several queues may use one; the front end reads and clears it meanwhile.
type Log struct {
	mem   []byte
	words []uint32
}

// NewLog makes a log of mem.
func NewLog(mem []byte) (*Log, error) {
	w, ok := words(mem, 8)
	if !ok || len(mem)%8 != 0 {
		return nil, ErrLog
	}
	return &Log{mem: mem, words: w}, nil
}

// Bytes returns the memory of the log.
func (l *Log) Bytes() []byte { return l.mem }

// Mark records that n bytes at addr were written. Call it after writing them. Pages that
// the log has no bits for are ignored, and reported by false.
func (l *Log) Mark(addr, n uint64) bool {
	if n == 0 {
		return true
	}
	last := (addr + n - 1) >> logShift
	for page := addr >> logShift; page <= last; page++ {
		if page/32 >= uint64(len(l.words)) {
			return false
		}
		bit := uint32(1) << (page % 32)
		if w := &l.words[page/32]; atomic.LoadUint32(w)&bit == 0 {
			atomic.OrUint32(w, bit)
		}
	}
	return true
}
