// SPDX-License-Identifier: Apache-2.0

package tap

import (
	"errors"

	"golang.org/x/sys/unix"
)

// Offload says what the reader of the queues can finish itself, so that the host
// may leave it undone. It does not limit what may be written to the queues.
type Offload struct {
	// Csum allows frames without a complete checksum: VnetNeedsCsum. The
	// switch covers every protocol and address family alike; a reader
	// that serves somebody who can complete only some completes the others.
	Csum bool
	// TSO4 and TSO6 allow TCP frames of up to 64 KiB, to be cut at
	// VnetHdr.GSOSize: VnetGSOTCPv4 and VnetGSOTCPv6. Each needs Csum.
	TSO4, TSO6 bool
}

// bits returns the argument of TUNSETOFFLOAD. TUN_F_TSO_ECN is never among
// them: the host then cuts frames with CWR set itself, for readers which have no
// way to pass the flag on.
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
	return b
}

// check tells whether a device can be asked for o.
func (o Offload) check(vnetHdr bool) error {
	switch {
	case o != Offload{} && !vnetHdr:
		return errPlain
	case (o.TSO4 || o.TSO6) && !o.Csum:
		return errOffload
	}
	return nil
}

// SetOffload replaces what the reader allows. The device has those of it that the host
// wants: all, but for those that were switched off by `ethtool -K`, which stay off until
// the host switches them on. The answer is nil, an error that wraps [ErrNotSupported],
// with the device unchanged, or another error.
//
// The driver takes what the reader allows for what the host wants (set_offload in
// drivers/net/tun.c), so SetOffload asks for the host's wish before, and restores it.
// It does not change what is as it should be. A process killed between both leaves the
// device with what the reader allowed: slower, not wrong.
//
// In a network namespace that this process may not enter, the wish cannot be asked for.
// There the device gets what the host was last seen to want.
//
// Frames which already wait in the queues stay as they are: after an offload was
// taken away, the reader must still expect it until the queues have run dry.
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
		return err // there is nothing to allow, and was not before
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

// allow sets what the reader allows, and leaves what the host wants. It runs in the
// namespace of the device.
func (d *Device) allow(index int, o Offload) error {
	f, err := getFeatures(index)
	if err != nil {
		return err
	}
	wish := offloadOf(f.wanted)
	d.wish = &wish
	if wish == (Offload{Csum: true, TSO4: true, TSO6: true}) && offloadOf(f.active) == o {
		return nil
	}
	if err := d.limit(o); err != nil {
		return err
	}
	return f.want(index)
}

// limit sets what the reader allows.
func (d *Device) limit(o Offload) error {
	err := unix.IoctlSetInt(d.queues[0].fd, unix.TUNSETOFFLOAD, o.bits())
	if errors.Is(err, unix.EINVAL) {
		// The driver's documented answer to a bit it does not know.
		return ErrNotSupported
	}
	return err
}
