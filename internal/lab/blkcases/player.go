// SPDX-License-Identifier: Apache-2.0

package blkcases

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/netbackd/netbackd/internal/lab/blkfront"
	"github.com/netbackd/netbackd/internal/lab/xenfront"
	"github.com/netbackd/netbackd/pkg/blkif"
	"github.com/netbackd/netbackd/pkg/xen"
)

// Player plays cases on one queue of a connected frontend. No other goroutine may use the
// queue, and no other queue may write to the disk. The whole disk is read after each case,
// so it should be small.
type Player struct {
	w     *World
	pages *pages
	q     *blkfront.Queue
	disk  []byte // what it must hold
	fill  uint64 // of the next case's pages

	// InUse, if not nil, tells whether the backend has a page mapped. The player then
	// checks that it has no page of a request mapped any more when it answers.
	InUse func(xen.Gref) (bool, error)
}

// raceShots is the number of times that a request is made whose pages change.
const raceShots = 200

// OtherDomid is a domain that has nothing to do with the test, for pages granted to another
// domain.
const OtherDomid xen.Domid = 0x7ee

// NewPlayer makes the pages of the cases, for a backend in domain peer that has published
// these limits, and reads the disk.
func NewPlayer(ctx context.Context, host xenfront.Host, peer xen.Domid, q *blkfront.Queue, l blkif.Limits) (*Player, error) {
	if l.Sectors < MinSectors || l.Sectors > 1<<20 {
		return nil, fmt.Errorf("blkcases: a disk of %d sectors, want %d to %d", l.Sectors, MinSectors, 1<<20)
	}
	w, pages, err := makeWorld(host.Pages, peer, OtherDomid, l)
	if err != nil {
		return nil, fmt.Errorf("blkcases: %w", err)
	}
	p := &Player{w: w, pages: pages, q: q}
	if p.disk, err = p.readDisk(ctx); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// Close frees the pages.
func (p *Player) Close() error { return p.pages.free() }

// Disk returns what the disk must hold now.
func (p *Player) Disk() []byte { return slices.Clone(p.disk) }

// World returns what cases are made of.
func (p *Player) World() *World { return p.w }

// Fits reports whether the disk is of the kind that the case needs.
func (p *Player) Fits(c *Case) bool { return c.Disk.Fits(&p.w.Limits) }

// Play plays one case and returns what was wrong. After a case with an Overrun the queue is
// of no use: the backend has to stop it, which the caller checks.
func (p *Player) Play(ctx context.Context, c *Case) error {
	if c.Overrun != 0 {
		s := p.q.State()
		p.q.SetReqProd(s.RspProd.Add(uint32(int32(p.q.Size()) + c.Overrun)))
		return p.q.Kick()
	}
	p.fillPages()
	shot := c.Make(p.w)
	if c.Flip != nil {
		return p.race(ctx, c, &shot)
	}
	before := p.snapshot()
	a, err := p.ask(ctx, &shot)
	if err != nil {
		return err
	}
	if want := c.Want.Status(); a.Status != want {
		return fmt.Errorf("status %v, want %v", a.Status, want)
	}
	if err := p.checkPages(c, &shot, a.Status, before); err != nil {
		return err
	}
	return p.checkDisk(ctx, &shot, c.Want, before)
}

// race makes the request many times while its pages change.
func (p *Player) race(ctx context.Context, c *Case, shot *Shot) error {
	before := p.snapshot()
	var stop atomic.Bool
	var ended sync.WaitGroup
	ended.Go(func() {
		for i := 0; !stop.Load(); i++ {
			c.Flip(p.w, i%2 == 0)
		}
		c.Flip(p.w, false)
	})
	for range raceShots {
		a, err := p.ask(ctx, shot)
		if err == nil && a.Status != blkif.StatusOkay && a.Status != c.Want.Status() {
			err = fmt.Errorf("status %v, want okay or %v", a.Status, c.Want.Status())
		}
		if err != nil {
			stop.Store(true)
			ended.Wait()
			return err
		}
	}
	stop.Store(true)
	ended.Wait()
	// Flip has put the indirect pages back.
	if err := p.checkPages(c, shot, blkif.StatusError, before); err != nil {
		return err
	}
	return p.checkDisk(ctx, shot, blkif.ReasonGrant, before)
}

// ask puts a request into the ring and waits for the answer.
func (p *Player) ask(ctx context.Context, shot *Shot) (blkfront.Answer, error) {
	var slot blkif.Slot
	shot.Request.Encode(p.q.Protocol(), &slot)
	if shot.Edit != nil {
		shot.Edit(&slot)
	}
	id, err := p.q.PutSlot(slot, shot.Request.Operation(), 0)
	if err != nil {
		return blkfront.Answer{}, err
	}
	if err := p.q.Push(); err != nil {
		return blkfront.Answer{}, err
	}
	a, err := p.await(ctx)
	if err == nil && a.ID != id {
		err = fmt.Errorf("answer to %#x, want %#x", a.ID, id)
	}
	if n := p.q.Violations(); err == nil && len(n) > 0 {
		err = n[0]
	}
	for _, g := range p.all() {
		if p.InUse == nil || err != nil {
			break
		}
		var used bool
		if used, err = p.InUse(g.Gref); used {
			err = fmt.Errorf("answered while page %d is in use", g.Gref)
		}
	}
	return a, err
}

func (p *Player) await(ctx context.Context) (blkfront.Answer, error) {
	for {
		a, ok, err := p.q.Poll()
		if ok || err != nil {
			return a, err
		}
		if err := p.q.Wait(ctx); err != nil {
			return a, err
		}
	}
}

// all returns all pages of the world that are memory of this guest.
func (p *Player) all() []Page {
	return slices.Concat(p.w.Pages, p.w.Indirect, []Page{p.w.Const, p.w.Foreign})
}

// fillPages gives every page a content that it never had.
func (p *Player) fillPages() {
	for _, g := range p.all() {
		for i := 0; i < len(g.Mem); i += 8 {
			p.fill = p.fill*6364136223846793005 + 1442695040888963407
			binary.LittleEndian.PutUint64(g.Mem[i:], p.fill)
		}
	}
}

// snapshot copies all pages.
func (p *Player) snapshot() map[xen.Gref][]byte {
	s := map[xen.Gref][]byte{}
	for _, g := range p.all() {
		s[g.Gref] = slices.Clone(g.Mem)
	}
	return s
}

// checkPages compares all pages with what they had before. A read changes the sectors that
// its segments name, and nothing else: to the data of the disk if it succeeded, and to
// anything if one of its pages could not be used.
func (p *Player) checkPages(c *Case, shot *Shot, status blkif.Status, before map[xen.Gref][]byte) error {
	free := map[xen.Gref]*[8]bool{} // sectors that may have anything
	if shot.Request.Operation() == read && (status == blkif.StatusOkay || c.Want == blkif.ReasonGrant || c.Flip != nil) {
		at := int64(shot.Request.Sector) * blkif.SectorSize
		for _, s := range shot.Segs {
			if free[s.Gref] == nil {
				free[s.Gref] = new([8]bool)
			}
			for k := int(s.First); k <= int(s.Last); k++ {
				free[s.Gref][k] = true
				if was := before[s.Gref]; status == blkif.StatusOkay && !c.AnyData && was != nil {
					copy(was[k*blkif.SectorSize:][:blkif.SectorSize], p.disk[at:])
					free[s.Gref][k] = false
				}
				at += blkif.SectorSize
			}
		}
	}
	for _, g := range p.all() {
		f := free[g.Gref]
		for k := range 8 {
			if f != nil && f[k] {
				continue
			}
			at := k * blkif.SectorSize
			if i, ok := differ(g.Mem[at:at+blkif.SectorSize], before[g.Gref][at:]); ok {
				return fmt.Errorf("byte %d of page %d is %#x, want %#x", at+i, g.Gref, g.Mem[at+i], before[g.Gref][at+i])
			}
		}
	}
	return nil
}

// differ returns the first byte of a that is not that of b.
func differ(a, b []byte) (at int, ok bool) {
	if bytes.Equal(a, b[:len(a)]) {
		return 0, false
	}
	for i := range a {
		if a[i] != b[i] {
			return i, true
		}
	}
	return 0, false
}

// checkDisk reads the disk and compares it with what it must hold. A write that was served has
// changed the sectors that it names, and one whose page could not be used may have.
func (p *Player) checkDisk(ctx context.Context, shot *Shot, reason blkif.Reason, before map[xen.Gref][]byte) error {
	got, err := p.readDisk(ctx)
	if err != nil {
		return err
	}
	var data []byte // what the request writes
	op := shot.Request.Operation()
	if served := reason == blkif.ReasonNone; served || reason == blkif.ReasonGrant {
		switch op {
		case write, barrier, flush:
			for _, s := range shot.Segs {
				page := before[s.Gref]
				if page == nil {
					page = make([]byte, blkif.PageSize)
				}
				data = append(data, page[int(s.First)*blkif.SectorSize:(int(s.Last)+1)*blkif.SectorSize]...)
			}
		case blkif.OpDiscard:
			data = make([]byte, shot.Sectors()*blkif.SectorSize)
		}
	}
	from, to := 0, 0 // sectors that the request may have changed
	if len(data) > 0 {
		from = int(shot.Request.Sector)
		to = from + len(data)/blkif.SectorSize
	}
	must := reason == blkif.ReasonNone && op != blkif.OpDiscard
	for sector := range len(got) / blkif.SectorSize {
		at := sector * blkif.SectorSize
		is, want := got[at:at+blkif.SectorSize], p.disk[at:]
		if sector >= from && sector < to {
			also := data[(sector-from)*blkif.SectorSize:]
			if _, other := differ(is, also); !other {
				continue
			}
			if must {
				want = also
			}
		}
		if i, ok := differ(is, want); ok {
			return fmt.Errorf("byte %d of sector %d is %#x, want %#x", i, sector, is[i], want[i])
		}
	}
	p.disk = got
	return nil
}

// readDisk reads the whole disk with direct requests of whole pages.
func (p *Player) readDisk(ctx context.Context) ([]byte, error) {
	size := int(p.w.Limits.Sectors) * blkif.SectorSize
	disk := make([]byte, 0, size)
	for len(disk) < size {
		n := min((size-len(disk)+blkif.PageSize-1)/blkif.PageSize, blkif.MaxDirect)
		segs := whole(p.w.Pages[:n]...)
		if odd := size % blkif.PageSize; odd != 0 && len(disk)+n*blkif.PageSize > size {
			segs[n-1].Last = uint8(odd/blkif.SectorSize - 1)
		}
		shot := direct(read, uint64(len(disk)/blkif.SectorSize), segs)
		a, err := p.ask(ctx, &shot)
		if err != nil {
			return nil, err
		}
		if a.Status != blkif.StatusOkay {
			return nil, fmt.Errorf("the disk cannot be read: status %v at byte %d", a.Status, len(disk))
		}
		for i, s := range segs {
			disk = append(disk, p.w.Pages[i].Mem[:(int(s.Last)+1)*blkif.SectorSize]...)
		}
	}
	return disk, nil
}
