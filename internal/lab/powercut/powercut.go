// SPDX-License-Identifier: Apache-2.0

// Package powercut is a disk in memory whose power can be cut, for tests. It keeps the
// durable image apart from writes that no flush has made durable. A cut keeps any part of
// those, sector by sector, and drops the rest. Its operations can be made to fail, to be
// short and to wait.
//
// It promises less than a good disk does, and all that a disk must: each sector has one
// of its versions since the last flush, and never a mixture of two.
package powercut

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/disk"
)

// Sector is the unit in bytes in which the disk writes: a cut never tears one.
const Sector = 512

// ErrCut is the error of every operation after the cut.
var ErrCut = fmt.Errorf("powercut: the power was cut: %w", unix.EIO)

// Kind is the kind of an operation.
type Kind uint8

// Kinds.
const (
	Read Kind = iota
	Write
	Sync
	Discard
)

// Op is an operation that is about to start.
type Op struct {
	Kind   Kind
	Off    int64
	N      int64 // bytes
	Secure bool
}

// Fault changes the course of an operation. The zero value does not.
type Fault struct {
	Err   error // the operation fails, and has no effect
	Short int   // if above 0, a read or write moves so many bytes at most
}

// Disk is a disk with power. It is a disk.Backing.
type Disk struct {
	// Hook, if set, is called before each operation, on the caller's thread and with no
	// lock held: it may wait. Set it before the disk is used.
	Hook func(Op) Fault

	mu      sync.Mutex
	random  *rand.Rand
	off     bool
	current []byte // what reads see
	durable []byte
	pending []*write // in the order of their effects, those under way before them as they began
}

// write is a write or a discard that is not durable.
type write struct {
	off  int64
	data []byte // nil: zeroes
	n    int64
	done bool // its call has returned
}

var _ disk.Backing = (*Disk)(nil)

// New returns a disk of size bytes, a multiple of Sector, full of zeroes. seed decides
// what a cut keeps.
func New(size int, seed uint64) *Disk {
	return &Disk{random: rand.New(rand.NewPCG(seed, 1)), current: make([]byte, size), durable: make([]byte, size)}
}

// Open returns the disk as a backing store that takes discards of whole sectors.
func (d *Disk) Open() *disk.Disk {
	return disk.New("powercut", disk.Geometry{
		Sectors: uint64(len(d.current)) / disk.SectorSize,
		Discard: disk.Discard{Granularity: Sector, Max: 1 << 40, Secure: true},
	}, d)
}

// begin calls the hook and checks the operation, which moves at most want bytes.
func (d *Disk) begin(kind Kind, off, want int64, secure bool) (n int64, err error) {
	var f Fault
	if d.Hook != nil {
		f = d.Hook(Op{Kind: kind, Off: off, N: want, Secure: secure})
	}
	switch {
	case f.Err != nil:
		return 0, f.Err
	case off < 0 || off%Sector != 0 || want%Sector != 0 || off+want > int64(len(d.current)):
		return 0, unix.EINVAL
	case f.Short > 0:
		return min(want, int64(f.Short)), nil
	}
	return want, nil
}

// ReadAt reads the latest data, durable or not.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	n, err := d.begin(Read, off, int64(len(p)), false)
	if err != nil {
		return 0, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.off {
		return 0, ErrCut
	}
	return copy(p[:n], d.current[off:]), nil
}

// WriteAt writes p. A short write moves whole sectors.
func (d *Disk) WriteAt(p []byte, off int64) (int, error) {
	w := &write{off: off, data: slices.Clone(p)}
	d.start(w) // from here on a cut may keep parts of it
	n, err := d.begin(Write, off, int64(len(p)), false)
	return int(n / Sector * Sector), d.finish(w, n/Sector*Sector, err)
}

// Discard zeroes n bytes.
func (d *Disk) Discard(off, n int64, secure bool) error {
	w := &write{off: off}
	n, err := d.begin(Discard, off, n, secure)
	return d.finish(w, n, err)
}

// start notes a write under way.
func (d *Disk) start(w *write) {
	d.mu.Lock()
	defer d.mu.Unlock()
	w.n = int64(len(w.data))
	if w.off >= 0 && w.off%Sector == 0 && w.n%Sector == 0 && w.off+w.n <= int64(len(d.current)) {
		d.pending = append(d.pending, w)
	}
}

// finish completes a write of n bytes, or with err takes it back.
func (d *Disk) finish(w *write, n int64, err error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.off {
		return errors.Join(err, ErrCut)
	}
	at := slices.Index(d.pending, w)
	if err != nil {
		if at >= 0 {
			d.pending = slices.Delete(d.pending, at, at+1)
		}
		return err
	}
	if at >= 0 {
		d.pending = slices.Delete(d.pending, at, at+1)
	}
	d.pending = append(d.pending, w) // in the order in which reads see them
	w.n, w.done = n, true
	w.apply(d.current)
	return nil
}

// apply writes w to an image.
func (w *write) apply(image []byte) {
	to := image[w.off : w.off+w.n]
	if w.data == nil {
		clear(to)
		return
	}
	copy(to, w.data)
}

// Sync makes durable what had returned before it was called.
func (d *Disk) Sync() error {
	d.mu.Lock()
	var covered []*write
	for _, w := range d.pending {
		if w.done {
			covered = append(covered, w)
		}
	}
	d.mu.Unlock()
	if _, err := d.begin(Sync, 0, 0, false); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.off {
		return ErrCut
	}
	for _, w := range covered {
		// Another flush may have been faster, and newer data may be durable already.
		if at := slices.Index(d.pending, w); at >= 0 {
			w.apply(d.durable)
			d.pending = slices.Delete(d.pending, at, at+1)
		}
	}
	return nil
}

// Cut ends the power, and returns the disk as it is when the power is back: of each sector
// the durable version, or one that was written since. Operations under way on the old disk,
// and all later ones, fail with ErrCut.
func (d *Disk) Cut() *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.off = true
	seen := map[int64]int{} // versions so far of a sector
	for _, w := range d.pending {
		for at := w.off; at < w.off+w.n; at += Sector {
			seen[at]++
			if d.random.IntN(seen[at]+1) != 0 {
				continue
			}
			if w.data == nil {
				clear(d.durable[at : at+Sector])
			} else {
				copy(d.durable[at:at+Sector], w.data[at-w.off:])
			}
		}
	}
	return &Disk{random: rand.New(rand.NewPCG(d.random.Uint64(), 2)), Hook: d.Hook,
		current: slices.Clone(d.durable), durable: slices.Clone(d.durable)}
}

// Pending returns the number of writes that no flush has made durable.
func (d *Disk) Pending() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.pending)
}

// Bytes returns a copy of what reads see.
func (d *Disk) Bytes() []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.current)
}
