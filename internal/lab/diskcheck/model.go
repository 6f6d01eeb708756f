// SPDX-License-Identifier: Apache-2.0

package diskcheck

import (
	"fmt"
	"slices"
	"sync"
)

// several marks a sector that may have other generations as well.
const several = 1 << 31

// Model knows what each sector of a disk may have. A sector belongs to one goroutine at
// a time; different sectors may be used at once.
type Model struct {
	seed uint64
	gens []uint32 // by sector: the generation, perhaps with several

	mu     sync.Mutex
	others map[uint64][]uint32 // more generations of sectors marked several; guarded by mu
}

// NewModel makes the model of a disk of zeros. The seed tells the patterns of this disk
// from those of others.
func NewModel(sectors, seed uint64) *Model {
	return &Model{seed: seed, gens: make([]uint32, sectors), others: map[uint64][]uint32{}}
}

// Sectors returns the size of the disk.
func (m *Model) Sectors() uint64 { return uint64(len(m.gens)) }

// Resize makes the model as large as the disk has become. New sectors are zero. Nothing
// may use the model meanwhile.
func (m *Model) Resize(sectors uint64) {
	if sectors <= m.Sectors() {
		m.gens = slices.Clone(m.gens[:sectors])
		return
	}
	m.gens = append(m.gens, make([]uint32, sectors-m.Sectors())...)
}

// Error is the difference between a disk and its model.
type Error struct {
	Sector uint64
	Want   []uint32 // generations that the sector may have
	Got    uint32
	Err    error // nil if Got is a generation
}

func (e *Error) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("sector %d: %v; want generation %v", e.Sector, e.Err, e.Want)
	}
	return fmt.Sprintf("sector %d: generation %d, want %v", e.Sector, e.Got, e.Want)
}

func (e *Error) Unwrap() error { return e.Err }

// newest returns the largest generation that any of the sectors may have.
func (m *Model) newest(from, to uint64) (gen uint32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, g := range m.gens[from:to] {
		gen = max(gen, g&^several)
		if g&several != 0 {
			gen = max(gen, slices.Max(m.others[from+uint64(i)]))
		}
	}
	return gen
}

// set says that a sector has one generation.
func (m *Model) set(sector uint64, gen uint32) {
	if m.gens[sector]&several != 0 {
		m.mu.Lock()
		delete(m.others, sector)
		m.mu.Unlock()
	}
	m.gens[sector] = gen
}

// add says that a sector may have another generation, too.
func (m *Model) add(sector uint64, gen uint32) {
	if m.gens[sector] == gen {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !slices.Contains(m.others[sector], gen) {
		m.others[sector] = append(m.others[sector], gen)
	}
	m.gens[sector] |= several
}

// check compares the bytes of a sector with the model. What was read is the only
// generation from then on.
func (m *Model) check(sector uint64, b []byte) error {
	got, err := read(b, m.seed, sector)
	g := m.gens[sector]
	if err == nil && g == got {
		return nil
	}
	want := []uint32{g &^ several}
	if g&several != 0 {
		m.mu.Lock()
		want = append(want, m.others[sector]...)
		m.mu.Unlock()
	}
	if err != nil || !slices.Contains(want, got) {
		return &Error{Sector: sector, Want: want, Got: got, Err: err}
	}
	m.set(sector, got)
	return nil
}

// Uncertain returns the number of sectors that may have one of several generations.
func (m *Model) Uncertain() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.others)
}

// Check compares a whole disk with the model, as when it is read from its file on the host.
// readAt reads from an offset in bytes. It returns the first difference.
func (m *Model) Check(readAt func(b []byte, off int64) (int, error)) error {
	buf := make([]byte, 1<<20)
	for at := uint64(0); at < m.Sectors(); at += uint64(len(buf) / SectorSize) {
		n := min(uint64(len(buf)/SectorSize), m.Sectors()-at)
		if _, err := readAt(buf[:n*SectorSize], int64(at)*SectorSize); err != nil {
			return err
		}
		for i := range n {
			if err := m.check(at+i, buf[i*SectorSize:(i+1)*SectorSize]); err != nil {
				return err
			}
		}
	}
	return nil
}
