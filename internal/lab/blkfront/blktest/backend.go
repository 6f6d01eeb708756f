// SPDX-License-Identifier: Apache-2.0

// Package blktest is the other side for tests of the block frontend: a minimal backend of
// one queue, with a disk in memory.
//
// It answers each request before it looks at the next one, maps every page on its own,
// and shares no code with the daemon.
package blktest

import (
	"errors"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/blkfront"
	"github.com/netbackd/netbackd/pkg/blkif"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/xen"
)

// Grants and Events are the devices that the backend needs.
type (
	Grants interface {
		Map(domid xen.Domid, refs []xen.Gref, prot gntdev.Prot) (*gntdev.Mapping, error)
	}
	Events interface {
		FD() int
		BindInterdomain(domid xen.Domid, remote evtchn.Port) (evtchn.Port, error)
		Pending(ports []evtchn.Port) (int, error)
		Unmask(ports []evtchn.Port) error
		Notify(port evtchn.Port) error
	}
)

// Backend is a running backend of one queue.
type Backend struct {
	Grants Grants
	Events Events
	Domid  xen.Domid
	Disk   []byte
	Limits blkif.Limits
	// Answer, if not nil, takes the place of the responses to a request.
	Answer func(r *blkif.Request, good blkif.Response) []blkif.Response
	// Ring, if not nil, is called with the ring's memory after each batch of answers.
	Ring func(mem []byte)

	mapping *gntdev.Mapping
	back    *blkif.Back
	port    evtchn.Port
	stop    [2]int // pipe
	ended   sync.WaitGroup
	end     func() error
	err     error
}

// Start serves a queue until Stop.
func (b *Backend) Start(q *blkfront.Queue) (err error) {
	if b.mapping, err = b.Grants.Map(b.Domid, q.Refs(), gntdev.ReadWrite); err != nil {
		return err
	}
	if b.back, err = blkif.AttachBack(b.mapping.Bytes(), q.Protocol()); err != nil {
		return err
	}
	if b.port, err = b.Events.BindInterdomain(b.Domid, q.Port()); err != nil {
		return err
	}
	if err := unix.Pipe2(b.stop[:], unix.O_CLOEXEC); err != nil {
		return err
	}
	b.ended.Go(func() { b.err = b.serve() })
	b.end = sync.OnceValue(func() error {
		err := unix.Close(b.stop[1])
		b.ended.Wait()
		return errors.Join(err, b.err, unix.Close(b.stop[0]), b.mapping.Unmap())
	})
	return nil
}

// Stop ends the backend and returns its error. It may be called again.
func (b *Backend) Stop() error { return b.end() }

func (b *Backend) serve() error {
	fds := []unix.PollFd{{Fd: int32(b.Events.FD()), Events: unix.POLLIN}, {Fd: int32(b.stop[0]), Events: unix.POLLIN}}
	var ports [4]evtchn.Port
	for {
		for {
			if err := b.batch(); err != nil {
				return err
			}
			if more, err := b.back.Arm(); err != nil {
				return err
			} else if !more {
				break
			}
		}
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			return err
		}
		if fds[1].Revents != 0 {
			return nil
		}
		n, err := b.Events.Pending(ports[:])
		if err == nil {
			err = b.Events.Unmask(ports[:n])
		}
		if err != nil {
			return err
		}
	}
}

// batch answers all requests that are there.
func (b *Backend) batch() error {
	n, err := b.back.Available()
	if err != nil || n == 0 {
		return err
	}
	var answers []blkif.Response
	for range n {
		var s blkif.Slot
		var r blkif.Request
		b.back.Copy(b.back.ReqCons(), &s)
		b.back.Consume(1)
		s.Decode(b.back.Protocol(), &r)
		good := r.Response(b.do(&r))
		if b.Answer == nil {
			answers = append(answers, good)
		} else {
			answers = append(answers, b.Answer(&r, good)...)
		}
	}
	notify := b.back.Commit(answers)
	if b.Ring != nil {
		b.Ring(b.mapping.Bytes())
	}
	if notify {
		return b.Events.Notify(b.port)
	}
	return nil
}

// do carries out one request.
func (b *Backend) do(r *blkif.Request) blkif.Status {
	if reason := r.Check(&b.Limits); reason != blkif.ReasonNone {
		return reason.Status()
	}
	var direct [blkif.MaxDirect]blkif.Segment
	n, reason := r.Direct(direct[:])
	segs := direct[:n]
	if r.Op == blkif.OpIndirect {
		segs, reason = b.indirect(r)
	}
	if reason != blkif.ReasonNone {
		return reason.Status()
	}
	at, reason := r.Place(&b.Limits, segs)
	if reason != blkif.ReasonNone {
		return reason.Status()
	}
	data := b.Disk[at.Off:at.End()]
	if r.Op == blkif.OpDiscard {
		clear(data)
		return blkif.StatusOkay
	}
	for _, s := range segs {
		prot := gntdev.ReadOnly
		if r.Operation() == blkif.OpRead {
			prot = gntdev.ReadWrite
		}
		m, err := b.Grants.Map(b.Domid, []xen.Gref{s.Gref}, prot)
		if err != nil {
			return blkif.StatusError
		}
		page := m.Bytes()[s.Off : s.Off+s.Len]
		if prot == gntdev.ReadWrite {
			copy(page, data)
		} else {
			copy(data, page)
		}
		if err := m.Unmap(); err != nil {
			return blkif.StatusError
		}
		data = data[s.Len:]
	}
	return blkif.StatusOkay
}

// indirect copies and checks the segments of an indirect request.
func (b *Backend) indirect(r *blkif.Request) ([]blkif.Segment, blkif.Reason) {
	segs := make([]blkif.Segment, r.NrSegments)
	for i := range r.IndirectPages() {
		m, err := b.Grants.Map(b.Domid, r.Grefs[i:i+1], gntdev.ReadOnly)
		if err != nil {
			return nil, blkif.ReasonIndirectGrant
		}
		n := r.IndirectSegments(i)
		reason := blkif.DecodeIndirect(m.Bytes(), segs[i*blkif.SegmentsPerPage:][:n])
		if err := m.Unmap(); err != nil || reason != blkif.ReasonNone {
			return nil, reason
		}
	}
	return segs, blkif.ReasonNone
}
