// SPDX-License-Identifier: Apache-2.0

package powercut

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// fill makes n sectors of one version: every 8 bytes have its number.
func fill(n int, version uint64) []byte {
	p := make([]byte, n*Sector)
	for i := 0; i < len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], version)
	}
	return p
}

// version returns the version of one sector, or false if it is a mixture.
func version(sector []byte) (uint64, bool) {
	v := binary.LittleEndian.Uint64(sector)
	return v, bytes.Equal(sector, fill(1, v))
}

// writer writes ever newer versions to sectors of its own, until the power is cut.
type writer struct {
	first, sectors int
	written        []atomic.Uint64 // the version of the last write that returned
	issued         []uint64        // of the last that was called
}

func (w *writer) run(d *Disk, r *rand.Rand) {
	for v := uint64(1); ; v++ {
		at := r.IntN(w.sectors)
		n := 1 + r.IntN(min(8, w.sectors-at))
		for i := at; i < at+n; i++ {
			w.issued[i] = v
		}
		if _, err := d.WriteAt(fill(n, v), int64(w.first+at)*Sector); err != nil {
			return
		}
		for i := at; i < at+n; i++ {
			w.written[i].Store(v)
		}
	}
}

// TestCutKeepsWhatWasFlushed: whatever a cut drops, each sector has one version, not older
// than the one that was written before the last flush, and not newer than was written.
func TestCutKeepsWhatWasFlushed(t *testing.T) {
	const writers, sectors, flushes = 4, 32, 50
	dropped, kept := 0, 0
	for seed := range uint64(40) {
		d := New(writers*sectors*Sector, seed)
		enough := make(chan struct{}) // since the last flush much was written
		var flushedAll atomic.Bool
		var since atomic.Int32
		d.Hook = func(op Op) Fault {
			if op.Kind == Write && flushedAll.Load() && since.Add(1) == 20*writers {
				close(enough)
			}
			return Fault{}
		}
		ws := make([]*writer, writers)
		var running sync.WaitGroup
		for i := range ws {
			w := &writer{first: i * sectors, sectors: sectors, written: make([]atomic.Uint64, sectors), issued: make([]uint64, sectors)}
			ws[i] = w
			running.Go(func() { w.run(d, rand.New(rand.NewPCG(seed, uint64(i)))) })
		}
		var flushed [writers][sectors]uint64
		for range flushes {
			var before [writers][sectors]uint64
			for i, w := range ws {
				for j := range before[i] {
					before[i][j] = w.written[j].Load()
				}
			}
			if err := d.Sync(); err != nil {
				t.Fatal(err)
			}
			flushed = before
		}
		flushedAll.Store(true)
		<-enough
		after := d.Cut().Bytes()
		running.Wait()
		for i, w := range ws {
			for j := range flushed[i] {
				at := (w.first + j) * Sector
				v, whole := version(after[at : at+Sector])
				if !whole || v < flushed[i][j] || v > w.issued[j] {
					t.Fatalf("seed %d: sector %d has version %d (whole: %v), want %d to %d", seed, w.first+j, v, whole, flushed[i][j], w.issued[j])
				}
				if v < w.written[j].Load() {
					dropped++
				} else {
					kept++
				}
			}
		}
	}
	if dropped == 0 || kept == 0 {
		t.Errorf("the cuts dropped %d sectors and kept %d: want both", dropped, kept)
	}
}

// TestCutTearsWrites: without a flush, a cut of one long write keeps some of its sectors.
func TestCutTearsWrites(t *testing.T) {
	const sectors = 64
	for seed := range uint64(20) {
		d := New(sectors*Sector, seed)
		if n, err := d.WriteAt(fill(sectors, 1), 0); n != sectors*Sector || err != nil {
			t.Fatal(n, err)
		}
		after := d.Cut().Bytes()
		new := 0
		for at := 0; at < len(after); at += Sector {
			if v, _ := version(after[at : at+Sector]); v == 1 {
				new++
			}
		}
		if new == 0 || new == sectors {
			t.Errorf("seed %d: %d of %d sectors are kept: want a part", seed, new, sectors)
		}
	}
}

// TestFlushCoversOnlyWhatReturned: a write that is under way when a flush begins may be
// lost after it.
func TestFlushCoversOnlyWhatReturned(t *testing.T) {
	lost := 0
	for seed := range uint64(20) {
		d := New(Sector, seed)
		started, release := make(chan struct{}), make(chan struct{})
		d.Hook = func(op Op) Fault {
			if op.Kind == Write {
				close(started)
				<-release
			}
			return Fault{}
		}
		var writing sync.WaitGroup
		writing.Go(func() { d.WriteAt(fill(1, 1), 0) })
		<-started
		if err := d.Sync(); err != nil {
			t.Fatal(err)
		}
		close(release)
		writing.Wait()
		if v, _ := version(d.Cut().Bytes()); v == 0 {
			lost++
		}
	}
	if lost == 0 {
		t.Error("a flush made a write durable that was under way in each of 20 cuts")
	}
}

func TestFaults(t *testing.T) {
	d := New(8*Sector, 1)
	var fault Fault
	d.Hook = func(Op) Fault { return fault }

	fault = Fault{Err: unix.EIO}
	if _, err := d.WriteAt(fill(1, 1), 0); !errors.Is(err, unix.EIO) {
		t.Errorf("failing write: %v", err)
	}
	if err := d.Sync(); !errors.Is(err, unix.EIO) {
		t.Errorf("failing flush: %v", err)
	}
	fault = Fault{Short: 2*Sector + 7}
	if n, err := d.WriteAt(fill(4, 2), 0); n != 2*Sector || err != nil {
		t.Errorf("short write: %d, %v", n, err)
	}
	fault = Fault{}
	if want := append(fill(2, 2), fill(6, 0)...); !bytes.Equal(d.Bytes(), want) {
		t.Error("the disk has other data than the two sectors of the short write")
	}
	if err := d.Discard(Sector, Sector, false); err != nil {
		t.Error(err)
	}
	if want := append(fill(1, 2), fill(7, 0)...); !bytes.Equal(d.Bytes(), want) {
		t.Error("the discard did not zero its sector")
	}
	if _, err := d.ReadAt(make([]byte, 100), 0); err != unix.EINVAL {
		t.Errorf("read of a part of a sector: %v", err)
	}
	if _, err := d.WriteAt(fill(2, 1), 7*Sector); err != unix.EINVAL {
		t.Errorf("write beyond the end: %v", err)
	}
	d.Cut()
	if err := d.Sync(); !errors.Is(err, ErrCut) {
		t.Errorf("flush after the cut: %v", err)
	}
}
