// SPDX-License-Identifier: Apache-2.0

package vbd

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"go.uber.org/zap"

	"github.com/netbackd/netbackd/internal/blkengine"
	"github.com/netbackd/netbackd/internal/blkplane"
	"github.com/netbackd/netbackd/internal/rundir"
	"github.com/netbackd/netbackd/pkg/blkif"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// connState holds the connection of a vbd, and the one before that is still being closed.
// At most one of the two exists: requests of an ended connection may still be under way at
// the disk, and must not land on data that a later connection has written.
type connState struct {
	now    *connection // nil: there is none
	ending *connection // nil: there is none

	events       chan struct{} // a connection has notices, or has ended
	failingSince time.Time     // since when attempts to connect have failed
	totals       totals        // of connections that have ended
}

func newConnState() connState { return connState{events: make(chan struct{}, 1)} }

// busy reports whether a connection uses the disk.
func (s *connState) busy() bool { return s.now != nil || s.ending != nil }

// connection is a connected frontend with the data path that serves it.
type connection struct {
	frontend   *frontend
	persistent bool
	stamp      xen.Stamp // of the first ring; see ringStamp
	since      time.Time // when it was made
	data       blkengine.Conn
	notices    notices
	diskError  string // the last error of the disk

	over  chan struct{} // of a connection that is being closed: it has ended
	endBy time.Time     // of one that is being closed: a vbd that is detached waits no longer
}

// connPhase returns the phase of the connection. A connection that does not end, because the
// disk does not finish its operations, keeps others from being made. But it does not keep a
// toolstack waiting that removes the device.
func (v *Vbd) connPhase() connPhase {
	leaving := !v.nodes.online || v.guest.state == xenbus.Unknown
	switch {
	case v.conn.ending != nil && leaving && !time.Now().Before(v.conn.ending.endBy):
		return connNone
	case v.conn.ending != nil:
		return connEnding
	case v.conn.now == nil:
		return connNone
	case v.renewed():
		return connStale
	}
	return connLive
}

// renewed reports whether the frontend has other rings than those that are served. The new
// ones may have the same grefs and ports.
func (v *Vbd) renewed() bool {
	c, f := v.conn.now, v.guest.keys.frontend
	if f == nil {
		return false
	}
	return !f.same(c.frontend) || v.guest.stateIsNew && v.ringRenewed(f, c.stamp)
}

// ringStamp reads the stamp in the first ring that a frontend names. The data path writes a
// stamp into each ring that it serves. A frontend that initialises a ring clears it.
func (v *Vbd) ringStamp(f *frontend) (xen.Stamp, error) { return v.link.RingStamp(f.queues[0].refs[0]) }

// ringRenewed reports whether the first ring of a frontend is another one than that with a
// stamp: the frontend has connected anew.
func (v *Vbd) ringRenewed(f *frontend, stamp xen.Stamp) bool {
	now, err := v.ringStamp(f)
	return err == nil && !stamp.IsZero() && now != stamp
}

// connect connects to the rings that the frontend names.
func (v *Vbd) connect(ctx context.Context) error {
	if err := v.readKeys(ctx); err != nil {
		return err
	}
	k := &v.guest.keys
	switch {
	case k.err != nil:
		return v.giveUp(ctx, k.err)
	case k.frontend == nil:
		return errAgain
	}
	if v.conn.failingSince.IsZero() {
		v.conn.failingSince = time.Now()
	}
	c := &connection{frontend: k.frontend}
	// A frontend that was told otherwise by a predecessor ends its grants after each
	// request, and pages that stay mapped would be in its way.
	c.persistent = c.frontend.persistent && v.cfg.Persistent && (v.own != xenbus.Connected || v.nodes.shown.persistent)
	err := v.open(c)
	switch {
	case errors.Is(err, blkif.ErrOverrun):
		v.quarantine(ctx, err)
		v.block.stamp, _ = v.ringStamp(c.frontend)
		return errAgain
	case err != nil:
		return v.retryOrGiveUp(ctx, err)
	}
	c.since = time.Now()
	v.conn.now, v.conn.failingSince = c, time.Time{}
	v.saveRecord()
	if c.data.Adopted() {
		v.log.Info("connection adopted", zap.Int("queues", len(c.frontend.queues)))
	}
	c.data.Start()
	return nil
}

// open makes the data path of a connection, which serves nothing yet.
func (v *Vbd) open(c *connection) (err error) {
	c.data, err = v.link.Connect(v.engineConfig(c))
	if err != nil {
		return err
	}
	if c.stamp, err = v.ringStamp(c.frontend); err != nil {
		c.data.Close()
		// Nothing was started. A process that dies meanwhile may take as long as the disks of others.
		v.work.Turn().Aside(func() { <-c.data.Done() })
	}
	return err
}

// engineConfig returns the configuration of the data path.
func (v *Vbd) engineConfig(c *connection) *blkengine.Config {
	cfg := &blkengine.Config{
		Protocol:    c.frontend.protocol,
		Disk:        v.disk.open,
		ReadOnly:    v.disk.target.readOnly(),
		MaxSegments: v.nodes.offered.maxSegments,
		Persistent:  c.persistent,
		NoDiscard:   v.disk.target.noDiscard,
		Weight:      v.weight,
		Group:       v.nodes.group,
		Notice:      func(n blkplane.Notice) { c.notices.add(n); v.conn.wake() },
		Died:        func(err error) { c.notices.die(err); v.conn.wake() },
	}
	for i, q := range c.frontend.queues {
		cfg.Queues = append(cfg.Queues, blkplane.QueueConfig{Refs: q.refs, Port: q.port, Journal: v.journalPath(i)})
	}
	return cfg
}

// wake makes the vbd look at its connections.
func (s *connState) wake() {
	select {
	case s.events <- struct{}{}:
	default:
	}
}

// disconnect begins to end the connection. It lets the requests that were begun end, for a
// bounded time, and answers them. Further steps wait for the end; see connEnding.
func (v *Vbd) disconnect() {
	c := v.conn.now
	if c == nil {
		return
	}
	v.conn.now, v.conn.ending = nil, c
	c.endBy = time.Now().Add(v.cfg.Drain)
	c.over = make(chan struct{})
	if v.block.phase() == blockQuarantined {
		c.data.Close()
	}
	go c.end(v.cfg.Drain, &v.conn)
	v.alarm.Set(c.endBy.Add(time.Millisecond))
	v.checkEnded()
}

// end ends a connection. It runs in a goroutine of its own.
func (c *connection) end(drain time.Duration, s *connState) {
	within(drain, c.data.Drain()) // the requests that remain end late
	c.data.Close()
	<-c.data.Done()
	close(c.over)
	s.wake()
}

// checkEnded forgets a connection that has ended.
func (v *Vbd) checkEnded() {
	c := v.conn.ending
	if c == nil {
		return
	}
	select {
	case <-c.over:
	default:
		return
	}
	v.conn.ending = nil
	v.conn.totals.add(c.data)
	// A quarantined guest may be allowed to continue with its rings, whose requests only
	// the journals know.
	if v.block.phase() != blockQuarantined {
		v.forgetConnection()
	}
	v.saveRecord()
	v.log.Info("disconnected")
}

// checkDied handles the death of the process of a connection. The vbd does what a successor of
// a killed daemon does: it opens the disk anew, whose lock is free when the operations of the
// dead process have ended, and connects to the rings again, whose journals stay.
func (v *Vbd) checkDied() {
	if c := v.conn.ending; c != nil && c.notices.death() != nil {
		<-c.over // at once: the connection has ended
		v.checkEnded()
		v.closeDisk()
	}
	c := v.conn.now
	if c == nil {
		return
	}
	err := c.notices.death()
	if err == nil {
		return
	}
	v.log.Warn("disk process died; connecting again", zap.Error(err))
	v.conn.totals.add(c.data)
	v.conn.now, v.predecessor.Connection = nil, c.stamp
	v.closeDisk()
}

// stopWait bounds the wait for requests in flight when the daemon ends. Those that remain
// are in the journals, and the lock of the disk keeps a successor from starting them again
// before they have ended.
const stopWait = 2 * time.Second

// stop ends the connection when the daemon ends. Its journals stay, and the record names it.
func (v *Vbd) stop() {
	c := v.conn.now
	if c == nil {
		return
	}
	v.work.Turn().Aside(func() {
		within(stopWait, c.data.Drain())
		c.data.Close()
		within(stopWait, c.data.Done())
	})
	v.saveRecord()
	v.conn.now, v.conn.ending = nil, c
}

// journalPath returns the path of the journal of a queue. It is empty if there is no run
// directory.
func (v *Vbd) journalPath(queue int) string {
	if v.cfg.RunDir == "" {
		return ""
	}
	return filepath.Join(v.cfg.RunDir, journalName(v.cfg.ID, queue))
}

// journalName returns the name of the file with a queue's journal.
func journalName(id xenbus.DeviceID, queue int) string { return fmt.Sprintf("ring-%v-%d", id, queue) }

// forgetConnection removes what is kept of a connection that has ended.
func (v *Vbd) forgetConnection() {
	v.predecessor.Connection = xen.Stamp{}
	if v.cfg.RunDir == "" {
		return
	}
	for i := range max(v.nodes.offered.maxQueues, v.cfg.MaxQueues) { // a predecessor may have offered more
		if err := rundir.Remove(v.journalPath(i)); err != nil {
			v.log.Warn("file not removed", zap.Error(err))
		}
	}
}
