// SPDX-License-Identifier: Apache-2.0

package blkif_test

import (
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/netbackd/netbackd/internal/lab/blkcases"
	"github.com/netbackd/netbackd/pkg/blkif"
	"github.com/netbackd/netbackd/pkg/xen"
)

// world makes pages that no backend can use: the checks look at indirect pages only.
func world(l blkif.Limits) *blkcases.World {
	next := xen.Gref(8)
	page := func() blkcases.Page {
		next++
		return blkcases.Page{Gref: next, Mem: make([]byte, blkif.PageSize)}
	}
	w := &blkcases.World{Limits: l, Const: page(), Foreign: page(), Freed: page().Gref}
	for range blkcases.DataPages {
		w.Pages = append(w.Pages, page())
	}
	for range blkif.MaxIndirectPages {
		w.Indirect = append(w.Indirect, page())
	}
	return w
}

// reasonOf decodes and checks a shot as a backend does, in protocol p.
func reasonOf(w *blkcases.World, shot *blkcases.Shot, p blkif.Protocol) blkif.Reason {
	var slot blkif.Slot
	shot.Request.Encode(p, &slot)
	if shot.Edit != nil {
		shot.Edit(&slot)
	}
	var r blkif.Request
	slot.Decode(p, &r)
	if reason := r.Check(&w.Limits); reason != blkif.ReasonNone {
		return reason
	}
	segs := make([]blkif.Segment, blkif.MaxIndirect)
	n, reason := r.Direct(segs)
	for i := range r.IndirectPages() {
		k := r.IndirectSegments(i)
		for _, page := range append(w.Indirect, w.Const) {
			if page.Gref == r.Grefs[i] && reason == blkif.ReasonNone {
				reason = blkif.DecodeIndirect(page.Mem[:blkif.IndirectBytes(k)], segs[n:n+k])
			}
		}
		n += k
	}
	if reason == blkif.ReasonNone {
		_, reason = r.Place(&w.Limits, segs[:n])
	}
	return reason
}

// TestCases checks each case of bad input in each protocol. Grants are not checked here: a
// case that is about them passes.
func TestCases(t *testing.T) {
	disks := map[blkcases.Disk]blkif.Limits{
		blkcases.Plain:    {Sectors: 1 << 13, MaxSegments: 4096, Discard: true},
		blkcases.ReadOnly: {Sectors: 1 << 13, MaxSegments: 256, ReadOnly: true},
		blkcases.Blocks4K: {Sectors: 1 << 13, MaxSegments: 256, Discard: true, BlockSize: 4096},
		blkcases.Bare:     {Sectors: 1 << 13},
	}
	for _, c := range blkcases.All() {
		t.Run(c.Name, func(t *testing.T) {
			if c.Overrun != 0 {
				checkOverrun(t, c.Overrun)
				return
			}
			w := world(disks[c.Disk])
			if !c.Disk.Fits(&w.Limits) {
				t.Fatalf("%+v is no disk of kind %v", w.Limits, c.Disk)
			}
			want := c.Want
			if want == blkif.ReasonGrant || want == blkif.ReasonIndirectGrant || c.Flip != nil {
				want = blkif.ReasonNone
			}
			shot := c.Make(w)
			for _, p := range blkif.Protocols() {
				if got := reasonOf(w, &shot, p); got != want {
					t.Errorf("%v: %v, want %v", p, got, want)
				}
			}
			if c.Flip == nil || c.Want == blkif.ReasonGrant {
				return
			}
			c.Flip(w, true)
			if got := reasonOf(w, &shot, blkif.X8664); got != c.Want {
				t.Errorf("the page has changed: %v, want %v", got, c.Want)
			}
		})
	}
}

// TestRandomCases compares the checks with another account of the same rules.
func TestRandomCases(t *testing.T) {
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 1))
	seen := map[blkif.Reason]int{}
	w := world(blkif.Limits{})
	for i := range 10_000 {
		l := blkif.Limits{Sectors: blkcases.MinSectors, ReadOnly: i%7 == 0, Discard: i%5 != 0, BlockSize: 512}
		if i%3 == 0 {
			l.BlockSize = 4096
		}
		if i%11 != 0 {
			l.MaxSegments = uint16(12 + rnd.IntN(1000))
		}
		w.Limits = l
		c := blkcases.Random(rnd, w)
		want := c.Want
		seen[want]++
		if want == blkif.ReasonIndirectGrant {
			continue
		}
		if want == blkif.ReasonGrant {
			want = blkif.ReasonNone
		}
		shot := c.Make(w)
		p := blkif.Protocols()[i%3]
		if got := reasonOf(w, &shot, p); got != want {
			t.Fatalf("seed %d: %s, %+v: %v, want %v", seed, c.Name, l, got, want)
		}
	}
	for r := blkif.ReasonUnknownOp; int(r) < blkif.Reasons; r++ {
		if seen[r] == 0 {
			t.Errorf("seed %d: no request was refused with %q", seed, r.String())
		}
	}
}

// TestSecure: the flag counts for discards only, and only if it is offered.
func TestSecure(t *testing.T) {
	offered, not := blkif.Limits{Discard: true, Secure: true}, blkif.Limits{Discard: true}
	discard := blkif.Request{Op: blkif.OpDiscard, Flag: blkif.DiscardSecure}
	other := blkif.Request{Op: blkif.OpDiscard, Flag: 0xfe}
	write := blkif.Request{Op: blkif.OpWrite, Flag: blkif.DiscardSecure}
	if !discard.Secure(&offered) || discard.Secure(&not) || other.Secure(&offered) || write.Secure(&offered) {
		t.Error("a discard is secure without the flag or the offer, or is not with both")
	}
}

func checkOverrun(t *testing.T, by int32) {
	mem := make([]byte, 2*blkif.PageSize)
	f, err := blkif.InitFront(mem, blkif.X8632)
	if err != nil {
		t.Fatal(err)
	}
	b, err := blkif.AttachBack(mem, blkif.X8632)
	if err != nil {
		t.Fatal(err)
	}
	f.SetReqProd(blkif.Index(0).Add(uint32(int32(b.Size()) + by)))
	if n, err := b.Available(); n != 0 || !errors.Is(err, blkif.ReasonOverrun) {
		t.Errorf("available = %d, %v", n, err)
	}
}

// TestSeveralBreaches: a request that breaks several rules is refused for the one that
// blkback would find first.
func TestSeveralBreaches(t *testing.T) {
	l := blkif.Limits{Sectors: 100, BlockSize: 4096, MaxSegments: 16, ReadOnly: true, Discard: true}
	good := blkif.RawSegment{Last: 7}
	bad := blkif.RawSegment{First: 7, Last: 8}
	for _, c := range []struct {
		name string
		r    blkif.Request
		want blkif.Reason
	}{
		{"inner operation before number", blkif.Request{Op: blkif.OpIndirect, Inner: blkif.OpFlush, NrSegments: 17}, blkif.ReasonInnerOp},
		{"number before write protection", blkif.Request{Op: blkif.OpWrite, NrSegments: 12, Sector: 101}, blkif.ReasonTooManySegments},
		{"segment before write protection", blkif.Request{Op: blkif.OpWrite, NrSegments: 1, Segs: [11]blkif.RawSegment{bad}}, blkif.ReasonLastSector},
		{"write protection before range", blkif.Request{Op: blkif.OpWrite, NrSegments: 1, Sector: 99, Segs: [11]blkif.RawSegment{good}}, blkif.ReasonReadOnly},
		{"range before alignment", blkif.Request{Op: blkif.OpRead, NrSegments: 1, Sector: 99, Segs: [11]blkif.RawSegment{good}}, blkif.ReasonBeyondEnd},
		{"alignment", blkif.Request{Op: blkif.OpRead, NrSegments: 1, Sector: 3, Segs: [11]blkif.RawSegment{good}}, blkif.ReasonMisaligned},
		{"read-only discard before its range", blkif.Request{Op: blkif.OpDiscard, Sector: 101, NrSectors: 1 << 63}, blkif.ReasonReadOnly},
	} {
		w := &blkcases.World{Limits: l}
		if got := reasonOf(w, &blkcases.Shot{Request: c.r}, blkif.X8664); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}
