// SPDX-License-Identifier: Apache-2.0

package fronttest

import (
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/xensim/simclient"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/xen"
)

// queue serves one pair of rings.
type queue struct {
	b      *Backend
	domid  xen.Domid
	grants *simclient.Grants
	events *simclient.Events
	rings  *gntdev.Mapping
	arena  *gntdev.Arena
	tap    *tap.Queue // nil: send packets back
	tx     *netif.TxBack
	rx     *netif.RxBack
	txPort evtchn.Port
	rxPort evtchn.Port
	wake   int // eventfd that ends serve
	ended  chan error
}

// arenaSize is the size of the largest packet in bytes. frameSlots is the number of slots
// for a frame from the TAP, whose MTU must fit.
const (
	arenaSize  = 1 << 16
	frameSlots = 3
)

func (q *queue) start(dom0 *simclient.Conn, domid xen.Domid, refs []xen.Gref, remote []uint32) (err error) {
	q.domid, q.wake = domid, -1
	defer func() {
		if err != nil {
			err = errors.Join(err, q.close())
		}
	}()
	if q.grants, err = dom0.Grants(); err != nil {
		return err
	}
	if q.rings, err = q.grants.Map(domid, refs, gntdev.ReadWrite); err != nil {
		return err
	}
	if q.tx, err = netif.AttachTx(q.rings.Bytes()[:netif.PageSize]); err != nil {
		return err
	}
	if q.rx, err = netif.AttachRx(q.rings.Bytes()[netif.PageSize:]); err != nil {
		return err
	}
	if q.events, err = dom0.Events(); err != nil {
		return err
	}
	for _, r := range remote {
		q.rxPort, err = q.events.BindInterdomain(domid, evtchn.Port(r))
		if err != nil {
			return err
		}
		if q.txPort == 0 {
			q.txPort = q.rxPort
		}
	}
	if q.arena, err = gntdev.NewArena(arenaSize); err != nil {
		return err
	}
	if q.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC); err != nil {
		return err
	}
	q.ended = make(chan error, 1)
	go func() { q.ended <- q.serve() }()
	return nil
}

// stop ends serve and frees everything.
func (q *queue) stop() error {
	_, err := unix.Write(q.wake, binary.NativeEndian.AppendUint64(nil, 1))
	return errors.Join(err, <-q.ended, q.close())
}

func (q *queue) close() error {
	var errs []error
	if q.rings != nil {
		errs = append(errs, q.rings.Unmap())
	}
	if q.grants != nil {
		errs = append(errs, q.grants.Close())
	}
	if q.events != nil {
		errs = append(errs, q.events.Close())
	}
	if q.arena != nil {
		errs = append(errs, q.arena.Close())
	}
	if q.wake >= 0 {
		errs = append(errs, unix.Close(q.wake))
	}
	return errors.Join(errs...)
}

// serve works until it is woken to end.
func (q *queue) serve() error {
	for {
		more, err := q.drain()
		if err != nil {
			return err
		}
		fds := []unix.PollFd{
			{Fd: int32(q.wake), Events: unix.POLLIN},
			{Fd: int32(q.events.FD()), Events: unix.POLLIN},
			{Fd: -1, Events: unix.POLLIN},
		}
		// Without free buffers, frames wait in the TAP.
		room, err := q.rx.ArmFor(frameSlots)
		if err != nil {
			return err
		}
		if q.tap != nil && room {
			fds[2].Fd = int32(q.tap.FD())
		}
		timeout := -1
		if more {
			timeout = 0
		}
		if _, err := unix.Poll(fds, timeout); err != nil && err != unix.EINTR {
			return err
		}
		if fds[0].Revents != 0 {
			return nil
		}
		var ports [2]evtchn.Port
		n, err := q.events.Pending(ports[:])
		if err == nil && n > 0 {
			err = q.events.Unmask(ports[:n])
		}
		if err != nil {
			return err
		}
		if fds[2].Revents != 0 {
			if err := q.fromTap(); err != nil {
				return err
			}
		}
	}
}

// drain serves the tx ring until it is empty and armed.
func (q *queue) drain() (more bool, err error) {
	for range netif.TxRingSize {
		n, err := q.tx.Available()
		if err != nil {
			return false, err
		}
		if n == 0 {
			if more, err = q.tx.Arm(); err != nil || !more {
				return false, err
			}
			continue
		}
		if err := q.packet(); err != nil {
			return false, err
		}
	}
	return true, nil
}

// packet serves the packet that is next on the tx ring.
func (q *queue) packet() error {
	reqs := []netif.TxRequest{q.take()}
	rsp := []netif.TxResponse{{ID: reqs[0].ID}}
	control := false
	for more := reqs[0].Flags&netif.TxExtraInfo != 0; more; {
		e := q.tx.Extra(q.tx.ReqCons())
		q.tx.Consume(1)
		rsp = append(rsp, netif.TxResponse{Status: netif.StatusNull})
		if e.Type == netif.ExtraMcastAdd || e.Type == netif.ExtraMcastDel {
			control = true
			q.b.sawMcast(e)
		}
		more = e.More()
	}
	size := int(reqs[0].Size)
	for reqs[len(reqs)-1].Flags&netif.TxMoreData != 0 {
		r := q.take()
		reqs[0].Size -= r.Size
		reqs = append(reqs, r)
		rsp = append(rsp, netif.TxResponse{ID: r.ID})
	}
	if !control {
		frame, err := q.gather(reqs, size)
		if err != nil {
			return err
		}
		if frame == nil {
			for i := range rsp {
				if rsp[i].Status == netif.StatusOkay {
					rsp[i].Status = netif.StatusError
				}
			}
		} else if err := q.forward(frame); err != nil {
			return err
		}
	}
	if q.tx.Commit(rsp) {
		return q.events.Notify(q.txPort)
	}
	return nil
}

func (q *queue) take() netif.TxRequest {
	r := q.tx.Request(q.tx.ReqCons())
	q.tx.Consume(1)
	return r
}

// gather copies a packet out of the guest's pages. It returns nil if that fails.
func (q *queue) gather(reqs []netif.TxRequest, size int) ([]byte, error) {
	segs := make([]gntdev.Segment, len(reqs))
	at := 0
	for i, r := range reqs {
		if int(r.Offset)+int(r.Size) > netif.PageSize {
			return nil, nil
		}
		segs[i].FromGuest(q.domid, r.Gref, r.Offset, q.arena.Bytes()[at:][:r.Size])
		at += int(r.Size)
	}
	if err := q.grants.Copy(segs); err != nil {
		return nil, err
	}
	for i := range segs {
		if segs[i].Status() != 0 {
			return nil, nil
		}
	}
	return q.arena.Bytes()[:size], nil
}

// forward sends a packet to the TAP, or back to the guest. It drops the packet if there
// is no room.
func (q *queue) forward(frame []byte) error {
	if q.tap == nil {
		return q.toGuest(len(frame))
	}
	_, _ = q.tap.Write(frame)
	return nil
}

// fromTap sends the TAP's frames to the guest.
func (q *queue) fromTap() error {
	for {
		if room, err := q.rx.Available(); err != nil || room < frameSlots {
			return err
		}
		n, err := q.tap.Read(q.arena.Bytes())
		if err != nil {
			return nil // nothing, or the device is down
		}
		if err := q.toGuest(n); err != nil {
			return err
		}
	}
}

// toGuest puts the first n bytes of the arena in the rx ring.
func (q *queue) toGuest(n int) error {
	need := (n + netif.PageSize - 1) / netif.PageSize
	if room, err := q.rx.Available(); err != nil || int(room) < need {
		return err
	}
	segs := make([]gntdev.Segment, need)
	slots := make([]netif.RxSlot, need)
	for i := range need {
		r := q.rx.Request(q.rx.ReqCons())
		q.rx.Consume(1)
		part := min(n-i*netif.PageSize, netif.PageSize)
		segs[i].ToGuest(q.domid, r.Gref, 0, q.arena.Bytes()[i*netif.PageSize:][:part])
		rsp := netif.RxResponse{ID: r.ID, Status: netif.Status(part)}
		if i < need-1 {
			rsp.Flags = netif.RxMoreData
		}
		slots[i] = rsp.Slot()
	}
	if err := q.grants.Copy(segs); err != nil {
		return err
	}
	for i := range segs {
		if s := segs[i].Status(); s != 0 {
			rsp := slots[i].Response()
			rsp.Status = netif.Status(s)
			slots[i] = rsp.Slot()
		}
	}
	if q.rx.Commit(slots) {
		return q.events.Notify(q.rxPort)
	}
	return nil
}
