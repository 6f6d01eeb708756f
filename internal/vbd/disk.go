// SPDX-License-Identifier: Apache-2.0

package vbd

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"

	"github.com/netbackd/netbackd/internal/disk"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// diskState is the disk of a vbd. It is opened by another goroutine, since that may wait
// for its lock, or for a file server. The vbd keeps it open as long as the toolstack wants
// the device, also while no frontend is connected: the lock keeps other programs out.
type diskState struct {
	open   *disk.Disk // nil: it is not open
	target target     // of open, or of the last attempt

	cancel  context.CancelFunc // ends the attempt that runs; nil: none does
	failed  bool               // the last attempt, with target
	retryAt time.Time          // of the next attempt
	opened  chan openEvent     // from the goroutine of the attempt

	poll *time.Ticker // looks at the size

	openFile func(context.Context, disk.Options) (*disk.Disk, error) // disk.Open, except in tests
}

// openEvent is the progress of an attempt to open the disk.
type openEvent struct {
	disk    *disk.Disk
	err     error
	waiting *disk.Holder // the attempt waits for the lock that this process has; nil: it has ended
}

func newDiskState() diskState {
	d := diskState{opened: make(chan openEvent), poll: time.NewTicker(time.Hour), openFile: disk.Open}
	d.poll.Stop()
	return d
}

// Times between two attempts to open a disk. Another program may free it any time, and a
// file may appear.
const (
	reopenLocked = time.Second
	reopenFailed = 5 * time.Second

	// lockWait bounds the wait for the lock in one attempt. A predecessor's operations
	// that are still under way keep it.
	lockWait = 30 * time.Second
)

// diskPhase returns the phase of the disk. An open disk that the toolstack has replaced
// since counts as none, until a frontend is connected to it.
func (v *Vbd) diskPhase() diskPhase {
	d := &v.disk
	switch {
	case d.cancel != nil:
		return diskOpening
	case d.open != nil && (d.target == v.nodes.target || v.conn.busy()):
		return diskOpen
	case d.open == nil && d.failed && d.target == v.nodes.target && time.Now().Before(d.retryAt):
		return diskFailed
	}
	return diskNone
}

// openDisk begins to open the disk that the toolstack has named.
func (v *Vbd) openDisk(ctx context.Context) error {
	v.closeDisk()
	d := &v.disk
	d.target, d.failed = v.nodes.target, false
	o, err := d.target.options(v.cfg.Cache)
	if err != nil {
		v.diskFailed(ctx, err)
		return errWait
	}
	if v.own == xenbus.Connected {
		o.SectorSize = v.nodes.shown.sectorSize // the guest may use parts of larger ones
	}
	attempt, cancel := context.WithCancel(ctx)
	d.cancel = cancel
	send := func(e openEvent) bool {
		select {
		case d.opened <- e:
			return true
		case <-attempt.Done():
			return false
		}
	}
	o.Waiting = func(h disk.Holder) { send(openEvent{waiting: &h}) }
	open := d.openFile
	go func() {
		lock, done := context.WithTimeout(attempt, lockWait)
		defer done()
		x, err := open(lock, o)
		if !send(openEvent{disk: x, err: err}) && x != nil {
			_ = x.Close()
		}
	}()
	return nil
}

// diskOpened handles the progress of an attempt to open the disk.
func (v *Vbd) diskOpened(ctx context.Context, e openEvent) {
	d := &v.disk
	if e.waiting != nil {
		v.log.Warn("disk is locked, waiting", zap.Stringer("holder", e.waiting))
		return
	}
	d.endAttempt()
	if e.err != nil {
		v.diskFailed(ctx, e.err)
		return
	}
	d.open = e.disk
	direct, why := e.disk.Direct()
	v.log.Info("disk opened", zap.String("path", d.target.path()), zap.Uint64("sectors", e.disk.Sectors()),
		zap.Bool("read_only", e.disk.ReadOnly()), zap.Bool("direct", direct), zap.String("buffered_because", why))
	if v.errorNode.Text() != "" {
		v.clearError(ctx)
	}
	d.poll.Reset(v.cfg.Poll)
}

// diskFailed records that the disk could not be opened, and sets the alarm for the next
// attempt.
func (v *Vbd) diskFailed(ctx context.Context, err error) {
	v.reportError(ctx, "open disk failed", err)
	after := reopenFailed
	var e *disk.Error
	if errors.As(err, &e) && (e.Reason == disk.ReasonBusy || e.Reason == disk.ReasonInUse) {
		after = reopenLocked
	}
	v.disk.failed, v.disk.retryAt = true, time.Now().Add(after)
	v.alarm.Set(v.disk.retryAt)
}

// retryNow ends the wait for the next attempt.
func (d *diskState) retryNow() { d.retryAt = time.Time{} }

// endAttempt ends the attempt that runs, if one does.
func (d *diskState) endAttempt() {
	if d.cancel != nil {
		d.cancel()
		d.cancel = nil
	}
}

// closeDisk closes the disk, or ends the attempt to open it. If a connection that is being
// closed still uses the disk, its end closes it.
func (v *Vbd) closeDisk() {
	d := &v.disk
	d.endAttempt()
	d.poll.Stop()
	d.failed = false
	if d.open == nil {
		return
	}
	x := d.open
	d.open = nil
	closed := make(chan struct{})
	ending := v.conn.ending
	go func() {
		if ending != nil {
			<-ending.data.Done()
		}
		if err := x.Close(); err != nil {
			v.log.Warn("close disk failed", zap.Error(err))
		}
		close(closed)
	}()
	if ending == nil || within(0, ending.data.Done()) {
		v.work.Turn().Aside(func() { within(closeWait, closed) })
	}
}

// closeWait bounds the wait for a file server, which may write what it has cached.
const closeWait = 2 * time.Second

// within waits until a channel is closed, for d at most, and reports whether it is.
func within(d time.Duration, closed <-chan struct{}) bool {
	select {
	case <-closed:
		return true
	default:
	}
	limit := time.NewTimer(d)
	defer limit.Stop()
	select {
	case <-closed:
		return true
	case <-limit.C:
		return false
	}
}

// resize reads the size of the disk again.
func (v *Vbd) resize() {
	d := v.disk.open
	if d == nil {
		return
	}
	changed, err := d.Refresh()
	if err != nil {
		v.log.Warn("size of the disk not read", zap.Error(err))
		return
	}
	if changed {
		v.log.Info("disk has another size", zap.Uint64("sectors", d.Sectors()))
		if c := v.conn.now; c != nil {
			c.data.Resize(d.Sectors())
		}
	}
}

// resized reports whether a connected frontend must be told the size of the disk.
func (v *Vbd) resized() bool {
	return v.disk.open != nil && v.nodes.shown.sectors != sectorsText(v.disk.open)
}
