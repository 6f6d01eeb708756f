// SPDX-License-Identifier: Apache-2.0

package disk

// Backing is a store that is not a file, for tests: one that fails, is slow, or loses its
// power. Its methods are called from several threads at once. Errors that are a
// unix.Errno reach the completion as they are, others as EIO.
type Backing interface {
	// ReadAt and WriteAt move len(p) bytes at off, and return the number moved. With a
	// nil error it may be fewer.
	ReadAt(p []byte, off int64) (int, error)
	WriteAt(p []byte, off int64) (int, error)
	// Sync makes durable what was written by calls that returned before it began.
	Sync() error
	// Discard drops n bytes at off.
	Discard(off, n int64, secure bool) error
}

// Geometry describes a Backing.
type Geometry struct {
	Sectors            uint64 // of 512 bytes
	SectorSize         int    // 0: 512
	PhysicalSectorSize int    // 0: SectorSize
	Discard            Discard
	ReadOnly           bool
}

// New returns a disk on b, without a lock.
func New(name string, g Geometry, b Backing) *Disk {
	if g.SectorSize == 0 {
		g.SectorSize = SectorSize
	}
	if g.PhysicalSectorSize == 0 {
		g.PhysicalSectorSize = g.SectorSize
	}
	d := &Disk{
		id: Identity{Path: name, Backing: KindBacking}, fd: -1, backing: b, readOnly: g.ReadOnly, memAlign: 1,
		sectorSize: uint32(g.SectorSize), physicalSize: uint32(g.PhysicalSectorSize), discard: g.Discard,
	}
	d.sectors.Store(g.Sectors)
	return d
}

// newNull returns a null store.
func newNull(o *Options) *Disk {
	d := New("null", Geometry{
		Sectors:  uint64(o.NullSize) / SectorSize,
		ReadOnly: o.ReadOnly || o.CDROM,
		Discard:  Discard{Granularity: SectorSize, Max: 1 << 40},
	}, nil)
	d.id.Backing, d.null = KindNull, o.NullLeave
	return d
}
