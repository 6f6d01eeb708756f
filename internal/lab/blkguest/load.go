// SPDX-License-Identifier: Apache-2.0

package blkguest

import (
	"context"
	"errors"
	"sync"

	"github.com/netbackd/netbackd/internal/lab/blkfront"
	"github.com/netbackd/netbackd/internal/lab/diskcheck"
)

var (
	errBusy      = errors.New("a load is under way")
	errNoQueues  = errors.New("the disk is not connected")
	errCancelled = errors.New("the queues are gone")
)

// load is a load on all queues of a disk.
type load struct {
	cancel context.CancelCauseFunc
	ended  chan struct{} // closed when the fields below are set
	result diskcheck.Result
	err    error
}

// startLoad starts a load, which goes on while the disk's goroutine does other things. It is
// on that goroutine, as endLoad is.
func (d *disk) startLoad(l diskcheck.Load) (*load, error) {
	if d.load != nil {
		return nil, errBusy
	}
	if len(d.runners) == 0 {
		return nil, errNoQueues
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	w := &load{cancel: cancel, ended: make(chan struct{})}
	d.load = w
	var all sync.WaitGroup
	var mu sync.Mutex // guards the fields of w
	for i, q := range d.dev.Queues() {
		all.Go(func() {
			res, err := d.runners[i].Run(ctx, q, l)
			if err != nil && context.Cause(ctx) == errCancelled {
				err = nil // res has the requests without an answer
			}
			mu.Lock()
			defer mu.Unlock()
			w.result.Add(res)
			w.err = errors.Join(w.err, err)
		})
	}
	go func() {
		all.Wait()
		close(w.ended)
	}()
	return w, nil
}

// endLoad ends the load under way at once.
func (d *disk) endLoad() {
	if d.load == nil {
		return
	}
	d.load.cancel(errCancelled)
	<-d.load.ended
	d.load = nil
}

// stopLoad ends the load under way once all its requests are answered.
func (d *disk) stopLoad() *load {
	w := d.load
	if w == nil {
		return nil
	}
	for i, q := range d.dev.Queues() {
		d.runners[i].Stop()
		q.Wake()
	}
	return w
}

// runLoad runs a load to its end.
func (d *disk) runLoad(ctx context.Context, l diskcheck.Load) (res diskcheck.Result, err error) {
	var w *load
	err = d.do(ctx, func() (err error) {
		w, err = d.startLoad(l)
		return err
	})
	if err != nil {
		return res, err
	}
	select {
	case <-w.ended:
	case <-ctx.Done():
		w.cancel(ctx.Err())
		<-w.ended
	}
	err = d.do(context.WithoutCancel(ctx), func() error {
		if d.load == w {
			d.load = nil
		}
		return nil
	})
	if errors.Is(err, errDiskGone) {
		err = nil
	}
	return w.result, errors.Join(w.err, err)
}

// request submits one request and waits for its answer.
func request(ctx context.Context, q *blkfront.Queue, a *RequestArgs) (r RequestResult, err error) {
	req := blkfront.Request{Op: a.Op, Sector: a.Sector, NrSectors: a.NrSectors, Flag: a.Flag, Indirect: a.Indirect}
	var pages []blkfront.Page
	defer func() { q.ReturnPages(pages) }()
	for _, s := range a.Segments {
		g := blkfront.Segment{Gref: s.Gref, First: s.First, Last: s.Last}
		if s.Gref == 0 {
			p, ok := q.TakePages(pages, 1, true)
			if !ok {
				return r, blkfront.ErrFull
			}
			pages = p
			page := pages[len(pages)-1]
			clear(page.Mem)
			copy(page.Mem, s.Data)
			g.Gref = page.Gref
		}
		req.Segs = append(req.Segs, g)
	}
	if a.Raw != nil {
		err = q.SubmitRaw(a.Raw)
	} else {
		_, err = q.Submit(&req)
	}
	if err != nil {
		return r, err
	}
	if err := q.Push(); err != nil {
		return r, err
	}
	for {
		answer, ok, err := q.Poll()
		if err != nil {
			return r, err
		}
		if ok {
			r.Op, r.Status = answer.Op, answer.Status
			break
		}
		if err := q.Wait(ctx); err != nil {
			return r, err
		}
	}
	for _, p := range pages {
		r.Pages = append(r.Pages, append([]byte(nil), p.Mem...))
	}
	return r, nil
}
