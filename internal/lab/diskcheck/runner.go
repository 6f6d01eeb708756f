// SPDX-License-Identifier: Apache-2.0

package diskcheck

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/netbackd/netbackd/internal/lab/blkfront"
	"github.com/netbackd/netbackd/pkg/blkif"
)

// ErrRefused is returned when the backend answered a request with an error that the load did
// not expect.
var ErrRefused = errors.New("diskcheck: the backend refused a request")

// Runner loads one queue with requests for a part of a disk. All methods but Stop belong
// to one goroutine.
type Runner struct {
	m        *Model
	from, to uint64 // the part, in sectors
	unit     uint64 // logical block size in sectors
	gen      uint32 // of the last write
	pos      uint64 // of the next sequential request
	flight   []flight
	idle     []int // entries of flight
	stop     atomic.Bool
	rng      *rand.Rand
	sent     int // of the load under way
}

// flight is a request without an answer.
type flight struct {
	op       blkif.Op
	from, to uint64 // sectors
	gen      uint32
	pages    []blkfront.Page
	segs     []blkfront.Segment
}

// NewRunner makes a runner for the sectors from to to-1. blockSize is the logical block
// size of the disk in bytes; 0 means that of a sector.
func NewRunner(m *Model, from, to uint64, blockSize int) *Runner {
	return &Runner{m: m, from: from, to: to, unit: uint64(max(blockSize, SectorSize) / SectorSize), gen: m.newest(from, to), pos: from}
}

// Stop ends a load early: it sends no more requests and waits for the answers to those under
// way. The caller wakes the queue. It may be called from any goroutine, also before the load
// begins.
func (r *Runner) Stop() { r.stop.Store(true) }

// Unanswered returns the number of requests without an answer.
func (r *Runner) Unanswered() int { return len(r.flight) - len(r.idle) }

// Abandon gives up the requests without an answer, whose queue is gone. What they wrote may
// be on the disk or not.
func (r *Runner) Abandon() {
	for i := range r.flight {
		f := &r.flight[i]
		if f.op != noOp {
			r.uncertain(f)
		}
	}
	r.flight, r.idle = nil, nil
}

// noOp marks an entry without a request.
const noOp blkif.Op = 0xff

// Fill writes all sectors of the part in ascending order.
func (r *Runner) Fill(ctx context.Context, q *blkfront.Queue, l Load) (Result, error) {
	l.Once, l.Reads, l.Flushes, l.Barriers, l.Discards = true, 0, 0, 0, 0
	return r.Run(ctx, q, l)
}

// ScanLoad returns the load that reads and checks all sectors once.
func ScanLoad() Load { return Load{Once: true, Reads: 100, Depth: 4, MinSegments: 64} }

// Scan reads and checks all sectors of the part in ascending order.
func (r *Runner) Scan(ctx context.Context, q *blkfront.Queue) error {
	_, err := r.Run(ctx, q, ScanLoad())
	return err
}

// Run loads a queue. If ctx ends, requests may be left without an answer: a later Run on the
// same queue takes their answers, too.
func (r *Runner) Run(ctx context.Context, q *blkfront.Queue, l Load) (res Result, err error) {
	l.Depth = min(max(l.Depth, 1), q.Size())
	l.MinSegments = max(l.MinSegments, 1)
	l.MaxSegments = max(l.MaxSegments, l.MinSegments)
	r.rng = rand.New(rand.NewPCG(l.Seed, r.from))
	r.sent = 0
	if l.Once {
		r.pos = r.from
	}
	before := q.Stats()
	begin := time.Now()
	defer func() {
		res.Took = time.Since(begin)
		res.Stats = since(q.Stats(), before)
		res.Unanswered = r.Unanswered()
		r.stop.Store(false)
	}()
	for {
		room := true
		wait := r.early(&l, begin)
		for room && wait <= 0 && r.Unanswered() < l.Depth && r.more(&l, begin) {
			if room, err = r.submit(q, &l); err != nil {
				return res, err
			}
			wait = r.early(&l, begin)
		}
		if err := q.Push(); err != nil {
			return res, err
		}
		n, err := r.reap(q, &l, &res)
		if err != nil {
			return res, err
		}
		if n > 0 {
			continue
		}
		if r.Unanswered() == 0 && (wait <= 0 || !r.more(&l, begin)) {
			if r.more(&l, begin) {
				return res, fmt.Errorf("diskcheck: no room for a request of %d segments", l.MaxSegments)
			}
			return res, nil
		}
		if err := r.wait(ctx, q, wait); err != nil {
			return res, err
		}
	}
}

// early returns the time until the next request is due; 0 or less: it is.
func (r *Runner) early(l *Load, begin time.Time) time.Duration {
	if l.Rate <= 0 {
		return 0
	}
	return time.Duration(float64(r.sent)/l.Rate*float64(time.Second)) - time.Since(begin)
}

// wait waits for an answer, and if limit is above 0 for so long at most.
func (r *Runner) wait(ctx context.Context, q *blkfront.Queue, limit time.Duration) error {
	if limit <= 0 {
		return q.Wait(ctx)
	}
	until, end := context.WithTimeout(ctx, limit)
	defer end()
	if err := q.Wait(until); err != nil && until.Err() == nil {
		return err
	}
	return ctx.Err()
}

// more reports whether the load goes on.
func (r *Runner) more(l *Load, begin time.Time) bool {
	switch {
	case r.stop.Load(), l.Requests > 0 && r.sent >= l.Requests, l.Duration > 0 && time.Since(begin) >= l.Duration:
		return false
	case l.Once:
		return r.pos < r.to
	}
	return true
}

// submit puts the next request into the ring. It reports false if there is no room, or if a
// request under way is in the place of a sequential one.
func (r *Runner) submit(q *blkfront.Queue, l *Load) (ok bool, err error) {
	if q.Free() == 0 {
		return false, nil
	}
	op := r.choose(l)
	i := r.entry()
	f := &r.flight[i]
	*f = flight{op: op, pages: f.pages[:0], segs: f.segs[:0]}
	req := blkfront.Request{Op: op, User: uint64(i)}
	if op == blkif.OpFlush || op == blkif.OpBarrier && r.rng.IntN(4) == 0 {
		f.segs = nil
	} else if ok = r.place(q, l, f); !ok {
		r.release(i)
		return false, nil
	}
	req.Sector, req.Segs = f.from, f.segs
	if op == blkif.OpDiscard {
		req.NrSectors, req.Segs = f.to-f.from, nil
	}
	r.prepare(l, f)
	_, err = q.Submit(&req)
	if err != nil {
		q.ReturnPages(f.pages)
		r.release(i)
		if errors.Is(err, blkfront.ErrFull) {
			return false, nil
		}
		return false, err
	}
	if l.Sequential || l.Once {
		r.pos = max(r.pos, f.to)
	}
	r.sent++
	return true, nil
}

// choose chooses an operation.
func (r *Runner) choose(l *Load) blkif.Op {
	x := r.rng.IntN(100)
	for _, k := range []struct {
		share int
		op    blkif.Op
	}{{l.Reads, blkif.OpRead}, {l.Flushes, blkif.OpFlush}, {l.Barriers, blkif.OpBarrier}, {l.Discards, blkif.OpDiscard}} {
		if x -= k.share; x < 0 {
			return k.op
		}
	}
	return blkif.OpWrite
}

func (r *Runner) entry() int {
	if n := len(r.idle); n > 0 {
		i := r.idle[n-1]
		r.idle = r.idle[:n-1]
		return i
	}
	r.flight = append(r.flight, flight{})
	return len(r.flight) - 1
}

func (r *Runner) release(i int) {
	f := &r.flight[i]
	*f = flight{op: noOp, pages: f.pages[:0], segs: f.segs[:0]}
	r.idle = append(r.idle, i)
}

// place chooses the segments of a request and the sectors on the disk.
func (r *Runner) place(q *blkfront.Queue, l *Load, f *flight) bool {
	limit := q.MaxSegments()
	if l.Direct || f.op == blkif.OpBarrier { // barriers are never indirect
		limit = blkif.MaxDirect
	}
	segs := min(l.MinSegments+r.rng.IntN(l.MaxSegments-l.MinSegments+1), limit)
	if l.Once {
		segs = min(segs, int((r.to-r.pos+7)/8))
	}
	sectors := uint64(0)
	for range segs {
		s := blkfront.Segment{First: 0, Last: 7}
		if l.Parts && r.unit < 8 {
			u := int(r.unit)
			n := 1 + r.rng.IntN(8/u)
			s.First = uint8(u * r.rng.IntN(8/u-n+1))
			s.Last = s.First + uint8(u*n) - 1
		}
		if l.Once {
			s.Last = min(s.Last, s.First+uint8(min(r.to-r.pos-sectors, 8))-1)
		}
		sectors += uint64(s.Last-s.First) + 1
		f.segs = append(f.segs, s)
		if l.Once && r.pos+sectors == r.to {
			break
		}
	}
	if !r.locate(l, f, sectors) {
		return false
	}
	if f.op == blkif.OpDiscard {
		return true
	}
	var ok bool
	if f.pages, ok = q.TakePages(f.pages, len(f.segs), f.op == blkif.OpRead); !ok {
		return false
	}
	for i := range f.segs {
		f.segs[i].Gref = f.pages[i].Gref
	}
	return true
}

// locate chooses sectors that no request under way has.
func (r *Runner) locate(l *Load, f *flight, sectors uint64) bool {
	if sectors > r.to-r.from {
		return false
	}
	room := r.to - r.from - sectors
	for range 16 {
		at := r.from + r.rng.Uint64N(room/r.unit+1)*r.unit
		if l.Once {
			at = r.pos
		} else if l.Sequential {
			if at = r.pos; at+sectors > r.to {
				at, r.pos = r.from, r.from
			}
		}
		if !r.busy(at, at+sectors) {
			f.from, f.to = at, at+sectors
			return true
		}
		if l.Sequential || l.Once {
			return false
		}
	}
	return false
}

func (r *Runner) busy(from, to uint64) bool {
	for i := range r.flight {
		f := &r.flight[i]
		if f.from < to && from < f.to {
			return true
		}
	}
	return false
}

// poison begins each sector of a page before a read, so that data of an earlier read is not
// taken for that of this one. It fills what the read must not touch.
const poison = 0xc5

// prepare writes the pattern of a write into its pages, or poisons those of a read.
func (r *Runner) prepare(l *Load, f *flight) {
	if l.Unchecked {
		return
	}
	if f.op == blkif.OpRead {
		for i, s := range f.segs {
			mem := f.pages[i].Mem
			if s.First > 0 || s.Last < 7 {
				for k := range mem {
					mem[k] = poison
				}
				continue
			}
			for k := 0; k < len(mem); k += SectorSize {
				le.PutUint64(mem[k:], poison)
			}
		}
		return
	}
	if f.op == blkif.OpDiscard {
		return
	}
	r.gen++
	f.gen = r.gen
	at := f.from
	for i, s := range f.segs {
		for k := int(s.First); k <= int(s.Last); k++ {
			fill(f.pages[i].Mem[k*SectorSize:], r.m.seed, at, f.gen)
			at++
		}
	}
}

// reap takes all answers that are there.
func (r *Runner) reap(q *blkfront.Queue, l *Load, res *Result) (n int, err error) {
	for {
		a, ok, err := q.Poll()
		if err != nil || !ok {
			return n, err
		}
		n++
		f := &r.flight[a.User]
		res.Requests++
		res.Latency.count(a.Took)
		if f.op != blkif.OpDiscard && a.Status == blkif.StatusOkay {
			res.Bytes += (f.to - f.from) * SectorSize
		}
		if a.Status != blkif.StatusOkay {
			res.Errors++
			if !l.Refused {
				err = fmt.Errorf("%w: %v of sectors %d to %d: %v", ErrRefused, f.op, f.from, f.to, a.Status)
			}
		}
		if !l.Unchecked {
			err = errors.Join(err, r.settle(f, a.Status))
		}
		q.ReturnPages(f.pages)
		r.release(int(a.User))
		if err != nil {
			return n, err
		}
	}
}

// settle updates the model by an answer, and checks what was read.
func (r *Runner) settle(f *flight, s blkif.Status) error {
	switch {
	case f.from == f.to:
		return nil
	case f.op == blkif.OpRead:
		if s != blkif.StatusOkay {
			return nil
		}
		return r.verify(f)
	case s != blkif.StatusOkay, f.op == blkif.OpDiscard:
		r.uncertain(f)
		return nil
	}
	for at := f.from; at < f.to; at++ {
		r.m.set(at, f.gen)
	}
	return nil
}

// uncertain says that a write or discard may have happened, for each of its sectors.
func (r *Runner) uncertain(f *flight) {
	if f.op == blkif.OpRead {
		return
	}
	for at := f.from; at < f.to; at++ {
		r.m.add(at, f.gen)
	}
}

// verify checks every byte of the pages of a read.
func (r *Runner) verify(f *flight) error {
	at := f.from
	for i, s := range f.segs {
		mem := f.pages[i].Mem
		for k := range 8 {
			b := mem[k*SectorSize : (k+1)*SectorSize]
			if k >= int(s.First) && k <= int(s.Last) {
				if err := r.m.check(at, b); err != nil {
					return err
				}
				at++
				continue
			}
			for j, c := range b {
				if c != poison {
					return fmt.Errorf("diskcheck: a read of sectors %d to %d wrote byte %d of a page outside of its segment", f.from, f.to, k*SectorSize+j)
				}
			}
		}
	}
	return nil
}

// since returns the counters that were added. Slowest is that of both.
func since(now, before blkfront.Stats) blkfront.Stats {
	now.Requests -= before.Requests
	now.Indirect -= before.Indirect
	now.Segments -= before.Segments
	now.Bytes -= before.Bytes
	now.Answers -= before.Answers
	now.Errors -= before.Errors
	now.Reordered -= before.Reordered
	now.Notifies -= before.Notifies
	now.NotifiesHeld -= before.NotifiesHeld
	now.Wakeups -= before.Wakeups
	now.Violations -= before.Violations
	now.Latency -= before.Latency
	return now
}
