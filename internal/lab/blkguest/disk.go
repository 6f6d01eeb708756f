// SPDX-License-Identifier: Apache-2.0

package blkguest

import (
	"context"
	"errors"
	"fmt"

	"github.com/netbackd/netbackd/internal/lab/blkcases"
	"github.com/netbackd/netbackd/internal/lab/blkfront"
	"github.com/netbackd/netbackd/internal/lab/diskcheck"
	"github.com/netbackd/netbackd/internal/lab/linerpc"
	"github.com/netbackd/netbackd/internal/lab/xenfront"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

var errDiskGone = errors.New("the disk is detached")

// maxKept bounds the violations that are described.
const maxKept = 64

// disk is a connected vbd with its model. Its goroutine, serve, owns all fields below jobs;
// others reach them through do. A load runs on goroutines of its own, one for each queue, which
// own the queues and the runners until it ends.
type disk struct {
	cfg  DiskConfig
	jobs chan func()
	done chan struct{}

	dev      *blkfront.Device
	model    *diskcheck.Model
	runners  []*diskcheck.Runner // one for each queue
	load     *load               // under way; nil: none
	player   *blkcases.Player    // of bad requests on the first queue; nil: none yet
	detached bool

	past       blkfront.Stats // of connections that have ended
	violations []string       // of these
}

func newDisk(ctx context.Context, host xenfront.Host, cfg DiskConfig) (*disk, error) {
	dev, err := blkfront.Open(ctx, host, cfg.Front)
	if err != nil {
		return nil, err
	}
	d := &disk{cfg: cfg, dev: dev, jobs: make(chan func()), done: make(chan struct{})}
	if s := dev.State(); s == xenbus.Initialising || s == xenbus.Unknown {
		err = dev.Connect(ctx)
	} else {
		err = dev.Reconnect(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, dev.Close())
	}
	d.model = diskcheck.NewModel(dev.Offers().Sectors, cfg.Seed)
	d.divide()
	return d, nil
}

// divide gives each queue a part of the disk.
func (d *disk) divide() {
	d.runners = nil
	n := uint64(len(d.dev.Queues()))
	cut := func(i uint64) uint64 {
		if i == n {
			return d.model.Sectors()
		}
		return d.model.Sectors() * i / n &^ 7
	}
	for i := range n {
		d.runners = append(d.runners, diskcheck.NewRunner(d.model, cut(i), cut(i+1), d.dev.Offers().SectorSize))
	}
}

// leave ends the load under way, whose requests get no answers any more, and keeps the
// counters of the queues.
func (d *disk) leave() {
	d.endLoad()
	for _, r := range d.runners {
		r.Abandon()
	}
	if d.player != nil {
		_ = d.player.Close() // of pages that nothing reports about
		d.player = nil
	}
	for _, q := range d.dev.Queues() {
		d.past.Add(q.Stats())
		d.keepViolations(q)
	}
	d.runners = nil
}

func (d *disk) keepViolations(q *blkfront.Queue) {
	for _, v := range q.Violations() {
		if len(d.violations) < maxKept {
			d.violations = append(d.violations, v.Error())
		}
	}
}

// again leaves the queues and connects by the given method of the device.
func (d *disk) again(ctx context.Context, front *blkfront.Config, connect func(context.Context) error) error {
	d.leave()
	if front != nil {
		d.dev.SetConfig(*front)
	}
	if err := connect(ctx); err != nil {
		return err
	}
	d.divide()
	return nil
}

// serve runs jobs and follows the backend's states until ctx ends or the disk is detached.
func (d *disk) serve(ctx context.Context) {
	defer close(d.done)
	changes := d.dev.Changes()
	for {
		select {
		case <-ctx.Done():
			d.leave()
			_ = d.dev.Close() // the process ends, which frees everything
			return
		case job := <-d.jobs:
			job()
			if d.detached {
				return
			}
		case _, ok := <-changes:
			if !ok {
				changes = nil // the connection to xenstore has ended
				continue
			}
			d.follow(ctx)
		}
		if changes != nil {
			changes = d.dev.Changes() // another one once the backend has moved
		}
	}
}

// follow closes the disk when the backend closes, as Linux does, even if it is in use. A
// failure shows in the disk's state.
func (d *disk) follow(ctx context.Context) {
	b, err := d.dev.BackendState(ctx)
	if err != nil || d.cfg.Stubborn || d.dev.State() != xenbus.Connected || b != xenbus.Closing && b != xenbus.Closed {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, linerpc.DefaultTimeout)
	defer cancel()
	d.leave()
	_ = d.dev.FinishClosing(ctx)
}

// do runs f on the disk's goroutine.
func (d *disk) do(ctx context.Context, f func() error) error {
	result := make(chan error, 1)
	select {
	case d.jobs <- func() { result <- f() }:
		return <-result
	case <-d.done:
		return errDiskGone
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (d *disk) disconnect(ctx context.Context) error {
	if d.dev.State() != xenbus.Connected {
		return nil
	}
	d.leave()
	return d.dev.Disconnect(ctx)
}

func (d *disk) info(ctx context.Context) (Info, error) {
	b, err := d.dev.BackendState(ctx)
	i := Info{
		Name: d.cfg.Name, State: d.dev.State(), Backend: b, Queues: len(d.dev.Queues()), MaxSegments: d.dev.MaxSegments(),
		Persistent: d.dev.Persistent(), Offers: d.dev.Offers(), Uncertain: d.model.Uncertain(),
	}
	if i.Queues > 0 {
		i.Slots = d.dev.Queues()[0].Size()
	}
	return i, err
}

// awaitSize waits until the backend says that the disk has this size.
func (d *disk) awaitSize(ctx context.Context, sectors uint64) error {
	if d.load != nil {
		return errBusy
	}
	for {
		if err := d.dev.Refresh(ctx); err != nil {
			return err
		}
		if d.dev.Offers().Sectors == sectors {
			d.model.Resize(sectors)
			d.divide()
			return nil
		}
		select {
		case <-d.dev.Changes():
		case <-ctx.Done():
			return fmt.Errorf("the disk has %d sectors, waited for %d: %w", d.dev.Offers().Sectors, sectors, ctx.Err())
		}
	}
}

func (d *disk) stats() StatsResult {
	s := StatsResult{Total: d.past}
	s.Violations = append(s.Violations, d.violations...)
	if d.load != nil {
		return s // the queues belong to it
	}
	for _, q := range d.dev.Queues() {
		s.Queues = append(s.Queues, q.Stats())
		s.Total.Add(q.Stats())
		for _, v := range q.Violations() {
			s.Violations = append(s.Violations, v.Error())
		}
	}
	return s
}
