// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"errors"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/zap"

	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// txQueueLen is how many packets the TAP keeps per queue for a guest that is
// slow to take them.
const txQueueLen = 512

// makeTap makes the TAP, or takes over the one a predecessor left.
func (v *Vif) makeTap() error {
	if v.tap != nil {
		return nil
	}
	mtu, err := parseMTU(v.nodes.mtu)
	if err != nil {
		return v.giveUp(err)
	}
	cfg := v.tapConfig()
	d, err := v.adopt(cfg)
	if d == nil && err == nil {
		var found *leftTap
		found, err = v.findTap()
		switch {
		case err != nil:
			return v.hostFails(err)
		case found == nil:
			if v.hadTap {
				// Before there is another: a successor could not tell that the
				// hotplug script has never seen that one.
				if err := v.unplug(); err != nil {
					return err
				}
			}
		case found.network != ownNetwork:
			return v.hostFails(errTapElsewhere(found.link))
		default:
			if found.hasAlt {
				cfg.Name = found.link.Attrs().Name
			}
			if t, ok := found.link.(*netlink.Tuntap); ok && v.cfg.Offload {
				cfg.VnetHdr = t.Flags&netlink.TUNTAP_VNET_HDR != 0
			}
		}
		d, err = tap.Create(cfg)
	}
	switch {
	case errors.Is(err, errWait):
		return err
	case errors.Is(err, tap.ErrBusy):
		return v.await(err)
	case err != nil:
		return v.hostFails(err)
	}
	v.tap, v.busySince = d, time.Time{}
	if d.Adopted() {
		v.hadTap, v.spares = true, false
		info, err := d.Info()
		if err != nil {
			return v.hostFails(err)
		}
		v.inheritMTU(&info)
		v.nameAgain(&info)
		v.keepQueues()
		v.log.Info("took over the TAP that was there", zap.String("interface", info.Name), zap.Int("queues", d.Queues()))
		return nil
	}
	if err := v.settleTap(mtu); err != nil {
		v.removeTap()
		return v.hostFails(err)
	}
	v.keepQueues()
	v.lost = v.lost || v.hadTap
	v.hadTap = true
	return nil
}

// tapConfig returns the configuration that the TAP is to have.
func (v *Vif) tapConfig() tap.Config {
	return tap.Config{
		Name:      v.Name(),
		Queues:    1,
		Single:    v.maxQueues() == 1,
		VnetHdr:   v.cfg.Offload && !isUserspaceBridge(v.nodes.bridge),
		Persist:   true,
		NoCarrier: v.own != xenbus.Connected,
	}
}

// isUserspaceBridge reports whether a bridge is one of Open vSwitch's userspace datapath:
// its own interface is a TAP. Open vSwitch reads its ports by packet sockets, and takes
// packets as they are. So the TAP of a vif for such a bridge has no vnet header, and the
// data path finishes what the guest leaves undone. The name may have VLANs behind it, as
// the script vif-openvswitch takes it.
func isUserspaceBridge(name string) bool {
	base, _, _ := strings.Cut(name, ":")
	short, _, _ := strings.Cut(base, ".")
	for _, n := range []string{name, base, short} {
		if l, err := netlink.LinkByName(n); err == nil {
			_, is := l.(*netlink.Tuntap)
			return is
		}
	}
	return false
}

// offload reports whether the TAP has vnet headers.
func (v *Vif) offload() bool {
	if v.tap == nil {
		return v.cfg.Offload
	}
	return v.tap.VnetHdr()
}

// macOfVifs is the address of the host's end, the same for all vifs, as
// xen-netback's have it: routed guests know it as their gateway's, and a bridge,
// which takes the lowest address of its ports, does not take this one.
var macOfVifs = net.HardwareAddr{0xfe, 0xff, 0xff, 0xff, 0xff, 0xff}

// settleTap completes a new TAP.
func (v *Vif) settleTap(mtu int) error {
	if err := v.tap.AddAltName(altName(v.cfg.Domid, v.cfg.Devid)); err != nil {
		v.log.Warn(noSecondName, errField(err))
	}
	if err := v.tap.SetMAC(macOfVifs); err != nil {
		return err
	}
	if err := v.tap.SetTxQueueLen(txQueueLen); err != nil {
		return err
	}
	if err := v.tap.SetNoQueue(); err != nil && !errors.Is(err, tap.ErrNotSupported) {
		return err
	}
	// Also if this one stands in for the TAP of a connected vif: plug sets the
	// carrier, and a kernel that never saw it change never says that the
	// interface is operational.
	if err := v.tap.SetCarrier(false); err != nil {
		return err
	}
	if mtu != 0 {
		if err := v.tap.SetMTU(mtu); err != nil {
			return err
		}
	}
	// The script may move the TAP to another network namespace: see dropSpares. Without
	// carrier the host sends nothing into them.
	v.spares = v.nodes.hasHotplug
	if v.spares {
		return v.tap.SetQueues(v.maxQueues())
	}
	return nil
}

// errTapLost: what depended on the TAP, such as its place in a bridge, the
// hotplug script has to do again.
var errTapLost = errors.New("the TAP that the hotplug script set up was deleted; run the script for the new one, or detach and attach the vif")

// loseTap lets go of a TAP that somebody deleted.
func (v *Vif) loseTap() {
	v.disconnect()
	v.removeTap()
	v.lost = true
}

// unplug takes back that the hotplug script is through: it did its work on a TAP
// that is no more.
func (v *Vif) unplug() error {
	v.fail(errTapLost)
	if v.nodes.hasHotplug && v.nodes.hotplug != "" {
		err := v.change(func(tx *xenstore.Tx, _ xenbus.State) error {
			return tx.Write(v.cfg.Path+"/hotplug-status", "")
		})
		if err != nil {
			return err
		}
		v.nodes.hotplug = ""
	}
	// The next TAP, if there is none yet, is not a second loss: the script may be
	// through with it, and may have said so, before the vif looks again.
	v.lost, v.hadTap = false, v.tap != nil
	return nil
}

// removeTap removes the TAP.
func (v *Vif) removeTap() {
	if v.tap == nil {
		return
	}
	if err := v.tap.Close(); err != nil && !errors.Is(err, tap.ErrGone) {
		v.log.Warn("remove TAP", errField(err))
	}
	v.tap, v.fullMTU, v.away = nil, 0, false
	v.keepQueues()
}

// plug lets packets pass. Where the toolstack runs no script nobody else brings
// the TAP up.
func (v *Vif) plug() error {
	if v.lost || !v.nodes.plugged() { // found out on the way here
		return errAgain
	}
	if v.own != xenbus.Connected {
		v.dropDisciplines()
	}
	// A guest that gave no rx slots to a predecessor may give none yet.
	dark := slices.Contains(v.link.stalled, true)
	err := v.tap.SetCarrier(!dark)
	if err == nil && !v.nodes.hasHotplug {
		err = v.tap.SetUp()
		if errors.Is(err, tap.ErrElsewhere) {
			err = nil // who moved it there has to do it; status says so
		}
	}
	if err == nil && !dark {
		err = v.awaitCarrier()
	}
	if errors.Is(err, tap.ErrGone) {
		return errAgain
	}
	if err != nil {
		return v.hostFails(err)
	}
	v.live, v.link.dark = true, dark
	return nil
}

// ClaimedKey is a key of the backend's directory: 1 says that another back end served
// the vif, and that this one has not been connected to its guest since.
const ClaimedKey = "claimed"

// settled takes note that the vif is one of this back end for good.
func (v *Vif) settled() error {
	if !v.claimed {
		return nil
	}
	err := v.change(func(tx *xenstore.Tx, _ xenbus.State) error {
		err := tx.Remove(v.cfg.Path + "/" + ClaimedKey)
		if errors.Is(err, xenstore.ErrNotExist) {
			return nil
		}
		return err
	})
	if err == nil {
		v.claimed = false
	}
	return err
}

// dropDisciplines takes away what the kernel made if the queueing discipline that the TAP
// had was deleted, as Open vSwitch does with an interface that it is given.
// What the host has set stays. Nothing is lost before there is a carrier.
func (v *Vif) dropDisciplines() {
	err := v.tap.SetNoQueue()
	for _, tolerable := range []error{nil, tap.ErrNotSupported, tap.ErrElsewhere, tap.ErrGone} {
		if errors.Is(err, tolerable) {
			return
		}
	}
	v.log.Warn("queueing disciplines of the kernel's stay", errField(err))
}

// awaitCarrier waits, but not long, until the kernel has taken notice of the
// carrier. Only then does a bridge forward, and the first thing a guest sends when
// it is told that it is connected, after a migration, is the ARP by which the
// network learns where it is now.
func (v *Vif) awaitCarrier() error {
	const step, most = time.Millisecond, 100 * time.Millisecond
	for wait := time.Duration(0); wait < most; wait += step {
		info, err := v.tap.Info()
		if err != nil {
			return err
		}
		if !info.Up || info.Operational {
			return nil
		}
		v.turn.Aside(func() { time.Sleep(step) })
	}
	return nil
}

// setCarrier tells the host whether somebody takes packets.
func (v *Vif) setCarrier(on bool) {
	if err := v.tap.SetCarrier(on); err != nil && !errors.Is(err, tap.ErrGone) {
		v.log.Warn("carrier", errField(err))
	}
}

// limitMTU keeps the host from sending packets that do not fit one slot to a
// frontend that takes no more, and undoes that for the next frontend: a guest's
// boot loader often has none of what its kernel has.
func (v *Vif) limitMTU(sg bool) error {
	info, err := v.tap.Info()
	if err != nil {
		return err
	}
	switch {
	case !sg && info.MTU > defaultMTU:
		v.fullMTU = info.MTU
		v.saveRecord() // first: nothing else would know
		err := v.tap.SetMTU(defaultMTU)
		switch {
		case err == nil:
			v.log.Warn("the guest takes no packet larger than a page: its interface has a lower MTU until it connects anew and does",
				zap.Int("mtu", defaultMTU), zap.Int("was", info.MTU))
		case errors.Is(err, tap.ErrElsewhere):
			v.fullMTU = 0
			v.log.Warn("the guest takes no packet larger than a page, and others are dropped: set a lower MTU where its interface is",
				zap.Int("mtu", info.MTU), errField(err))
		default:
			v.fullMTU = 0
			return err
		}
	case sg && v.fullMTU != 0 && info.MTU == defaultMTU:
		if err := v.tap.SetMTU(v.fullMTU); err != nil {
			return err
		}
		v.fullMTU = 0
	}
	return nil
}

// refuseMTU acts on packets that were too big for a guest without scatter-gather. If the
// host raised the MTU while the guest was connected, it is lowered again. xen-netback
// refuses to set it (xenvif_change_mtu); a TAP's driver cannot be told to.
func (v *Vif) refuseMTU() {
	info, err := v.tap.Info()
	if err == nil && info.MTU <= defaultMTU {
		v.log.Warn("packets were dropped that are larger than the guest takes, and than the MTU of its interface", zap.Int("mtu", info.MTU))
		return
	}
	if err == nil {
		err = v.limitMTU(false)
	}
	if err != nil && !errors.Is(err, tap.ErrGone) {
		v.log.Warn("lower the MTU", errField(err))
	}
}

// unregister removes the device: the toolstack, or the end of the guest, has
// taken it away. The directory is the toolstack's to remove.
func (v *Vif) unregister() {
	v.disconnect()
	if v.tap != nil {
		v.removeTap()
		v.log.Info("device removed")
	} else {
		v.dropKept()
		if err := v.removeLeftTap(); err != nil {
			v.log.Warn("remove TAP of a predecessor", errField(err))
		}
	}
	v.removeJournals()
	v.removeRecord()
}

// handOver stops serving without telling anybody: the TAP stays, the journals
// stay, the frontend's rings stay as they are.
func (v *Vif) handOver() {
	if v.link != nil {
		v.link.release(v)
		v.saveRecord()
		v.link, v.live = nil, false
	}
	v.unwatch()
	v.leaveKept()
	if v.tap == nil {
		return
	}
	if err := v.tap.CloseKeep(); err != nil && !errors.Is(err, tap.ErrGone) {
		v.log.Warn("keep tap", errField(err))
	}
	v.tap = nil
}
