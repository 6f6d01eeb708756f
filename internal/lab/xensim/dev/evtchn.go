// SPDX-License-Identifier: Apache-2.0

package dev

import (
	"encoding/binary"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/xensim/hyp"
	"github.com/netbackd/netbackd/internal/lab/xensim/wire"
	"github.com/netbackd/netbackd/pkg/xen"
)

// Evtchn is an open /dev/xen/evtchn. It writes the ports that had events into a pipe, four
// bytes each. The process reads and polls this pipe.
type Evtchn struct {
	hv         *hyp.Hypervisor
	dom        *hyp.Domain
	restricted bool
	only       xen.Domid // if restricted, the only domain to bind to
	ports      map[uint32]bool

	mu        sync.Mutex
	r, w      int  // the pipe; guarded by mu
	ring      int  // size of the kernel's ring in ports; guarded by mu
	queued    int  // upper bound of the number of ports in the pipe; guarded by mu
	overflown bool // guarded by mu
}

// OpenEvtchn opens the device for a process of dom.
func OpenEvtchn(hv *hyp.Hypervisor, dom *hyp.Domain) (*Evtchn, error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, err
	}
	return &Evtchn{hv: hv, dom: dom, ports: map[uint32]bool{}, r: p[0], w: p[1]}, nil
}

// Pipe returns the end of the pipe that the process reads.
func (e *Evtchn) Pipe() int { return e.r }

// BindInterdomain implements IOCTL_EVTCHN_BIND_INTERDOMAIN.
func (e *Evtchn) BindInterdomain(domid xen.Domid, remote uint32) (uint32, unix.Errno) {
	if e.restricted && e.only != domid {
		return 0, unix.EACCES
	}
	e.grow()
	port, errno := e.dom.BindInterdomain(domid, remote, e)
	if errno == 0 {
		e.ports[port] = true
	}
	return port, errno
}

// BindUnbound implements IOCTL_EVTCHN_BIND_UNBOUND_PORT.
func (e *Evtchn) BindUnbound(domid xen.Domid) (uint32, unix.Errno) {
	if e.restricted {
		return 0, unix.EACCES
	}
	e.grow()
	port, errno := e.dom.AllocUnbound(domid, e)
	if errno == 0 {
		e.ports[port] = true
	}
	return port, errno
}

// ringMin is the size of the kernel's ring once a port is bound. It doubles
// when there are more ports than it has room for.
const ringMin = 64

// grow implements evtchn_resize_ring, for one more port than there are.
func (e *Evtchn) grow() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.ports) < e.ring {
		return
	}
	e.ring = max(ringMin, 2*e.ring)
}

// Unbind implements IOCTL_EVTCHN_UNBIND. An event that is queued stays so.
func (e *Evtchn) Unbind(port uint32) unix.Errno {
	if port >= maxPort {
		return unix.EINVAL
	}
	if !e.ports[port] {
		return unix.ENOTCONN
	}
	delete(e.ports, port)
	_ = e.dom.CloseChannel(port) // cannot fail: the port is ours
	return 0
}

// maxPort is xen_evtchn_nr_channels() with the FIFO ABI.
const maxPort = 1 << 17

// Notify implements IOCTL_EVTCHN_NOTIFY.
func (e *Evtchn) Notify(port uint32) unix.Errno {
	if !e.ports[port] {
		return unix.ENOTCONN
	}
	_ = e.dom.Send(port) // the kernel ignores the outcome as well
	return 0
}

// Unmask implements write(2): the ports may have events again. It skips ports that are not
// bound through this file.
func (e *Evtchn) Unmask(port uint32) {
	if e.ports[port] {
		e.dom.Unmask(port)
	}
}

// Restrict implements IOCTL_EVTCHN_RESTRICT_DOMID.
func (e *Evtchn) Restrict(domid xen.Domid) unix.Errno {
	if e.restricted {
		return unix.EACCES
	}
	if domid == 0 || domid >= hyp.FirstReserved {
		return unix.EINVAL
	}
	e.restricted, e.only = true, domid
	return 0
}

// Reset implements IOCTL_EVTCHN_RESET: the queue is empty again. Ports that were in it
// stay masked.
func (e *Evtchn) Reset() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.drain()
	e.overflown = false
}

// drain empties the pipe. The caller holds mu.
func (e *Evtchn) drain() {
	var b [4096]byte
	for {
		if _, err := unix.Read(e.r, b[:]); err != nil && err != unix.EINTR {
			break
		}
	}
	e.queued = 0
}

// Event implements hyp.Upcall: it queues the port.
func (e *Evtchn) Event(port uint32) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.overflown {
		return
	}
	if e.queued >= e.ring {
		n, err := unix.IoctlGetInt(e.r, unix.TIOCINQ)
		if e.queued = n / 4; err != nil || e.queued >= e.ring {
			e.overflow()
			return
		}
	}
	if e.put(port) != nil {
		e.overflow()
		return
	}
	e.queued++
}

// Overflow makes the queue overflow, for tests.
func (e *Evtchn) Overflow() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.overflow()
}

// overflow drops the queued ports: the kernel's read fails from now on even if ports are
// in its ring. The process reads a mark instead. The caller holds mu.
func (e *Evtchn) overflow() {
	e.drain()
	e.overflown = true
	_ = e.put(wire.Overflow) // there is room now
}

func (e *Evtchn) put(port uint32) error {
	var b [4]byte
	binary.NativeEndian.PutUint32(b[:], port)
	_, err := unix.Write(e.w, b[:])
	return err
}

// Close implements close(2): all ports are closed.
func (e *Evtchn) Close() {
	for port := range e.ports {
		_ = e.dom.CloseChannel(port) // the domain's death may have done it
	}
	e.ports = nil
	e.mu.Lock()
	defer e.mu.Unlock()
	_ = unix.Close(e.r)
	_ = unix.Close(e.w)
	e.r, e.w = -1, -1
}
