// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// SectorSize is the unit of Sectors. A disk may have larger sectors.
const SectorSize = 512

// Kind tells the kinds of backing stores apart.
type Kind uint8

// Kinds.
const (
	KindFile    Kind = iota // a regular file
	KindBlock               // a block device
	KindNull                // a store that keeps nothing
	KindBacking             // a Backing, in tests
)

var kindNames = [...]string{"file", "block", "null", "backing"}

func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("Kind(%d)", uint8(k))
}

// MarshalText returns the kind's name.
func (k Kind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText parses what MarshalText returned.
func (k *Kind) UnmarshalText(b []byte) error {
	for i, name := range kindNames {
		if name == string(b) {
			*k = Kind(i)
			return nil
		}
	}
	return fmt.Errorf("unknown kind of disk %q", b)
}

// Discard has the limits of discards. The zero value means that there are none.
type Discard struct {
	Granularity uint32 // bytes; smaller discards may do nothing
	Alignment   uint32 // bytes from the disk's start to the first granule
	Max         uint64 // bytes that the device takes at once; larger discards are split
	Secure      bool   // secure discards work too
}

// OK returns whether the disk takes discards.
func (d Discard) OK() bool { return d.Granularity != 0 }

// Identity names the open file for status output: device and inode numbers of the file, and
// the number of the device itself if it is a block device.
type Identity struct {
	Path    string // as given
	Device  uint64 // of the file system
	Inode   uint64
	Major   uint32 // of a block device
	Minor   uint32
	Backing Kind
}

// Disk is an open backing store. Its methods may be called from several threads.
type Disk struct {
	id       Identity
	fd       int // -1 without a file
	readOnly bool
	null     bool // KindNull whose reads leave the buffer
	backing  Backing
	handed   *handed // nil: this process has opened it

	// Set before Open returns.
	direct       bool
	sectorMost   int    // bound of sectorSize for a file; 0: none
	bufferedWhy  string // why a direct disk is not
	memAlign     uint32
	sectorSize   uint32
	physicalSize uint32
	discard      Discard

	sectors atomic.Uint64
	closing sync.Once
	closed  error
}

// Kind returns the kind of the store.
func (d *Disk) Kind() Kind { return d.id.Backing }

// Identity returns the open file's numbers.
func (d *Disk) Identity() Identity { return d.id }

// FD returns the file descriptor, -1 for a store without a file.
func (d *Disk) FD() int { return d.fd }

// Backing returns the store of a disk that New made, else nil.
func (d *Disk) Backing() Backing { return d.backing }

// ReadOnly returns whether writes and discards are refused.
func (d *Disk) ReadOnly() bool { return d.readOnly }

// NullLeaves returns whether reads of a null store leave the buffer as it is.
func (d *Disk) NullLeaves() bool { return d.null }

// Direct returns whether the page cache is bypassed. If it was asked for and cannot be,
// why has the reason. Direct operations need offsets and lengths that are multiples of
// SectorSize, and memory aligned to MemoryAlign.
func (d *Disk) Direct() (direct bool, why string) { return d.direct, d.bufferedWhy }

// MemoryAlign returns the alignment of memory in bytes that direct operations need.
func (d *Disk) MemoryAlign() int { return int(d.memAlign) }

// Sectors returns the size in units of 512 bytes.
func (d *Disk) Sectors() uint64 { return d.sectors.Load() }

// SectorSize returns the size in bytes of the smallest unit that can be read or written,
// a power of 2.
func (d *Disk) SectorSize() int { return int(d.sectorSize) }

// PhysicalSectorSize returns the unit that is written without a read before it.
func (d *Disk) PhysicalSectorSize() int { return int(d.physicalSize) }

// Discard returns the limits of discards.
func (d *Disk) Discard() Discard { return d.discard }

// OpenAgain opens the file of the disk anew, for flushes alone, and returns the descriptor,
// -1 for a store without a file. The kernel reports data that it could not write back once to
// each open file, so each of several rings that flush the disk needs one. It has no lock.
func (d *Disk) OpenAgain() (fd int, err error) {
	if d.fd < 0 {
		return -1, nil
	}
	if d.handed != nil {
		return d.handed.take()
	}
	fd, err = unix.Open(fmt.Sprintf("/proc/self/fd/%d", d.fd), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_LARGEFILE, 0)
	if err != nil {
		return -1, &Error{Path: d.id.Path, Err: fmt.Errorf("open again: %w", err)}
	}
	return fd, nil
}

// Refresh reads the size again and reports whether it has changed. A size that is not
// whole sectors is rounded down: the file may be growing.
func (d *Disk) Refresh() (changed bool, err error) {
	if d.fd < 0 {
		return false, nil
	}
	size, err := d.size()
	if err != nil {
		return false, &Error{Path: d.id.Path, Err: err}
	}
	sectors := size / uint64(d.sectorSize) * uint64(d.sectorSize) / SectorSize
	return d.sectors.Swap(sectors) != sectors, nil
}

// Close closes the file. The lock ends when no operation and no io_uring has the file any
// more. Close may be called again.
func (d *Disk) Close() error {
	d.closing.Do(func() {
		if d.fd >= 0 {
			d.closed = unix.Close(d.fd)
		}
		if d.handed != nil {
			d.closed = errors.Join(d.closed, d.handed.close())
		}
	})
	return d.closed
}
