// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// Description has what another process needs to know of an open disk whose files it is handed.
type Description struct {
	Path                     string
	Backing                  Kind
	Null, ReadOnly, Direct   bool
	MemAlign                 uint32
	SectorSize, PhysicalSize uint32
	Sectors                  uint64
	Discard                  Discard
	Major, Minor             uint32 // of the device that serves its operations
}

// Describe describes the disk. major and minor name the device that serves its operations.
func (d *Disk) Describe(major, minor uint32) Description {
	return Description{
		Path: d.id.Path, Backing: d.id.Backing, Null: d.null, ReadOnly: d.readOnly, Direct: d.direct, MemAlign: d.memAlign,
		SectorSize: d.sectorSize, PhysicalSize: d.physicalSize, Sectors: d.Sectors(), Discard: d.discard,
		Major: major, Minor: minor,
	}
}

// handed has the files of a disk that another process has opened.
type handed struct {
	major, minor uint32

	mu    sync.Mutex
	again []int // for flushes; guarded by mu
}

// Adopt makes a disk of files that another process has opened: fd is that of a disk which the
// process keeps open as well, so that its lock stays, and -1 for a store without a file. again are
// files of [Disk.OpenAgain]. The disk owns them all. Its size is as described.
func Adopt(s Description, fd int, again []int) *Disk {
	d := &Disk{
		id: Identity{Path: s.Path, Backing: s.Backing}, fd: fd, null: s.Null, readOnly: s.ReadOnly, direct: s.Direct,
		memAlign: s.MemAlign, sectorSize: s.SectorSize, physicalSize: s.PhysicalSize, discard: s.Discard,
		handed: &handed{major: s.Major, minor: s.Minor, again: again},
	}
	d.sectors.Store(s.Sectors)
	return d
}

// Device returns the device that serves the operations of an adopted disk.
func (d *Disk) Device() (major, minor uint32, adopted bool) {
	if d.handed == nil {
		return 0, 0, false
	}
	return d.handed.major, d.handed.minor, true
}

// errHanded is returned if more files are wanted than were handed over.
var errHanded = fmt.Errorf("no file for flushes was handed over: %w", unix.EMFILE)

// take takes a file for flushes.
func (h *handed) take() (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.again) == 0 {
		return -1, errHanded
	}
	fd := h.again[0]
	h.again = h.again[1:]
	return fd, nil
}

// close closes the files that were not taken.
func (h *handed) close() (err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, fd := range h.again {
		err = errors.Join(err, unix.Close(fd))
	}
	h.again = nil
	return err
}
