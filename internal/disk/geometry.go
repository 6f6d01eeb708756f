// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxSectorSize bounds the sector sizes that guests are told of.
const maxSectorSize = 4096

// measure reads the geometry of the open file.
func (d *Disk) measure() error {
	var err error
	if d.id.Backing == KindBlock {
		err = d.measureBlock()
	} else {
		err = d.measureFile()
	}
	if err != nil {
		return &Error{Path: d.id.Path, Err: err}
	}
	size, err := d.size()
	unit := uint64(d.sectorSize)
	switch {
	case err != nil:
		return &Error{Path: d.id.Path, Err: err}
	case size == 0 && d.id.Backing == KindBlock:
		return &Error{Path: d.id.Path, Reason: ReasonNoMedium, Hint: "attach the device or insert the medium"}
	case size < unit:
		return &Error{Path: d.id.Path, Reason: ReasonTooSmall, Hint: sizeHint(d.id.Backing, d.id.Path, size, unit)}
	case size%unit != 0:
		return &Error{Path: d.id.Path, Reason: ReasonNotMultiple, Hint: sizeHint(d.id.Backing, d.id.Path, size, unit)}
	}
	d.sectors.Store(size / SectorSize)
	return nil
}

// size returns the size of the open file in bytes.
func (d *Disk) size() (uint64, error) {
	if d.id.Backing == KindBlock {
		return blockSize(d.fd)
	}
	var st unix.Stat_t
	if err := unix.Fstat(d.fd, &st); err != nil {
		return 0, fmt.Errorf("fstat: %w", err)
	}
	return uint64(st.Size), nil
}

// measureFile reads the geometry of a file. Sectors have 512 bytes, unless direct
// operations need more.
func (d *Disk) measureFile() error {
	var st unix.Statx_t
	if err := unix.Statx(d.fd, "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS|unix.STATX_DIOALIGN, &st); err != nil {
		return fmt.Errorf("statx: %w", err)
	}
	d.sectorSize, d.memAlign = SectorSize, 1
	block := powerOf2(st.Blksize, maxSectorSize)
	if d.direct {
		d.memAlign = SectorSize
		if st.Mask&unix.STATX_DIOALIGN != 0 {
			if err := d.alignDirect(&st); err != nil {
				return err
			}
		}
	}
	d.physicalSize = max(d.sectorSize, block)
	if !d.readOnly && d.punches(int64(st.Size)) {
		d.discard = Discard{Granularity: max(st.Blksize, SectorSize), Max: math.MaxInt64 &^ 511}
	}
	return nil
}

// alignDirect takes the alignment that direct operations on a file need. A file that has
// none, or whose size does not fit it, goes through the page cache.
func (d *Disk) alignDirect(st *unix.Statx_t) error {
	unit := powerOf2(st.Dio_offset_align, maxSectorSize)
	switch {
	case st.Dio_offset_align == 0:
		d.bufferedWhy = "the file system has no direct operations on this file"
	case st.Dio_offset_align > maxSectorSize:
		d.bufferedWhy = fmt.Sprintf("direct operations need blocks of %d bytes", st.Dio_offset_align)
	case d.sectorMost != 0 && int(unit) > d.sectorMost:
		d.bufferedWhy = fmt.Sprintf("direct operations need blocks of %d bytes, and the guest was told %d", unit, d.sectorMost)
	case st.Size%uint64(unit) != 0:
		d.bufferedWhy = fmt.Sprintf("direct operations need blocks of %d bytes, and the file's size is no multiple", unit)
	default:
		d.sectorSize, d.memAlign = unit, max(st.Dio_mem_align, 1)
		return nil
	}
	d.direct, d.memAlign = false, 1
	flags, err := unix.FcntlInt(uintptr(d.fd), unix.F_GETFL, 0)
	if err == nil {
		_, err = unix.FcntlInt(uintptr(d.fd), unix.F_SETFL, flags&^unix.O_DIRECT)
	}
	if err != nil {
		return fmt.Errorf("end O_DIRECT: %w", err)
	}
	return nil
}

// punches returns whether the file system can punch holes. The hole that it tries is
// behind the file's end.
func (d *Disk) punches(size int64) bool {
	const mode = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	return unix.Fallocate(d.fd, mode, (size+maxSectorSize-1)&^(maxSectorSize-1), maxSectorSize) == nil
}

// measureBlock reads the geometry of a block device.
func (d *Disk) measureBlock() error {
	logical, err := unix.IoctlGetInt(d.fd, unix.BLKSSZGET)
	if err != nil {
		return fmt.Errorf("BLKSSZGET: %w", err)
	}
	if logical > maxSectorSize {
		return fmt.Errorf("its sectors have %d bytes, and a guest's requests cannot have more than %d", logical, maxSectorSize)
	}
	d.sectorSize = powerOf2(uint32(logical), maxSectorSize)
	d.physicalSize = d.sectorSize
	if physical, err := unix.IoctlGetUint32(d.fd, unix.BLKPBSZGET); err == nil {
		d.physicalSize = max(d.sectorSize, powerOf2(physical, math.MaxUint32))
	}
	d.memAlign = 1
	if d.direct {
		d.memAlign = d.blockMemAlign()
	}
	if !d.readOnly {
		d.discard = d.blockDiscard()
	}
	return nil
}

// blockMemAlign returns the alignment of memory for direct operations on the device.
func (d *Disk) blockMemAlign() uint32 {
	var st unix.Statx_t
	err := unix.Statx(d.fd, "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &st)
	if err == nil && st.Mask&unix.STATX_DIOALIGN != 0 && st.Dio_mem_align != 0 {
		return st.Dio_mem_align
	}
	return d.sectorSize
}

// blockDiscard reads the limits of discards from sysfs. A partition has the queue of its
// device.
func (d *Disk) blockDiscard() Discard {
	dir := fmt.Sprintf("/sys/dev/block/%d:%d/", d.id.Major, d.id.Minor)
	queue := dir + "queue/"
	if _, err := os.Stat(queue); err != nil {
		queue = dir + "../queue/"
	}
	granularity, most := readNumber(queue+"discard_granularity"), readNumber(queue+"discard_max_bytes")
	if granularity == 0 || most == 0 || granularity > math.MaxUint32 {
		return Discard{}
	}
	return Discard{
		Granularity: uint32(granularity),
		Alignment:   uint32(readNumber(dir+"discard_alignment") % granularity),
		Max:         most,
		Secure:      secureDiscards(d.fd),
	}
}

// readNumber returns the number in a file of sysfs, 0 if there is none.
func readNumber(path string) uint64 {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// powerOf2 returns n if it is a power of 2 from SectorSize to high, else the nearer bound;
// SectorSize if it is no power of 2.
func powerOf2(n, high uint32) uint32 {
	if n&(n-1) != 0 {
		return SectorSize
	}
	return min(max(n, SectorSize), high)
}
