// SPDX-License-Identifier: Apache-2.0

package netfront

import (
	"context"
	"fmt"
	"strconv"

	"github.com/netbackd/netbackd/pkg/xenbus"
)

// xdpHeadroomKey is the frontend's key for the number of free bytes before each packet.
const xdpHeadroomKey = "xdp-headroom"

// SetXDPHeadroom asks for n bytes before each packet, as Linux's netfront does when a
// program is attached or detached (xennet_xdp_set): Reconfiguring, the key, and when
// the backend is Reconfigured, Connected again. Later connections ask for it, too.
func (d *Device) SetXDPHeadroom(ctx context.Context, n uint16) error {
	if !d.offers.XDPHeadroom {
		return fmt.Errorf("%w: it does not say feature-xdp-headroom", ErrRefused)
	}
	if err := d.SwitchState(ctx, xenbus.Reconfiguring); err != nil {
		return err
	}
	if err := d.WriteKey(ctx, xdpHeadroomKey, strconv.Itoa(int(n))); err != nil {
		return err
	}
	if _, err := d.WaitBackend(ctx, xenbus.Reconfigured); err != nil {
		return err
	}
	d.cfg.XDPHeadroom = n
	return d.SwitchState(ctx, xenbus.Connected)
}

// headroom holds the expected number of bytes before a packet, and the one before the
// last change. Packets with the old headroom may arrive until the first one with the new.
type headroom struct{ now, before uint16 }

// ExpectXDPHeadroom checks for n bytes before each packet from now on.
func (q *Queue) ExpectXDPHeadroom(n uint16) {
	q.headroom.before, q.headroom.now = q.headroom.now, n
}

// checkHeadroom checks a packet's headroom. An XDP program does not see the flags, so a
// packet with headroom must have a complete checksum and need no segmentation.
func (q *Queue) checkHeadroom(p *Packet) {
	h, m := &q.headroom, &p.Meta
	switch m.Headroom {
	case h.now:
		h.before = h.now
	case h.before:
	default:
		q.violate(RuleHeadroom, "rx", p.start, "%d bytes, want %d", m.Headroom, h.now)
	}
	switch at := p.frags[0].offset; {
	case m.Headroom == 0:
	case at != m.Headroom:
		q.violate(RuleHeadroom, "rx", p.start, "%d bytes, but the data is at %d", m.Headroom, at)
	case m.CsumBlank || m.GSOSize != 0:
		q.violate(RuleHeadroom, "rx", p.start, "blank checksum %t, segments of %d", m.CsumBlank, m.GSOSize)
	}
}
