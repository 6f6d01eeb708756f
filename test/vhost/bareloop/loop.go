// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/rawio"
	"github.com/netbackd/netbackd/pkg/vhostuser"
	"github.com/netbackd/netbackd/pkg/virtqueue"
)

// most bounds the packets that one turn moves in each direction.
const most = 64

// loop moves packets. It is the handler of the session, too.
type loop struct {
	tap   int
	calls []rawio.Call
	want  int // buffers to take before the TAP is read
	wake  int // an eventfd: the rings have changed

	mu    sync.Mutex
	rings [2]ring // guarded by mu
}

// ring is a ring that is started if queue is set.
type ring struct {
	vhostuser.Ring
	queue *virtqueue.Split
	batch *virtqueue.Batch
}

func newLoop(tapFD int) (*loop, error) {
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, err
	}
	return &loop{tap: tapFD, wake: wake, calls: make([]rawio.Call, most), want: most}, nil
}

// run moves packets for ever, and sleeps while there are none.
func (l *loop) run() {
	runtime.LockOSThread()
	var b [8]byte
	for {
		l.mu.Lock()
		moved := l.toTap() + l.toGuest()
		fds := []unix.PollFd{{Fd: int32(l.wake), Events: unix.POLLIN}, {Fd: -1}, {Fd: -1}}
		if tx := &l.rings[1]; tx.queue != nil && moved == 0 {
			more, err := tx.queue.Arm()
			if more && err == nil {
				moved++
			}
			fds[1] = unix.PollFd{Fd: int32(tx.Kick), Events: unix.POLLIN}
		}
		if l.rings[0].queue != nil {
			fds[2] = unix.PollFd{Fd: int32(l.tap), Events: unix.POLLIN}
		}
		l.mu.Unlock()
		if moved > 0 {
			continue
		}
		poll(fds)
		for _, f := range fds[:2] {
			if f.Fd >= 0 && f.Revents != 0 {
				_, _ = unix.Read(int(f.Fd), b[:])
			}
		}
	}
}

// toTap writes what the guest sends.
func (l *loop) toTap() int {
	r := &l.rings[1]
	if r.queue == nil {
		return 0
	}
	r.queue.Disarm()
	n, err := r.queue.Take(r.batch, most)
	if n == 0 || err != nil {
		return 0
	}
	for i := range n {
		p := r.batch.Readable(i)[0]
		l.calls[i] = rawio.Call{Addr: addressOf(p.Mem), Len: p.Len}
	}
	rawio.All(unix.SYS_WRITE, l.tap, l.calls[:n])
	r.publish()
	return n
}

// toGuest reads the TAP into buffers of the guest.
func (l *loop) toGuest() int {
	r := &l.rings[0]
	if r.queue == nil {
		return 0
	}
	n, err := r.queue.Take(r.batch, l.want)
	if n == 0 || err != nil {
		return 0
	}
	for i := range n {
		p := r.batch.Writable(i)[0]
		l.calls[i] = rawio.Call{Addr: addressOf(p.Mem), Len: p.Len}
	}
	got := rawio.Until(unix.SYS_READ, l.tap, l.calls[:n], 1<<30)
	for i := range got {
		virtqueue.PutNumBuffers(r.batch.Writable(i)[0].Mem, 1)
		r.batch.Chain(i).Written = uint32(l.calls[i].Res)
	}
	r.queue.Return(r.batch, got)
	if got > 0 {
		r.publish()
	}
	l.want = min(max(2*got, 4), most)
	return got
}

func (r *ring) publish() {
	if r.queue.Publish(r.batch) {
		_ = vhostuser.Signal(r.Call)
	}
}

// change runs f while no packet moves, and wakes the loop.
func (l *loop) change(f func() error) error {
	l.mu.Lock()
	err := f()
	l.mu.Unlock()
	_, _ = unix.Write(l.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	return err
}

// StartRing begins to serve a ring.
func (l *loop) StartRing(r vhostuser.Ring, t *vhostuser.Table, _ *virtqueue.Log) error {
	return l.change(func() error {
		q, err := virtqueue.NewSplit(r.Config(t), r.SplitRings())
		l.rings[r.Index] = ring{r, q, virtqueue.NewBatch(most)}
		return err
	})
}

// UpdateRing changes the descriptors of a ring.
func (l *loop) UpdateRing(r vhostuser.Ring) error {
	return l.change(func() error { l.rings[r.Index].Ring = r; return nil })
}

// StopRing ends the use of a ring.
func (l *loop) StopRing(index int) (base uint32, err error) {
	err = l.change(func() error {
		base = l.rings[index].queue.Base()
		l.rings[index] = ring{}
		return nil
	})
	return base, err
}

// SetMemory is refused while a ring is started.
func (l *loop) SetMemory(_ *vhostuser.Table, rings []vhostuser.Ring) error {
	if len(rings) > 0 {
		return errors.New("rings are started")
	}
	return nil
}

// The loop has no settings.

func (l *loop) SetFeatures(uint64) error    { return nil }
func (l *loop) SetLog(*virtqueue.Log) error { return nil }
func (l *loop) SetStatus(uint8) error       { return nil }
func (l *loop) Reset() error                { return nil }
func (l *loop) SetMTU(uint16) error         { return nil }
func (l *loop) SendRARP([6]byte) error      { return nil }
