// SPDX-License-Identifier: Apache-2.0

package hostile

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"

	"github.com/netbackd/netbackd/internal/lab/blkfront"
	"github.com/netbackd/netbackd/internal/lab/xenfront"
	"github.com/netbackd/netbackd/pkg/blkif"
	"github.com/netbackd/netbackd/pkg/xen"
)

// pageSectors is the number of sectors of a page.
const pageSectors = blkif.PageSize / blkif.SectorSize

// disk is a frontend of a vbd. Each queue belongs to a goroutine of its load.
type disk struct {
	*blkfront.Device
	closing func() error
	pages   [][]blkfront.Page // of each queue, all that there are
}

// newDisk makes the frontend of a vbd and connects it.
func newDisk(ctx context.Context, args JoinArgs, v Vif) (_ *disk, err error) {
	d := &disk{}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.leave())
		}
	}()
	var host xenfront.Host
	if host, d.closing, err = xenfront.Open(ctx, args.Xen, v.Domid); err != nil {
		return d, err
	}
	cfg := blkfront.Config{
		Dir: fmt.Sprintf("device/vbd/%d", v.Devid), Queues: args.Queues, Persistent: args.Persistent,
		Indirect: 256, Pages: 512, Order: 4,
	}
	if d.Device, err = blkfront.Open(ctx, host, cfg); err != nil {
		return d, err
	}
	if err := d.Connect(ctx); err != nil {
		return d, err
	}
	for _, q := range d.Queues() {
		pages, ok := q.TakePages(nil, cfg.Pages, true)
		if !ok {
			return d, errors.New("a queue has too few pages")
		}
		d.pages = append(d.pages, pages)
	}
	return d, nil
}

func (d *disk) leave() (err error) {
	if d.Device != nil {
		err = d.Close()
	}
	if d.closing != nil {
		err = errors.Join(err, d.closing())
	}
	return err
}

// requests makes the requests of a load on one queue.
type requests struct {
	kind    Kind
	q       *blkfront.Queue
	pages   []blkfront.Page
	sectors uint64
	rnd     *rand.Rand
	n       uint64
	large   []blkfront.Segment // of a request of the largest size
}

// next puts a request into the ring.
func (r *requests) next() error {
	r.n++
	switch r.kind {
	case DiskBad:
		return r.bad()
	case DiskFlush:
		return r.submit(blkfront.Request{Op: blkif.OpFlush})
	case DiskDiscard:
		return r.submit(blkfront.Request{Op: blkif.OpDiscard, Sector: r.place(2048), NrSectors: 2048})
	case DiskWrites:
		return r.submit(blkfront.Request{Op: blkif.OpWrite, Sector: r.place(uint64(len(r.large)) * pageSectors), Segs: r.large})
	case DiskReads:
		segs := r.large[:min(len(r.large), 32)]
		return r.submit(blkfront.Request{Op: blkif.OpRead, Sector: r.place(uint64(len(segs)) * pageSectors), Segs: segs})
	}
	// DiskRandom, and DiskChurn, whose pages are never those of the last requests.
	op := blkif.OpRead
	if r.n%2 == 0 {
		op = blkif.OpWrite
	}
	p := r.pages[r.n%uint64(len(r.pages))]
	return r.submit(blkfront.Request{Op: op, Sector: r.place(pageSectors), Segs: []blkfront.Segment{{Gref: p.Gref, Last: pageSectors - 1}}})
}

func (r *requests) submit(q blkfront.Request) error {
	_, err := r.q.Submit(&q)
	return err
}

// place returns a random place for n sectors.
func (r *requests) place(n uint64) uint64 {
	return r.rnd.Uint64N((r.sectors-n)/pageSectors+1) * pageSectors
}

// bad puts a request that a backend refuses, of several kinds in turn.
func (r *requests) bad() error {
	seg := blkif.RawSegment{Gref: r.pages[0].Gref, Last: pageSectors - 1}
	q := blkif.Request{Op: blkif.OpRead, NrSegments: 1}
	q.Segs[0] = seg
	switch r.n % 4 {
	case 0: // behind the end
		q.Sector = r.sectors
	case 1: // of a page that was never granted
		q.Segs[0].Gref = xen.Gref(0xfffffff0)
	case 2: // the last sector before the first
		q.Segs[0].First, q.Segs[0].Last = 5, 3
	case 3: // more than a slot has room for
		q.NrSegments = blkif.MaxDirect + 1
	}
	return r.q.SubmitRaw(&q)
}

// parts returns a part for each queue, which keeps it full of requests.
func (d *disk) parts(args LoadArgs) (list []part) {
	for i, q := range d.Queues() {
		r := &requests{kind: args.Load, q: q, pages: d.pages[i], sectors: d.Offers().Sectors, rnd: rand.New(rand.NewPCG(1, uint64(i)))}
		r.large = blkfront.Whole(r.pages[:min(q.MaxSegments(), 256)])
		rate := args.Rate / float64(len(d.Queues()))
		list = append(list, func(ctx context.Context) (Strength, error) { return r.run(ctx, newPacer(rate)) })
	}
	return list
}

// run submits requests until ctx ends, and then waits for the answers.
func (r *requests) run(ctx context.Context, pace *pacer) (s Strength, err error) {
	for ctx.Err() == nil || r.q.Unanswered() > 0 {
		for {
			a, ok, err := r.q.Poll()
			if err != nil {
				return s, err
			}
			if !ok {
				break
			}
			s.Done++
			s.Slots++
			if a.Status != blkif.StatusOkay {
				s.Failed++
			}
		}
		s.Looks++
		if r.q.Unanswered() == 0 {
			s.Empty++
		}
		n := 0
		if ctx.Err() == nil {
			for room := pace.room(r.q.Free()); n < room; n++ {
				err := r.next()
				if errors.Is(err, blkfront.ErrFull) {
					break
				}
				if err != nil {
					return s, err
				}
			}
		}
		pace.did(n)
		if n > 0 {
			if err := r.q.Push(); err != nil {
				return s, err
			}
		}
		pause(look)
	}
	return s, nil
}
