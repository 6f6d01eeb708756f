// SPDX-License-Identifier: Apache-2.0

package virtfront

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/vhostuser"
	"github.com/netbackd/netbackd/pkg/virtqueue"
	"github.com/netbackd/netbackd/pkg/xen"
)

// Listen makes a socket for a back end.
func Listen(path string) (*net.UnixListener, error) {
	return net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
}

// RunEcho is a back end without a network, which sends each frame back. It serves one front
// end, closes l, and tests memory of all kinds with nothing of netbackd but its packages.
func RunEcho(ctx context.Context, l *net.UnixListener) error {
	defer l.Close() // also removes the socket
	stopped := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stopped()
	c, err := l.AcceptUnix()
	if err != nil {
		return errors.Join(err, ctx.Err())
	}
	stop, err := newEvent()
	if err != nil {
		return errors.Join(err, c.Close())
	}
	defer func() { _ = stop.close() }()
	arena, err := gntdev.NewArena(1 << 16)
	if err != nil {
		return errors.Join(err, c.Close())
	}
	defer func() { _ = arena.Close() }()
	h := &echo{stop: stop, arena: arena}
	return vhostuser.NewBackend(c, vhostuser.BackendConfig{
		Features:         required | FeatureEventIdx | FeatureAccessPlatform | FeaturePacked,
		ProtocolFeatures: vhostuser.ProtocolNet | vhostuser.ProtocolXenMmap,
		Rings:            2,
	}, h).Serve(ctx)
}

// device has the methods that both formats have.
type device interface {
	Take(b *virtqueue.Batch, most int) (int, error)
	TakeFor(b *virtqueue.Batch, n uint32, most int) (int, error)
	Publish(b *virtqueue.Batch) (notify bool)
	Arm() (more bool, err error)
	Base() uint32
}

// echo is a handler that serves both rings with one goroutine, while both are started.
type echo struct {
	table   *vhostuser.Table
	rings   [2]vhostuser.Ring
	queues  [2]device
	fetch   [2]*vhostuser.Fetcher
	running bool
	stop    event
	done    chan error
	arena   *gntdev.Arena
}

func (h *echo) SetFeatures(uint64) error    { return nil }
func (h *echo) SetLog(*virtqueue.Log) error { return nil }
func (h *echo) SetStatus(uint8) error       { return nil }
func (h *echo) Reset() error                { return nil }
func (h *echo) SetMTU(uint16) error         { return nil }
func (h *echo) SendRARP([6]byte) error      { return nil }

func (h *echo) SetMemory(t *vhostuser.Table, rings []vhostuser.Ring) error {
	if len(rings) > 0 {
		return errors.New("rings are started")
	}
	h.table = t
	return nil
}

func (h *echo) StartRing(r vhostuser.Ring, t *vhostuser.Table, _ *virtqueue.Log) (err error) {
	i := r.Index
	c := r.Config(t)
	if h.fetch[i], err = vhostuser.NewFetcher(t); err != nil {
		return err
	}
	c.Fetcher = h.fetch[i]
	if r.Packed {
		h.queues[i], err = virtqueue.NewPacked(c, r.PackedRings())
	} else {
		h.queues[i], err = virtqueue.NewSplit(c, r.SplitRings())
	}
	if err != nil {
		return errors.Join(err, h.fetch[i].Close())
	}
	h.rings[i] = r
	h.run()
	return nil
}

// run starts to serve the rings if both are there.
func (h *echo) run() {
	if h.queues[rxRing] != nil && h.queues[txRing] != nil {
		h.running, h.done = true, make(chan error, 1)
		h.stop.clear()
		go func() { h.done <- h.serve() }()
	}
}

// halt ends what run has started. The error of a ring is the guest's fault, so it is only
// reported.
func (h *echo) halt() {
	if !h.running {
		return
	}
	h.stop.signal()
	if err := <-h.done; err != nil {
		fmt.Fprintln(os.Stderr, "echo:", err)
	}
	h.running = false
}

func (h *echo) UpdateRing(r vhostuser.Ring) error {
	h.halt()
	h.rings[r.Index] = r
	h.run()
	return nil
}

func (h *echo) StopRing(i int) (uint32, error) {
	h.halt()
	base := h.queues[i].Base()
	h.queues[i] = nil
	return base, h.fetch[i].Close()
}

// serve sends frames back until it is stopped.
func (h *echo) serve() error {
	tx, rx := virtqueue.NewBatch(16), virtqueue.NewBatch(64)
	fds := []unix.PollFd{{Fd: int32(h.stop), Events: unix.POLLIN},
		{Fd: int32(h.rings[rxRing].Kick), Events: unix.POLLIN}, {Fd: int32(h.rings[txRing].Kick), Events: unix.POLLIN}}
	for {
		for {
			more, err := h.turn(tx, rx)
			if err != nil {
				return err
			}
			if !more {
				break
			}
		}
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			return err
		}
		if fds[0].Revents != 0 {
			return nil
		}
		event(h.rings[rxRing].Kick).clear()
		event(h.rings[txRing].Kick).clear()
	}
}

// turn sends back one frame, and reports whether there may be another.
func (h *echo) turn(tx, rx *virtqueue.Batch) (more bool, err error) {
	out, in := h.queues[txRing], h.queues[rxRing]
	if tx.Len() == 0 {
		if _, err := out.Take(tx, 1); err != nil {
			return false, err
		}
		if tx.Len() == 0 {
			return out.Arm()
		}
	}
	n := tx.Chain(0).ReadLen
	count, err := in.TakeFor(rx, n, 64)
	if err != nil {
		return false, err
	}
	if count == 0 {
		return in.Arm()
	}
	frame := h.arena.Bytes()[:n]
	if err := h.move(tx.Readable(0), frame, gntdev.GuestIsSource); err != nil {
		return false, err
	}
	frame[10], frame[11] = byte(count), byte(count>>8)
	rx.Spread(0, count, n)
	for i, done := 0, uint32(0); i < count; i++ {
		w := rx.Chain(i).Written
		if err := h.move(rx.Writable(i), frame[done:done+w], gntdev.GuestIsDest); err != nil {
			return false, err
		}
		done += w
	}
	for i, q := range []device{in, out} {
		if q.Publish([]*virtqueue.Batch{rx, tx}[i]) {
			if err := vhostuser.Signal(h.rings[i].Call); err != nil {
				return false, err
			}
		}
	}
	return true, nil
}

// move copies between pieces of guest memory and b, by a grant copy where it is not mapped.
func (h *echo) move(pieces []virtqueue.Piece, b []byte, dir gntdev.Direction) error {
	for _, p := range pieces {
		part := b[:min(int(p.Len), len(b))]
		b = b[len(part):]
		if p.Mem != nil && dir == gntdev.GuestIsSource {
			copy(part, p.Mem)
			continue
		}
		if p.Mem != nil {
			copy(p.Mem, part)
			continue
		}
		region, _, grants := h.table.Region(p.Tag)
		for at := p.Addr; len(part) > 0; {
			in := at % pageSize
			n := min(len(part), int(pageSize-in))
			var seg [1]gntdev.Segment
			if dir == gntdev.GuestIsSource {
				seg[0].FromGuest(xen.Domid(region.Domid), vhostuser.Gref(at), uint16(in), part[:n])
			} else {
				seg[0].ToGuest(xen.Domid(region.Domid), vhostuser.Gref(at), uint16(in), part[:n])
			}
			if err := errors.Join(grants.Copy(seg[:]), seg[0].Status().Err()); err != nil {
				return fmt.Errorf("%v: gref %d: %w", dir, vhostuser.Gref(at), err)
			}
			part, at = part[n:], at+uint64(n)
		}
	}
	return nil
}
