// SPDX-License-Identifier: Apache-2.0

package simclient

import (
	"encoding/binary"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/xensim/wire"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/xen"
)

// Events is [evtchn.Device] for the embedded Xen. Its methods may be called from several
// goroutines at once.
type Events struct {
	link  *link
	ports portSet // bound through this file; guarded by link.mu

	mu        sync.Mutex // the reader's; taken before link.mu
	pipe      int        // -1 once closed; guarded by mu
	overflown bool       // guarded by mu
	buf       []byte     // of a read, as long as the longest one so far; guarded by mu
}

// maxPorts is the number of ports that one read takes: a page of them, as from the
// device.
const maxPorts = 4096 / 4

// Events opens the event channel device, without a port.
func (c *Conn) Events() (*Events, error) {
	l, pipe, err := open(c.dir, c.domid, wire.KindEvtchn)
	if err != nil {
		return nil, err
	}
	if pipe < 0 {
		_ = l.close()
		return nil, wire.ErrMessage
	}
	return &Events{link: l, pipe: pipe}, nil
}

// Close unbinds all ports and closes the device. It may be called again, which
// does nothing. A poller forgets FD before Close.
func (e *Events) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.pipe < 0 {
		return nil
	}
	err := unix.Close(e.pipe)
	e.pipe = -1
	if lerr := e.link.close(); err == nil {
		err = lerr
	}
	if err != nil {
		return &evtchn.Error{Op: "close", Err: err}
	}
	return nil
}

// FD returns the descriptor, for polling only; -1 once closed. It is readable
// (POLLIN) when Pending has ports or would return [evtchn.ErrOverflow], and
// POLLHUP when the domain is gone.
func (e *Events) FD() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.pipe
}

// BindInterdomain implements [evtchn.Device.BindInterdomain].
func (e *Events) BindInterdomain(domid xen.Domid, remote evtchn.Port) (evtchn.Port, error) {
	var err error = unix.EINVAL
	var port evtchn.Port
	if remote != 0 {
		port, err = e.bind(wire.OpBindInterdomain, uint32(domid), uint32(remote))
	}
	if err != nil {
		return 0, evtchn.BindError("bind", domid, remote, err)
	}
	return port, nil
}

// BindUnbound implements [evtchn.Device.BindUnbound].
func (e *Events) BindUnbound(domid xen.Domid) (evtchn.Port, error) {
	port, err := e.bind(wire.OpBindUnbound, uint32(domid))
	if err != nil {
		return 0, evtchn.BindError("offer", domid, 0, err)
	}
	return port, nil
}

func (e *Events) bind(op wire.Op, args ...uint32) (evtchn.Port, error) {
	l := e.link
	l.mu.Lock()
	defer l.mu.Unlock()
	l.msg = wire.AppendU32(wire.AppendU32(l.msg[:0], uint32(op)), args...)
	r, errno, err := l.call(l.msg)
	switch {
	case err != nil:
		return 0, err
	case errno != 0:
		return 0, errno
	}
	port := r.U32()
	if err := r.Done(); err != nil {
		return 0, err
	}
	e.ports.add(port)
	return evtchn.Port(port), nil
}

// Unbind implements [evtchn.Device.Unbind].
func (e *Events) Unbind(port evtchn.Port) error {
	var err error = unix.EINVAL
	if port != 0 {
		err = e.simple(wire.OpUnbind, uint32(port))
	}
	if err != nil {
		return &evtchn.Error{Op: "unbind", Port: port, Err: err}
	}
	return nil
}

// Notify implements [evtchn.Device.Notify]. It does not wait for the simulation: the
// client knows its ports, and with them the kernel's errno.
func (e *Events) Notify(port evtchn.Port) error {
	if err := e.notify(uint32(port)); err != nil {
		return &evtchn.Error{Op: "notify", Port: port, Err: err}
	}
	return nil
}

func (e *Events) notify(port uint32) error {
	if port == 0 {
		return unix.EINVAL
	}
	l := e.link
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed:
		return evtchn.ErrClosed
	case !e.ports.has(port):
		return unix.ENOTCONN
	}
	l.msg = wire.AppendU32(l.msg[:0], uint32(wire.OpNotify), port)
	return l.send(l.msg)
}

// Restrict implements [evtchn.Device.Restrict].
func (e *Events) Restrict(domid xen.Domid) error {
	if err := e.simple(wire.OpRestrict, uint32(domid)); err != nil {
		return &evtchn.Error{Op: "restrict", Domid: domid, Err: err}
	}
	return nil
}

// Reset implements [evtchn.Device.Reset].
func (e *Events) Reset() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.simple(wire.OpReset); err != nil {
		return &evtchn.Error{Op: "reset", Err: err}
	}
	e.overflown = false
	return nil
}

func (e *Events) simple(op wire.Op, args ...uint32) error {
	l := e.link
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return evtchn.ErrClosed
	}
	l.msg = wire.AppendU32(wire.AppendU32(l.msg[:0], uint32(op)), args...)
	err := l.simple(l.msg)
	if err == nil && op == wire.OpUnbind {
		e.ports.remove(args[0])
	}
	return err
}

// Pending implements [evtchn.Device.Pending].
func (e *Events) Pending(buf []evtchn.Port) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	n, err := e.pending(buf)
	if err != nil {
		return 0, &evtchn.Error{Op: "pending", Err: err}
	}
	return n, nil
}

func (e *Events) pending(buf []evtchn.Port) (int, error) {
	if e.pipe < 0 {
		return 0, evtchn.ErrClosed
	}
	n := 0
	for n < len(buf) && !e.overflown {
		want := min(len(buf)-n, maxPorts)
		if len(e.buf) < 4*want {
			e.buf = make([]byte, 4*want)
		}
		got, err := unix.Read(e.pipe, e.buf[:4*want])
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return n, nil
		case n > 0 && (err != nil || got == 0):
			return n, nil // the next call will see it, too
		case err != nil:
			return 0, err
		case got == 0:
			return 0, ErrGone
		}
		for b := e.buf[:got]; len(b) >= 4; b = b[4:] {
			port := binary.NativeEndian.Uint32(b)
			if port == wire.Overflow {
				e.overflown = true
				break
			}
			buf[n] = evtchn.Port(port)
			n++
		}
		if got < 4*want {
			break
		}
	}
	if e.overflown && n == 0 {
		return 0, evtchn.ErrOverflow
	}
	return n, nil
}

// Unmask implements [evtchn.Device.Unmask]. It does not wait for the simulation.
func (e *Events) Unmask(ports []evtchn.Port) error {
	for _, p := range ports {
		if p == 0 {
			return &evtchn.Error{Op: "unmask", Err: unix.EINVAL}
		}
	}
	l := e.link
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return &evtchn.Error{Op: "unmask", Err: evtchn.ErrClosed}
	}
	for len(ports) > 0 {
		n := min(len(ports), wire.MaxUnmask)
		l.msg = wire.AppendU32(l.msg[:0], uint32(wire.OpUnmask))
		for _, p := range ports[:n] {
			l.msg = wire.AppendU32(l.msg, uint32(p))
		}
		if err := l.send(l.msg); err != nil {
			return &evtchn.Error{Op: "unmask", Port: ports[0], Err: err}
		}
		ports = ports[n:]
	}
	return nil
}

// portSet is a set of ports. Xen allocates the lowest free numbers, so it stays small.
type portSet []uint64

func (s *portSet) add(port uint32) {
	for uint64(len(*s)) <= uint64(port/64) {
		*s = append(*s, 0)
	}
	(*s)[port/64] |= 1 << (port % 64)
}

func (s portSet) remove(port uint32) {
	if s.has(port) {
		s[port/64] &^= 1 << (port % 64)
	}
}

func (s portSet) has(port uint32) bool {
	return uint64(port/64) < uint64(len(s)) && s[port/64]&(1<<(port%64)) != 0
}
