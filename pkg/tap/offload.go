// SPDX-License-Identifier: Apache-2.0

package tap

import (
	"errors"

	"golang.org/x/sys/unix"
)

// Offload lists the work on frames that the reader of the queues can complete itself,
// so that the host may omit it. It does not limit the frames that may be written to the
// queues.
type Offload struct {
	// Csum allows frames without a complete checksum: VnetNeedsCsum. The switch covers
	// all protocols and address families. A reader whose own reader can complete only
	// some of them completes the others.
	Csum bool
	// TSO4 and TSO6 allow TCP frames of up to 64 KiB, to be cut at
	// VnetHdr.GSOSize: VnetGSOTCPv4 and VnetGSOTCPv6. Each needs Csum.
	TSO4, TSO6 bool
	// ECN allows TCP frames to be cut whose first segment alone has CWR set: VnetGSOECN.
	// Without it the host segments frames with CWR set itself. It needs TSO4 or TSO6.
	ECN bool
	// USO allows UDP frames of up to 64 KiB, to be cut into datagrams of
	// VnetHdr.GSOSize bytes: VnetGSOUDP, over IPv4 and IPv6. It needs Csum, and Linux 6.2.
	USO bool
}

// bits returns the argument of TUNSETOFFLOAD.
func (o Offload) bits() int {
	var b int
	if o.Csum {
		b |= unix.TUN_F_CSUM
	}
	if o.TSO4 {
		b |= unix.TUN_F_TSO4
	}
	if o.TSO6 {
		b |= unix.TUN_F_TSO6
	}
	if o.ECN {
		b |= unix.TUN_F_TSO_ECN
	}
	if o.USO {
		b |= unix.TUN_F_USO4 | unix.TUN_F_USO6 // the driver takes both or none
	}
	return b
}

// check returns an error if no device can have o.
func (o Offload) check(vnetHdr bool) error {
	switch {
	case o != Offload{} && !vnetHdr:
		return errPlain
	case (o.TSO4 || o.TSO6 || o.USO) && !o.Csum, o.ECN && !o.TSO4 && !o.TSO6:
		return errOffload
	}
	return nil
}

// SetOffload replaces the offloads that the reader allows. The device then has those of
// them that the host wants: all, except for those that were switched off by `ethtool
// -K`, which stay off until the host switches them on. If the error wraps
// [ErrNotSupported], the device is unchanged.
//
// The driver stores the offloads that the reader allows as those that the host wants
// (set_offload in drivers/net/tun.c). So SetOffload reads the host's wish before, and
// restores it. It makes no change that is not needed. If the process is killed in
// between, the device is slower than it could be, but works.
//
// A process without CAP_NET_ADMIN cannot restore the wish: the device then has what the
// reader allows.
//
// In a network namespace that this process may not enter, the wish cannot be read.
// There SetOffload uses the last known wish.
//
// Frames that already wait in the queues do not change: after an offload was removed,
// the reader must still expect it until the queues are empty.
func (d *Device) SetOffload(o Offload) error {
	return d.wrap("set offload", d.setOffload(o))
}

func (d *Device) setOffload(o Offload) error {
	if len(d.queues) == 0 {
		return ErrClosed
	}
	if err := o.check(d.vnetHdr); err != nil {
		return err
	}
	if !d.vnetHdr {
		_, err := ifName(d.queues[0].fd)
		return err // no offloads are allowed now, nor were before
	}
	p, link, err := d.look()
	if err != nil {
		return err
	}
	defer p.close()
	err = p.in(func() error { return d.allow(link.Index, o) })
	switch {
	case errors.Is(err, ErrElsewhere) && d.wish != nil:
		err = d.limit(o.and(*d.wish))
	case errors.Is(err, ErrElsewhere), errors.Is(err, errNoEthtool):
		err = d.limit(o)
	}
	if err == nil {
		d.offload = o
	}
	return err
}

// allow sets the offloads that the reader allows, and keeps those that the host wants.
// It runs in the namespace of the device.
func (d *Device) allow(index int, o Offload) error {
	f, err := getFeatures(index)
	if err != nil {
		return err
	}
	wish := offloadOf(f.wanted)
	if !f.switchable[featureUSO] {
		wish.USO = true // the host cannot wish otherwise
	}
	d.wish = &wish
	if wish == (Offload{Csum: true, TSO4: true, TSO6: true, ECN: true, USO: true}) && offloadOf(f.active) == o {
		return nil
	}
	if err := d.limit(o); err != nil {
		return err
	}
	err = f.want(index)
	if errors.Is(err, unix.EPERM) {
		return nil // the owner of a device without CAP_NET_ADMIN
	}
	return err
}

// limit sets the offloads that the reader allows.
func (d *Device) limit(o Offload) error {
	err := unix.IoctlSetInt(d.queues[0].fd, unix.TUNSETOFFLOAD, o.bits())
	if errors.Is(err, unix.EINVAL) {
		// The driver's documented answer to a bit it does not know.
		return ErrNotSupported
	}
	return err
}
