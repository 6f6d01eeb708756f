// SPDX-License-Identifier: Apache-2.0

package tap

import (
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/nlsock"
)

// Create makes a TAP device, or adopts an existing one: a persistent device with the
// flags that cfg demands and without open queues. An adopted device keeps its
// interface index, and so its place in a bridge and its addresses, and it stays up or
// down. The settings in cfg replace its own.
//
// The error is [ErrBusy] if another process has the device open. The queues of a
// process that was killed exist until the kernel has finished its io_uring; Create
// waits a second for these. The error is [ErrMismatch] if the name belongs to an
// interface that cannot be adopted.
//
// The device is made in the network namespace of the calling thread.
func Create(cfg Config) (*Device, error) {
	d, err := create(cfg)
	if err != nil {
		return nil, fail("create", cfg.Name, err)
	}
	return d, nil
}

func create(cfg Config) (*Device, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	has, err := features()
	switch {
	case err != nil:
		return nil, err
	case has&MultiQueue == 0 && !cfg.Single:
		return nil, fmt.Errorf("%v: %w", MultiQueue, ErrNotSupported)
	case cfg.VnetHdr && has&VnetHeader == 0:
		return nil, withHint(fmt.Errorf("%v: %w", VnetHeader, ErrNotSupported), "do without a vnet header")
	}
	d := &Device{
		vnetHdr: cfg.VnetHdr,
	}
	d.name.Store(&cfg.Name)
	if err := d.open(&cfg); err != nil {
		// A device that Create has made is removed, and an adopted one stays. But a
		// device that another process has opened at the same time belongs to that
		// process.
		if len(d.queues) > 0 && !errors.Is(err, ErrBusy) {
			if perr := setPersist(d.queues[0].fd, d.adopted); !isGone(perr) {
				err = errors.Join(err, perr)
			}
		}
		return nil, errors.Join(err, d.closeQueues(0))
	}
	return d, nil
}

// open opens the queues of the device and applies the settings.
func (d *Device) open(cfg *Config) error {
	found, err := findAdoptable(cfg)
	if err != nil {
		return err
	}
	before := 0
	if found != nil {
		before, cfg.Single = found.Index, isSingle(found)
	}
	d.adopted, d.single = before != 0, cfg.Single
	fd, err := d.openFirst(cfg)
	if err != nil {
		return err
	}
	d.push(fd)
	link, err := d.identify()
	if err != nil {
		return err
	}
	// The device found may have been replaced since.
	d.adopted = link.Index == before
	if err := adoptable(link, cfg.flags()); err != nil {
		return err
	}
	if link.Queues+link.DisabledQueues > len(d.queues) {
		return busy(link.Name)
	}
	if err := d.settle(cfg); err != nil {
		return err
	}
	if d.adopted {
		// A kernel without steering programs returns EINVAL. A device there has
		// none.
		if err := unix.IoctlSetPointerInt(fd, unix.TUNSETSTEERINGEBPF, -1); err != nil && !errors.Is(err, unix.EINVAL) {
			return err
		}
	}
	return d.setQueues(min(max(cfg.Queues, 1), d.MaxQueues()))
}

// openFirst opens the first queue of the device. If the queue of a device that can have
// one only is open already, the kernel says so when a second one is opened (EBUSY);
// openFirst waits for queues that linger, as findAdoptable does for other devices.
func (d *Device) openFirst(cfg *Config) (fd int, err error) {
	for deadline := time.Now().Add(lingerWait); ; time.Sleep(lingerPoll) {
		switch {
		case cfg.VnetHdr && d.adopted:
			fd, err = openExisting(cfg)
		case cfg.VnetHdr:
			fd, err = openNetlink(cfg)
		default:
			fd, err = openWater(cfg, cfg.Persist || d.adopted)
		}
		switch {
		case err == nil:
			return fd, nil
		case !errors.Is(err, unix.EBUSY):
			return -1, withHint(err, attachHint(err))
		case time.Now().After(deadline):
			return -1, busy(cfg.Name)
		}
	}
}

// identify returns the device that the open queues belong to.
func (d *Device) identify() (*netlink.Tuntap, error) {
	p, link, err := d.look()
	if err == nil {
		p.close()
	}
	return link, err
}

// settle applies all settings that an adopted device may have, also to a new device.
func (d *Device) settle(cfg *Config) error {
	fd := d.queues[0].fd
	if err := setPersist(fd, cfg.Persist); err != nil {
		return err
	}
	if d.vnetHdr {
		if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, VnetHdrLen); err != nil {
			return fmt.Errorf("vnet header of %d bytes: %w", VnetHdrLen, err)
		}
	}
	if cfg.Offload != (Offload{}) {
		if err := d.setOffload(cfg.Offload); err != nil {
			return fmt.Errorf("offload %+v: %w", cfg.Offload, err)
		}
	}
	if cfg.NoCarrier {
		// Again, for openWater and for kernels that do not know
		// IFF_NO_CARRIER. The carrier has had no effect: the device is down.
		return setCarrier(fd, false)
	}
	return nil
}

// Adopt makes a Device of open queues, in their order, that a predecessor has handed
// over without closing the device, for example by storing them with the service
// manager. The device has kept its carrier and the frames that wait to be read.
// cfg.Name and cfg.Queues are not used: the device keeps its name and has exactly the
// given queues. The queues that the host sends to stay the same. (SetQueues and Use
// can change that.) A steering program stays, too: without it the packets of a flow would
// arrive on another queue than those that wait.
//
// On success the descriptors belong to the Device. On failure they still belong to the
// caller.
func Adopt(cfg Config, fds []int) (*Device, error) {
	d, err := adopt(cfg, fds)
	if err != nil {
		return nil, fail("adopt", cfg.Name, err)
	}
	return d, nil
}

func adopt(cfg Config, fds []int) (*Device, error) {
	if len(fds) < 1 || len(fds) > MaxQueues {
		return nil, errQueues
	}
	name, err := ifName(fds[0])
	if isGone(err) {
		return nil, ErrGone
	}
	if err != nil {
		return nil, err
	}
	cfg.Name, cfg.Queues = name, len(fds)
	if err := cfg.check(); err != nil {
		return nil, err
	}
	d := &Device{vnetHdr: cfg.VnetHdr, adopted: true}
	for _, fd := range fds {
		d.push(fd)
	}
	if err := d.takeOver(&cfg); err != nil {
		return nil, err
	}
	return d, nil
}

// takeOver checks the queues given to Adopt and applies the settings.
func (d *Device) takeOver(cfg *Config) error {
	link, err := d.identify()
	if err != nil {
		return err
	}
	if err := adoptable(link, cfg.flags()); err != nil {
		return err
	}
	d.single = isSingle(link)
	if n := link.Queues + link.DisabledQueues; n != len(d.queues) && !d.single {
		return fmt.Errorf("%w: %d given, the device has %d", errQueues, len(d.queues), n)
	}
	for _, q := range d.queues {
		if err := d.sameDevice(q.fd); err != nil {
			return err
		}
		unix.CloseOnExec(q.fd)
		if err := unix.SetNonblock(q.fd, true); err != nil {
			return err
		}
	}
	if d.single {
		return d.settle(cfg)
	}
	// Queues that are attached stay attached, and the others detached: a queue that is
	// attached and detached again loses the frames that arrive in between.
	d.active = link.Queues
	for i, q := range d.queues {
		away, err := isDetached(q.fd)
		if err != nil {
			return err
		}
		if away != (i >= d.active) {
			return fmt.Errorf("%w: the host has %d, and not the first ones", errQueues, d.active)
		}
	}
	return d.settle(cfg)
}

// Create waits so long, in such steps, for queues that no process has any more. The
// kernel frees the queues of a killed process with an io_uring after a few RCU grace
// periods, some 50 ms.
const (
	lingerWait = time.Second
	lingerPoll = 5 * time.Millisecond
)

// findAdoptable returns the device that cfg names, nil if there is none. It fails if
// there is one that cannot be adopted.
func findAdoptable(cfg *Config) (*netlink.Tuntap, error) {
	for deadline := time.Now().Add(lingerWait); ; time.Sleep(lingerPoll) {
		link, err := nlsock.LinkByName(cfg.Name)
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		if err := adoptable(link, cfg.flags()); err != nil {
			return nil, err
		}
		t := link.(*netlink.Tuntap)
		switch {
		case isSingle(t):
			return t, nil // openFirst finds out if it is in use
		case t.Queues+t.DisabledQueues == 0 && t.NonPersist:
			// Being deleted.
		case t.Queues+t.DisabledQueues == 0:
			return t, nil
		case len(holders(cfg.Name)) > 0:
			return nil, busy(cfg.Name)
		}
		if time.Now().After(deadline) {
			return nil, busy(cfg.Name)
		}
	}
}

// isSingle reports whether a device can have one queue only.
func isSingle(t *netlink.Tuntap) bool { return t.Flags&netlink.TUNTAP_MULTI_QUEUE == 0 }

// adoptable returns nil if a device has the flags that it would be opened with. The
// kernel refuses to open a device with other flags, or changes them. Only the number
// of queues that it can have does not matter.
func adoptable(link netlink.Link, flags uint16) error {
	name := link.Attrs().Name
	t, ok := link.(*netlink.Tuntap)
	if !ok || t.Mode != netlink.TUNTAP_MODE_TAP {
		return withHint(fmt.Errorf("%w: %s", ErrMismatch, describe(link)),
			"rename it, delete it with `ip link delete "+name+"`, or unbind its driver")
	}
	if has := uint16(t.Mode) | uint16(t.Flags); (has^flags)&^unix.IFF_MULTI_QUEUE != 0 {
		return withHint(fmt.Errorf("%w: a TAP with flags %s, not %s", ErrMismatch, flagNames(has), flagNames(flags)),
			"delete it with `ip link delete "+name+"` once no program needs it")
	}
	return nil
}

// flagNames returns the flags that distinguish our devices from others.
func flagNames(flags uint16) string {
	s := "tap"
	for _, f := range []struct {
		bit  uint16
		name string
	}{
		{unix.IFF_MULTI_QUEUE, "multi_queue"},
		{unix.IFF_NO_PI, "no_pi"},
		{unix.IFF_VNET_HDR, "vnet_hdr"},
	} {
		if flags&f.bit != 0 {
			s += "|" + f.name
		}
	}
	return s
}
