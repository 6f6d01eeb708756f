// SPDX-License-Identifier: Apache-2.0

package evtchn

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/internal/xendev"
	"github.com/netbackd/netbackd/pkg/xen"
)

// DefaultPath is the path of the device.
const DefaultPath = "/dev/xen/evtchn"

// maxPorts is the largest number of ports that one read or write transfers: a page of
// them.
const maxPorts = 4096 / 4

// Port is a local event channel port, or where stated a port of the other domain. 0 is
// never a port.
type Port uint32

// Device is an open event channel device and the ports bound through it. Its
// methods may be called from several goroutines at once. The kernel carries
// out one bind, unbind, notify or unmask at a time per Device. Threads that must not
// wait for each other need a Device each.
type Device struct {
	kernel kernel

	fd *xendev.FD
}

// Open opens the device at path, normally [DefaultPath], without a port. Reads
// do not block, so that the descriptor can be polled.
func Open(path string) (*Device, error) {
	fd, err := xendev.Open(path, unix.O_NONBLOCK)
	if err != nil {
		return nil, &Error{Op: "open", Err: fmt.Errorf("%s: %w", path, err), Hint: xendev.OpenHint("xen-evtchn", err)}
	}
	return &Device{kernel: linux{}, fd: fd}, nil
}

// NewDevice makes a Device of a descriptor of /dev/xen/evtchn that was opened by another
// process, non-blocking. The descriptor is its own from then on.
func NewDevice(fd int) *Device { return &Device{kernel: linux{}, fd: xendev.New(fd)} }

// Close unbinds all ports and closes the device. It may be called again, which
// does nothing. A poller forgets FD before Close.
func (d *Device) Close() error {
	if err := d.fd.Close(d.kernel.close); err != nil {
		return &Error{Op: "close", Err: err}
	}
	return nil
}

// FD returns the descriptor, for polling only; -1 once closed. It is readable
// (POLLIN) when Pending has ports, and in error (POLLERR, nothing else) when
// Pending would return [ErrOverflow].
func (d *Device) FD() int {
	defer d.fd.Release()
	return d.fd.Hold()
}

// PortFile reports that the descriptor takes reads and writes of ports, each of which is a
// 32-bit number in the machine's byte order: a read does what Pending does, and a write what
// Unmask does. So a poller with io_uring can make both with one system call. Ports 0 in a
// write are ignored.
func (d *Device) PortFile() bool { return true }

// BindInterdomain connects a new local port to a port that domid has offered
// to this domain. The local port is not masked and has an event pending from the start.
func (d *Device) BindInterdomain(domid xen.Domid, remote Port) (Port, error) {
	if remote == 0 {
		return 0, BindError("bind", domid, 0, unix.EINVAL)
	}
	port, err := d.ioctl(iocBindInterdomain, arg{a: uint32(domid), b: uint32(remote)})
	if err != nil {
		return 0, BindError("bind", domid, remote, err)
	}
	return Port(port), nil
}

// BindUnbound makes a new local port that domid may connect to. Events sent on
// it before that are lost.
func (d *Device) BindUnbound(domid xen.Domid) (Port, error) {
	port, err := d.ioctl(iocBindUnbound, arg{a: uint32(domid)})
	if err != nil {
		return 0, BindError("offer", domid, 0, err)
	}
	return Port(port), nil
}

// Unbind closes a port. The other end can then be bound again by the domain that it
// was offered to. Pending still returns an event that is queued already. By then the
// number may belong to a new port. The error is ENOTCONN for a port that was not bound
// through this Device, and EINVAL for a number beyond all ports.
func (d *Device) Unbind(port Port) error { return d.portOp("unbind", iocUnbind, port) }

// Notify sends an event to the other end of port. It also succeeds if no domain is
// connected there. The error is ENOTCONN for a port that was not bound through this
// Device.
func (d *Device) Notify(port Port) error { return d.portOp("notify", iocNotify, port) }

func (d *Device) portOp(op string, req uintptr, port Port) error {
	if port == 0 {
		return &Error{Op: op, Err: unix.EINVAL, Hint: noPort}
	}
	if _, err := d.ioctl(req, arg{a: uint32(port)}); err != nil {
		return &Error{Op: op, Port: port, Err: err, Hint: portHint(err)}
	}
	return nil
}

// Restrict makes the Device refuse to bind ports, except for BindInterdomain to domid.
// Ports that it has stay usable. Restrict cannot be undone or repeated, and domid must
// not be 0.
func (d *Device) Restrict(domid xen.Domid) error {
	if _, err := d.ioctl(iocRestrict, arg{a: uint32(domid)}); err != nil {
		return &Error{Op: "restrict", Domid: domid, Err: err, Hint: restrictHint(err)}
	}
	return nil
}

// Reset discards the ports that wait for Pending and ends an overflow. It unmasks
// nothing: a port whose event was discarded sends no events until it is given to
// Unmask. After Reset, do the work of every port and unmask it.
func (d *Device) Reset() error {
	if _, err := d.ioctl(iocReset, arg{}); err != nil {
		return &Error{Op: "reset", Err: err}
	}
	return nil
}

func (d *Device) ioctl(req uintptr, a arg) (uint32, error) {
	fd := d.fd.Hold()
	defer d.fd.Release()
	if fd < 0 {
		return 0, ErrClosed
	}
	return d.kernel.ioctl(fd, req, a)
}

// Pending stores ports that had events and are now masked in buf, and returns
// how many. It never blocks: 0, nil means there are none. Fewer than len(buf)
// means that there are no more.
//
// The error is [ErrOverflow] if events were lost. That happens if ports are bound and
// unbound very often without a Pending in between. Then call Reset.
func (d *Device) Pending(buf []Port) (int, error) {
	fd := d.fd.Hold()
	defer d.fd.Release()
	if fd < 0 {
		return 0, &Error{Op: "pending", Err: ErrClosed}
	}
	n := 0
	for n < len(buf) {
		want := buf[n:min(len(buf), n+maxPorts)]
		got, err := d.kernel.read(fd, want)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil && n > 0, err == unix.EAGAIN:
			// An error that matters comes back with the next call.
			return n, nil
		case err == unix.EFBIG:
			return 0, &Error{Op: "pending", Err: ErrOverflow}
		case err != nil:
			return 0, &Error{Op: "pending", Err: err}
		}
		n += got
		if got < len(want) {
			break
		}
	}
	return n, nil
}

// Unmask lets the ports deliver events again, with one system call per 1024.
// An event that came while a port was masked is delivered at once. Unmask ignores ports
// that are not masked or not bound.
func (d *Device) Unmask(ports []Port) error {
	for i, p := range ports {
		if p == 0 {
			return &Error{Op: "unmask", Err: unix.EINVAL, Hint: fmt.Sprintf("ports[%d]: %s", i, noPort)}
		}
	}
	fd := d.fd.Hold()
	defer d.fd.Release()
	if fd < 0 {
		return &Error{Op: "unmask", Err: ErrClosed}
	}
	for len(ports) > 0 {
		n, err := d.kernel.write(fd, ports[:min(len(ports), maxPorts)])
		if err == unix.EINTR {
			continue
		}
		if err == nil && n == 0 {
			err = unix.EIO
		}
		if err != nil {
			return &Error{Op: "unmask", Port: ports[0], Err: err}
		}
		ports = ports[n:]
	}
	return nil
}

// kernel makes the device's system calls. Tests replace it. read and write count ports.
type kernel interface {
	ioctl(fd int, req uintptr, a arg) (uint32, error)
	read(fd int, ports []Port) (int, error)
	write(fd int, ports []Port) (int, error)
	close(fd int) error
}
