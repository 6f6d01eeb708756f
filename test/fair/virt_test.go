// SPDX-License-Identifier: Apache-2.0

package fair

import (
	"fmt"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/netbackd/netbackd/internal/lab"
	"github.com/netbackd/netbackd/internal/lab/guest"
	"github.com/netbackd/netbackd/internal/lab/hostile"
	"github.com/netbackd/netbackd/internal/lab/vhostfront"
	"github.com/netbackd/netbackd/internal/vhostnet"
)

// Each device of vhost-user has a process of its own, so the kernel divides the processors
// between them.

// device starts the process of a device whose TAP is on the bridge.
func (h *host) device(name string) *lab.Vhost {
	h.tb.Helper()
	d, err := h.StartVhost(h.ctx, name, "--bridge", bridge, "--queues", "1")
	h.must(err)
	return d
}

// virtGuest starts an innocent guest on a device.
func (h *host) virtGuest(d *lab.Vhost) *lab.Guest {
	h.tb.Helper()
	h.guests++
	g, err := h.StartVirt(h.ctx, d.Name, guest.VirtConfig{
		MAC: mac(h.guests), Addrs: []string{fmt.Sprintf("10.98.0.%d/16", 10+h.guests)},
		Front: vhostfront.Config{Socket: d.Socket},
	})
	h.must(err)
	h.deviceUp(d)
	return g.Guest
}

// deviceUp waits until the bridge forwards packets of a device.
func (h *host) deviceUp(d *lab.Vhost) {
	h.tb.Helper()
	h.wait(d.Name+" to be up", func() bool {
		s, err := d.Status(h.ctx)
		if err != nil || s.State != vhostnet.Connected {
			return false
		}
		l, err := netlink.LinkByName(s.Interface)
		return err == nil && l.Attrs().OperState == netlink.OperUp
	})
}

// virtCrew starts a device, and a process that plays its guest.
func (h *host) virtCrew(name string) *crew {
	h.tb.Helper()
	d := h.device(name)
	c := h.recruit()
	c.join(hostile.JoinArgs{Sockets: []string{d.Socket}})
	h.deviceUp(d)
	return c
}

// newVirtField sets up the guests of a load on a device of vhost-user.
func newVirtField(h *host, l load) *field {
	h.tb.Helper()
	f := &field{host: h, load: l, dst: map[target][]string{}}
	f.device = h.device("quiet")
	f.quiet = h.virtGuest(f.device)
	f.other = h.virtGuest(h.device("other"))
	f.bad = h.virtCrew("bad")
	f.peer = h.virtCrew("peer")
	f.dst[toHost] = []string{h.bridgeMAC()}
	return f
}

// virtReconnect has the other guest begin another session, and returns how long it takes.
func (f *field) virtReconnect() time.Duration {
	f.tb.Helper()
	begun := time.Now()
	_, err := f.other.Virt(f.ctx, guest.VirtArgs{Op: "reconnect"})
	f.must(err)
	return time.Since(begun)
}
