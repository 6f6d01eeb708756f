// SPDX-License-Identifier: Apache-2.0

package vhostfront

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/vhostuser"
	"github.com/netbackd/netbackd/pkg/virtqueue"
)

// queue is a ring of either format at the back end.
type queue interface {
	Take(b *virtqueue.Batch, max int) (int, error)
	TakeFor(b *virtqueue.Batch, n uint32, max int) (int, error)
	Return(b *virtqueue.Batch, keep int)
	Publish(b *virtqueue.Batch) bool
	ArmFor(n int) (bool, error)
	Available() int
	Base() uint32
	SetMemory(m *virtqueue.Memory)
	SetLogging(l virtqueue.Logging)
}

// echo is a back end that returns each packet to its sender, on the same pair. Its faults are
// those of a bad back end.
type echo struct {
	fault string

	mu    sync.Mutex // guards all below
	table *vhostuser.Table
	log   *virtqueue.Log
	rings map[int]vhostuser.Ring
	qs    map[int]queue
	stops map[int]func()
}

func newEcho(fault string) *echo {
	return &echo{fault: fault, rings: map[int]vhostuser.Ring{}, qs: map[int]queue{}, stops: map[int]func(){}}
}

func (e *echo) SetFeatures(uint64) error   { return nil }
func (e *echo) SetStatus(uint8) error      { return nil }
func (e *echo) Reset() error               { return nil }
func (e *echo) SetMTU(uint16) error        { return nil }
func (e *echo) SendRARP(mac [6]byte) error { return nil }

func (e *echo) SetMemory(t *vhostuser.Table, rings []vhostuser.Ring) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.table = t
	for _, r := range rings {
		q, err := e.queue(r, e.qs[r.Index].Base())
		if err != nil {
			return err
		}
		e.rings[r.Index], e.qs[r.Index] = r, q
	}
	return nil
}

// queue makes a queue. Its caller holds the lock.
func (e *echo) queue(r vhostuser.Ring, base uint32) (q queue, err error) {
	c := r.Config(e.table)
	c.Base = base
	if r.Packed {
		q, err = virtqueue.NewPacked(c, r.PackedRings())
	} else {
		q, err = virtqueue.NewSplit(c, r.SplitRings())
	}
	if err == nil && e.fault != "log" {
		q.SetLogging(r.Logging(e.log))
	}
	return q, err
}

func (e *echo) StartRing(r vhostuser.Ring, t *vhostuser.Table, log *virtqueue.Log) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.table, e.log = t, log
	q, err := e.queue(r, r.Base)
	if err != nil {
		return err
	}
	e.rings[r.Index], e.qs[r.Index] = r, q
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return err
	}
	done := make(chan struct{})
	kick := r.Kick
	go func() {
		defer close(done)
		e.serve(r.Index, kick, stop)
	}()
	e.stops[r.Index] = func() {
		notify(stop)
		<-done
		unix.Close(stop)
	}
	return nil
}

func (e *echo) UpdateRing(r vhostuser.Ring) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.rings[r.Index] = r
	if e.fault != "log" {
		e.qs[r.Index].SetLogging(r.Logging(e.log))
	}
	return nil
}

func (e *echo) StopRing(i int) (uint32, error) {
	e.mu.Lock()
	stop := e.stops[i]
	e.mu.Unlock()
	stop()
	e.mu.Lock()
	defer e.mu.Unlock()
	base := e.qs[i].Base()
	if e.fault == "late call" && i == 0 {
		call := e.rings[i].Call
		time.AfterFunc(20*time.Millisecond, func() { vhostuser.Signal(call) })
	}
	if e.fault == "base" && i == 1 {
		base++
	}
	delete(e.qs, i)
	return base, nil
}

func (e *echo) SetLog(l *virtqueue.Log) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.log = l
	for i, q := range e.qs {
		r := e.rings[i]
		q.SetLogging(r.Logging(l))
	}
	return nil
}

// serve returns packets at each kick of either ring of a pair.
func (e *echo) serve(i, kick, stop int) {
	wait := []unix.PollFd{{Fd: int32(kick), Events: unix.POLLIN}, {Fd: int32(stop), Events: unix.POLLIN}}
	in, out := virtqueue.NewBatch(32), virtqueue.NewBatch(64)
	var b [8]byte
	for {
		if _, err := unix.Poll(wait, -1); err != nil && err != unix.EINTR {
			return
		}
		if wait[1].Revents != 0 {
			return
		}
		_, _ = unix.Read(kick, b[:])
		for e.pass(i, in, out) {
		}
	}
}

// pass moves packets and reports whether there are more.
func (e *echo) pass(i int, in, out *virtqueue.Batch) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	rx, tx := e.qs[i&^1], e.qs[i|1]
	if rx == nil || tx == nil {
		return false
	}
	n, err := tx.Take(in, 32)
	if err != nil {
		return false
	}
	for k := range n {
		if !e.deliver(rx, out, in.Readable(k)) {
			tx.Return(in, k)
			break
		}
	}
	blocked := in.Len() < n
	if rx.Publish(out) {
		vhostuser.Signal(e.rings[i&^1].Call)
	}
	if in.Len() > 0 && e.fault == "tx" {
		in.Readable(0)[0].Mem[3] ^= 1
	}
	if tx.Publish(in) {
		vhostuser.Signal(e.rings[i|1].Call)
	}
	if blocked {
		more, err := rx.ArmFor(rx.Available() + 1)
		return more && err == nil
	}
	more, err := tx.ArmFor(1)
	return more && err == nil
}

// deliver copies a packet into buffers.
func (e *echo) deliver(rx queue, out *virtqueue.Batch, pieces []virtqueue.Piece) bool {
	var p []byte
	for _, c := range pieces {
		p = append(p, c.Mem...)
	}
	first := out.Len()
	n, err := rx.TakeFor(out, uint32(len(p)), 64)
	if n == 0 || err != nil {
		return false
	}
	if e.fault == "flags" {
		p[0] = 2
	}
	binary.LittleEndian.PutUint16(p[virtqueue.NumBuffersOffset:], uint16(n))
	left := p
	for k := first; k < out.Len(); k++ {
		for _, c := range out.Writable(k) {
			left = left[copy(c.Mem, left):]
			if len(left) == 0 && e.fault == "behind" {
				c.Mem[len(c.Mem)-1]++
			}
		}
	}
	out.Spread(first, n, uint32(len(p)))
	return true
}

// backend is an echo behind a socket, until it is killed.
type backend struct {
	t    *testing.T
	path string
	echo *echo
	kill func()
}

const allFeatures = featCsum | featGuestCsum | featMTU | featGuestTSO4 | featGuestTSO6 | featHostTSO4 | featHostTSO6 |
	featMergeable | featStatus | featMQ | featLogAll | featIndirect | featEventIdx | featVersion1 | featPacked | featInOrder

// newBackend listens on a path, or connects to it.
func newBackend(t *testing.T, path string, client bool, fault string) *backend {
	t.Helper()
	b := &backend{t: t, path: path, echo: newEcho(fault)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	var ln *net.UnixListener
	if !client {
		var err error
		if ln, err = net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"}); err != nil {
			t.Fatal(err)
		}
	}
	go func() {
		defer close(done)
		c := accept(ctx, path, ln)
		if c == nil {
			return
		}
		err := vhostuser.NewBackend(c, vhostuser.BackendConfig{Features: allFeatures, ProtocolFeatures: vhostuser.ProtocolNet, Rings: 16}, b.echo).Serve(ctx)
		if err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("the session ends with %v", err)
		}
	}()
	b.kill = sync.OnceFunc(func() {
		cancel()
		if ln != nil {
			ln.Close()
		}
		<-done
	})
	t.Cleanup(b.kill)
	return b
}

// accept waits for a front end.
func accept(ctx context.Context, path string, ln *net.UnixListener) *net.UnixConn {
	if ln != nil {
		c, err := ln.AcceptUnix()
		if err != nil {
			return nil
		}
		return c
	}
	d := &Device{cfg: Config{Socket: path}}
	c, err := d.connect(ctx)
	if err != nil {
		return nil
	}
	return c
}
