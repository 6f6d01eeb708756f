// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"golang.org/x/sys/unix"
)

// DiscardChunk bounds one system call of DiscardRange, so that a discard of a whole disk
// can be stopped.
const DiscardChunk = 1 << 30

// DiscardRange drops the n bytes at off, in chunks. It may take minutes. It returns
// EOPNOTSUPP if the store cannot do it, ECANCELED if stop returns true between two chunks,
// or the error of the first chunk that fails.
func (d *Disk) DiscardRange(off, n uint64, secure bool, stop func() bool) error {
	chunk := uint64(DiscardChunk)
	if d.discard.Granularity != 0 {
		chunk = max(chunk/uint64(d.discard.Granularity), 1) * uint64(d.discard.Granularity)
	}
	for n > 0 {
		if stop != nil && stop() {
			return unix.ECANCELED
		}
		part := min(n, chunk)
		if err := d.discardPart(off, part, secure); err != nil {
			return err
		}
		off, n = off+part, n-part
	}
	return nil
}

func (d *Disk) discardPart(off, n uint64, secure bool) error {
	switch {
	case d.readOnly:
		return unix.EROFS
	case d.backing != nil:
		return d.backing.Discard(int64(off), int64(n), secure)
	case d.id.Backing == KindNull && !secure:
		return nil
	case d.id.Backing == KindBlock && secure:
		return blockRange(d.fd, unix.BLKSECDISCARD, off, n)
	case d.id.Backing == KindBlock:
		return blockRange(d.fd, unix.BLKDISCARD, off, n)
	case secure || d.fd < 0:
		return unix.EOPNOTSUPP
	}
	for {
		err := unix.Fallocate(d.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(off), int64(n))
		if err != unix.EINTR {
			return err
		}
	}
}
