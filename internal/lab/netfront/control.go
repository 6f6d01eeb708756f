// SPDX-License-Identifier: Apache-2.0

package netfront

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/netbackd/netbackd/internal/lab/xenfront"
	"github.com/netbackd/netbackd/pkg/ctrlring"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntalloc"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xen"
)

// Control is a device's control ring. It has one request outstanding at a time, as Windows
// does, and belongs to the device's goroutine.
type Control struct {
	host   Host
	peer   xen.Domid
	pages  *gntalloc.Pages
	ring   *netif.CtrlFront // nil: it is of byte streams
	stream ctrlring.Front   // nil: it is of slots
	events Events
	port   evtchn.Port
	wake   *xenfront.Waker
	lastID uint16
	late   int // calls that gave up, whose responses may still come

	static map[int][]byte // list page of the buffers that the backend keeps mapped, by queue
}

func newControl(host Host, peer xen.Domid, stream bool) (c *Control, err error) {
	c = &Control{host: host, peer: peer, static: map[int][]byte{}}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("netfront: control ring: %w", err), c.close())
		}
	}()
	if c.pages, err = host.Pages.Alloc(peer, 1, true); err != nil {
		return c, err
	}
	if stream {
		c.stream, err = ctrlring.Init(c.pages.Bytes(), ctrlring.Stream)
	} else {
		c.ring, err = netif.InitCtrl(c.pages.Bytes())
	}
	if err != nil {
		return c, err
	}
	if c.events, err = host.Events(); err != nil {
		return c, err
	}
	if c.port, err = c.events.BindUnbound(peer); err != nil {
		return c, err
	}
	c.wake, err = xenfront.NewWaker()
	return c, err
}

func (c *Control) close() error {
	var errs []error
	if c.events != nil {
		errs = append(errs, c.events.Close())
	}
	if c.pages != nil {
		errs = append(errs, c.pages.Free())
	}
	c.wake.Close()
	return errors.Join(errs...)
}

// Ring returns the ring itself, for a test that breaks the protocol. It is nil if the
// ring is of byte streams.
func (c *Control) Ring() *netif.CtrlFront { return c.ring }

// Kick sends an event.
func (c *Control) Kick() error { return c.events.Notify(c.port) }

// Call sends a message and waits for its response. The response's own status is
// not an error.
func (c *Control) Call(ctx context.Context, typ netif.CtrlType, data ...uint32) (netif.CtrlResponse, error) {
	if c.stream != nil {
		q := ctrlring.Request{Type: typ}
		copy(q.Data[:], data)
		r, err := c.ask(ctx, q)
		return netif.CtrlResponse{Type: typ, Status: r.Status, Data: r.Data}, err
	}
	if c.ring.Free() == 0 {
		return netif.CtrlResponse{}, errors.New("netfront: control ring: nothing was ever answered")
	}
	c.lastID = max(c.lastID+1, 1) // Windows never uses 0
	req := netif.CtrlRequest{ID: c.lastID, Type: typ}
	copy(req.Data[:], data)
	c.ring.Put(req)
	if c.ring.Push() {
		if err := c.Kick(); err != nil {
			return netif.CtrlResponse{}, err
		}
	}
	for {
		more, err := c.ring.Arm()
		if err != nil {
			return netif.CtrlResponse{}, fmt.Errorf("netfront: control ring: %w", err)
		}
		if !more {
			if err := c.wait(ctx); err != nil {
				c.late++
				return netif.CtrlResponse{}, fmt.Errorf("netfront: %v: %w", typ, err)
			}
			continue
		}
		rsp := c.ring.Response(c.ring.RspCons())
		c.ring.Take(1)
		switch {
		case rsp.ID == req.ID && rsp.Type == typ:
			return rsp, nil
		case c.late > 0:
			c.late--
		default:
			return rsp, fmt.Errorf("netfront: control response %+v does not answer %v with id %d", rsp, typ, req.ID)
		}
	}
}

// ask sends a message over byte streams and waits for its response.
func (c *Control) ask(ctx context.Context, q ctrlring.Request) (ctrlring.Response, error) {
	if err := c.stream.Send(q); err != nil {
		return ctrlring.Response{}, fmt.Errorf("netfront: control ring: %w", err)
	}
	for {
		notify, err := c.stream.Turn()
		if err == nil && notify {
			err = c.Kick()
		}
		if err != nil {
			return ctrlring.Response{}, fmt.Errorf("netfront: control ring: %w", err)
		}
		if r, ok := c.stream.Response(); ok {
			return r, nil
		}
		if err := c.wait(ctx); err != nil {
			return ctrlring.Response{}, fmt.Errorf("netfront: %v: %w", q, err)
		}
	}
}

// askAll sends messages over byte streams until one is not answered with success.
func (c *Control) askAll(ctx context.Context, list ...ctrlring.Request) error {
	for _, q := range list {
		r, err := c.ask(ctx, q)
		if err != nil {
			return err
		}
		if r.Status != netif.CtrlSuccess {
			return &StatusError{Type: q.Type, Status: r.Status}
		}
	}
	return nil
}

func (c *Control) wait(ctx context.Context) error {
	defer context.AfterFunc(ctx, c.wake.Wake)()
	_, err := xenfront.Sleep(c.events, c.wake)
	return errors.Join(err, ctx.Err())
}

// StatusError is a control message that the backend answered with anything but
// success.
type StatusError struct {
	Type   netif.CtrlType
	Status netif.CtrlStatus
}

func (e *StatusError) Error() string { return fmt.Sprintf("netfront: %v: %v", e.Type, e.Status) }

// do is like Call, but fails unless the status is success, and returns the response's data.
func (c *Control) do(ctx context.Context, typ netif.CtrlType, data ...uint32) (uint32, error) {
	rsp, err := c.Call(ctx, typ, data...)
	if err != nil {
		return 0, err
	}
	if rsp.Status != netif.CtrlSuccess {
		return 0, &StatusError{Type: typ, Status: rsp.Status}
	}
	return rsp.Data, nil
}

// Hash configures the distribution of packets over a guest's queues.
type Hash struct {
	Types   uint32   // mask of 1 << netif.HashIPv4 ...; 0 turns hashing off
	Key     []byte   // Toeplitz
	Mapping []uint32 // queue by hash modulo length; empty: hash modulo queues
}

// SetHash sets up Toeplitz hashing in the order that Windows does. Over byte
// streams the key has 40 bytes and the mapping a power of two of entries.
func (c *Control) SetHash(ctx context.Context, h Hash) error {
	if c.stream != nil {
		return c.askAll(ctx,
			ctrlring.Request{Type: netif.CtrlSetHashFlags, Data: [3]uint32{h.Types}},
			ctrlring.Request{Type: netif.CtrlSetHashKey, Key: h.Key},
			ctrlring.Request{Type: netif.CtrlSetHashMapping, Queues: h.Mapping})
	}
	if _, err := c.do(ctx, netif.CtrlSetHashAlgorithm, netif.HashAlgorithmToeplitz); err != nil {
		return err
	}
	if _, err := c.do(ctx, netif.CtrlSetHashFlags, h.Types); err != nil {
		return err
	}
	if err := c.withPage(h.Key, func(ref xen.Gref, _ []byte) error {
		_, err := c.do(ctx, netif.CtrlSetHashKey, uint32(ref), uint32(len(h.Key)))
		return err
	}); err != nil {
		return err
	}
	if _, err := c.do(ctx, netif.CtrlSetHashMappingSize, uint32(len(h.Mapping))); err != nil {
		return err
	}
	if len(h.Mapping) == 0 {
		return nil
	}
	table := make([]byte, 0, 4*len(h.Mapping))
	for _, q := range h.Mapping {
		table = binary.NativeEndian.AppendUint32(table, q)
	}
	return c.withPage(table, func(ref xen.Gref, _ []byte) error {
		_, err := c.do(ctx, netif.CtrlSetHashMapping, uint32(ref), uint32(len(h.Mapping)), 0)
		return err
	})
}

// withPage grants a page that begins with b for as long as f runs.
func (c *Control) withPage(b []byte, f func(ref xen.Gref, page []byte) error) error {
	if len(b) > netif.PageSize {
		return fmt.Errorf("netfront: %d bytes do not fit a page", len(b))
	}
	p, err := c.host.Pages.Alloc(c.peer, 1, true)
	if err != nil {
		return err
	}
	copy(p.Bytes(), b)
	return errors.Join(f(p.Refs()[0], p.Bytes()), p.Free())
}

// maxGrefs is the number of entries in a list page.
const maxGrefs = netif.PageSize / grefEntry

// StaticGrants asks the backend to keep the buffers of a queue mapped, as many as it
// accepts, and returns their number. The tx buffers come first, as read-only grants. The
// caller that works on the queue calls [Queue.AllowMapped] before.
func (c *Control) StaticGrants(ctx context.Context, q *Queue) (int, error) {
	return c.SomeStaticGrants(ctx, q, maxGrefs)
}

// SomeStaticGrants is like StaticGrants for at most most buffers, so that some packets
// use both kinds of buffers.
func (c *Control) SomeStaticGrants(ctx context.Context, q *Queue, most int) (int, error) {
	room, err := c.do(ctx, netif.CtrlGetGrefMappingSize, uint32(q.index))
	if err != nil {
		return 0, err
	}
	list := make([]byte, 0, netif.PageSize)
	add := func(refs []xen.Gref, flags uint16) {
		for _, ref := range refs {
			if len(list)/grefEntry < min(int(room), most, maxGrefs) {
				list = binary.NativeEndian.AppendUint32(list, uint32(ref))
				list = binary.NativeEndian.AppendUint16(list, flags)
				list = binary.NativeEndian.AppendUint16(list, 0)
			}
		}
	}
	add(q.tx.refs, netif.GrefReadOnly)
	add(q.rx.refs, 0)
	n := len(list) / grefEntry
	if n == 0 {
		return 0, nil
	}
	return n, c.withPage(list, func(ref xen.Gref, _ []byte) error {
		_, err := c.do(ctx, netif.CtrlAddGrefMapping, uint32(q.index), uint32(ref), uint32(n))
		if err == nil {
			c.static[q.index] = list
		}
		return err
	})
}

// grefEntry is the size of struct xen_netif_gref.
const grefEntry = 8

// EndStaticGrants asks the backend to unmap the buffers of [Control.StaticGrants], and
// returns their number. It fails unless the backend had mapped all of them.
func (c *Control) EndStaticGrants(ctx context.Context, q *Queue) (int, error) {
	list := c.static[q.index]
	want := uint32(len(list) / grefEntry)
	return int(want), c.withPage(list, func(ref xen.Gref, page []byte) error {
		n, err := c.do(ctx, netif.CtrlDelGrefMapping, uint32(q.index), uint32(ref), want)
		if err != nil {
			return err
		}
		delete(c.static, q.index)
		for i := range int(want) {
			if s := netif.CtrlStatus(binary.NativeEndian.Uint16(page[i*grefEntry+6:])); s != netif.CtrlSuccess {
				return fmt.Errorf("netfront: entry %d of %d static grants, gref %d: %v", i, want, binary.NativeEndian.Uint32(page[i*grefEntry:]), s)
			}
		}
		if n != want {
			return fmt.Errorf("netfront: %d of %d static grants were let go", n, want)
		}
		return nil
	})
}
