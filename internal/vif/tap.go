// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/nlsock"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// txQueueLen is the number of packets that the TAP queues per queue for a slow guest.
const txQueueLen = 512

// tapSetup tells whether the hotplug script has set up the vif's present TAP.
type tapSetup uint8

const (
	tapUntouched tapSetup = iota // no TAP was made since the toolstack made the directory
	tapSetUp                     // a TAP was made, which the script may have set up
	tapReplaced                  // the TAP that the script set up is gone
)

// made returns the setup after a TAP was made or adopted. An adopted TAP is the one that
// the script set up; a new one is not.
func (s tapSetup) made(adopted bool) tapSetup {
	switch {
	case s == tapUntouched:
		return tapSetUp
	case adopted:
		return s
	}
	return tapReplaced
}

// ensureTap makes the TAP, or adopts the one that a predecessor left.
func (v *Vif) ensureTap(ctx context.Context) error {
	if v.tap != nil {
		return nil
	}
	mtu, err := parseMTU(v.nodes.mtu)
	if err != nil {
		return v.giveUp(ctx, err)
	}
	cfg, err := v.tapConfig()
	if err != nil {
		return v.retryOrGiveUp(ctx, err)
	}
	d, err := v.adoptQueues(cfg)
	if d == nil && err == nil {
		var found *foundTap
		if found, err = v.findTap(); err == nil && found == nil && v.setup != tapUntouched {
			// Reset hotplug-status before the new TAP exists: a successor could not tell
			// that the hotplug script has not set up the new one.
			if err := v.resetHotplug(ctx); err != nil {
				return err
			}
		}
		if err == nil {
			d, err = v.createTap(found, cfg)
		}
	}
	switch {
	case errors.Is(err, errWait):
		return err
	case errors.Is(err, tap.ErrBusy):
		return v.waitWhileBusy(err)
	case err != nil:
		return v.retryOrGiveUp(ctx, err)
	}
	v.tap, v.busySince = d, time.Time{}
	if d.Adopted() {
		v.setup, v.spareQueues = v.setup.made(true), false
		info, err := d.Info()
		if err != nil {
			return v.retryOrGiveUp(ctx, err)
		}
		v.adoptMTU(&info)
		v.restoreAltName(&info)
		v.storeQueues()
		v.log.Info("TAP adopted", zap.String("interface", info.Name), zap.Int("queues", d.Queues()))
		return nil
	}
	if err := v.configureTap(mtu); err != nil {
		v.removeTap()
		return v.retryOrGiveUp(ctx, err)
	}
	v.storeQueues()
	v.setup = v.setup.made(false)
	return nil
}

// createTap opens the TAP that was found, or creates one if found is nil.
func (v *Vif) createTap(found *foundTap, cfg tap.Config) (*tap.Device, error) {
	if found != nil {
		if found.network != ownNetwork {
			return nil, errTapElsewhere(found.link)
		}
		if found.hasAlt {
			cfg.Name = found.link.Attrs().Name
		}
		if t, ok := found.link.(*netlink.Tuntap); ok && v.cfg.Offload {
			cfg.VnetHdr = t.Flags&netlink.TUNTAP_VNET_HDR != 0
		}
	}
	return tap.Create(cfg)
}

// tapConfig returns the configuration of a new TAP.
func (v *Vif) tapConfig() (tap.Config, error) {
	plain, err := isUserspaceBridge(v.nodes.bridge)
	if err != nil {
		return tap.Config{}, fmt.Errorf("look for the bridge %s: %w", v.nodes.bridge, err)
	}
	return tap.Config{
		Name:      v.cfg.ID.String(),
		Queues:    1,
		Single:    v.maxQueues() == 1,
		VnetHdr:   v.cfg.Offload && !plain,
		Persist:   true,
		NoCarrier: v.own != xenbus.Connected,
	}, nil
}

// isUserspaceBridge reports whether a bridge belongs to Open vSwitch's userspace datapath.
// The own interface of such a bridge is a TAP. Open vSwitch reads its ports by packet
// sockets, and forwards packets unchanged. So the TAP of a vif for such a bridge has no
// vnet header, and the data path completes checksums and segments packets. The name may
// end with VLANs, as for the script vif-openvswitch.
func isUserspaceBridge(name string) (bool, error) {
	base, _, _ := strings.Cut(name, ":")
	short, _, _ := strings.Cut(base, ".")
	for _, n := range slices.Compact([]string{name, base, short}) {
		if n == "" {
			continue // no bridge
		}
		l, err := nlsock.LinkByName(n)
		if err == nil {
			_, is := l.(*netlink.Tuntap)
			return is, nil
		}
		// A name with many VLANs may be longer than that of any interface.
		if !errors.As(err, new(netlink.LinkNotFoundError)) && !errors.Is(err, unix.ERANGE) {
			return false, err
		}
	}
	return false, nil
}

// offload reports whether the TAP has vnet headers, or whether a new one would have them.
func (v *Vif) offload() bool {
	if v.tap == nil {
		return v.cfg.Offload
	}
	return v.tap.VnetHdr()
}

// setOffload sets the TAP's offloads to those that the guest supports. The kernel has one
// switch for the checksums of both IP versions; the data path completes those that the
// guest does not support.
func (v *Vif) setOffload(f *features) error {
	if !v.offload() {
		return nil
	}
	csum := f.guest.CsumIPv4 || f.guest.CsumIPv6
	return v.tap.SetOffload(tap.Offload{
		Csum: csum,
		TSO4: csum && f.guest.GSOTCPv4,
		TSO6: csum && f.guest.GSOTCPv6,
	})
}

// macOfVifs is the MAC address of the host's end of all vifs, as with xen-netback. Routed
// guests use it as their gateway's. A bridge takes the lowest address of its ports, so it
// does not take this one.
var macOfVifs = net.HardwareAddr{0xfe, 0xff, 0xff, 0xff, 0xff, 0xff}

// configureTap completes a new TAP.
func (v *Vif) configureTap(mtu int) error {
	if err := v.tap.AddAltName(altName(v.cfg.ID)); err != nil {
		v.log.Warn(noAltName, zap.Error(err))
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
	// Also turn the carrier off on a TAP that replaces one of a connected vif: plug turns
	// it on, and the kernel sets the interface operational only when the carrier changes.
	if err := v.tap.SetCarrier(false); err != nil {
		return err
	}
	if mtu != 0 {
		if err := v.tap.SetMTU(mtu); err != nil {
			return err
		}
	}
	// The script may move the TAP to another network namespace: see closeSpareQueues.
	// Without carrier the host sends nothing into the queues.
	v.spareQueues = v.nodes.hasHotplug
	if v.spareQueues {
		return v.tap.SetQueues(v.maxQueues())
	}
	return nil
}

// errTapLost is reported when the TAP was deleted: the hotplug script has to repeat all
// settings of the TAP, such as its place in a bridge.
var errTapLost = errors.New("the TAP that the hotplug script set up was deleted; run the script for the new one, or detach and attach the vif")

// tapDeleted closes a TAP that another program has deleted.
func (v *Vif) tapDeleted() {
	v.disconnect()
	v.removeTap()
	v.setup = tapReplaced
}

// resetHotplug clears hotplug-status, because the TAP that the hotplug script set up is
// gone.
func (v *Vif) resetHotplug(ctx context.Context) error {
	v.reportError(ctx, "TAP was deleted", errTapLost)
	if v.nodes.hasHotplug && v.nodes.hotplug != "" {
		err := v.changeDir(ctx, func(tx *xenstore.Tx, _ xenbus.State) error {
			return tx.Write(ctx, v.cfg.Path+"/hotplug-status", "")
		})
		if err != nil {
			return err
		}
		v.nodes.hotplug = ""
	}
	// The next TAP does not count as a replacement: the script may set it up and write
	// hotplug-status before the vif looks again.
	v.setup = tapUntouched
	if v.tap != nil {
		v.setup = tapSetUp
	}
	return nil
}

// removeTap removes the TAP, if there is one.
func (v *Vif) removeTap() {
	if v.tap == nil {
		return
	}
	if err := v.tap.Close(); err != nil && !errors.Is(err, tap.ErrGone) {
		v.log.Warn("remove TAP failed", zap.Error(err))
	}
	v.tap, v.fullMTU, v.elsewhere = nil, 0, false
	v.storeQueues()
}

// unregister removes the device: the toolstack has removed it, or its guest is gone. The
// toolstack removes the directory.
func (v *Vif) unregister() {
	v.disconnect()
	if v.tap != nil {
		v.removeTap()
		v.log.Info("device removed")
	} else {
		v.discardKeptQueues()
		if err := v.removePredecessorTap(); err != nil {
			v.log.Warn("remove TAP of a predecessor failed", zap.Error(err))
		}
	}
	v.removeJournals()
	v.removeRecord()
}

// plug turns the carrier on so that packets pass. If the toolstack runs no script, plug
// also brings the interface up.
func (v *Vif) plug(ctx context.Context) error {
	if v.setup == tapReplaced || !v.nodes.plugged() { // connect has found a change
		return errAgain
	}
	if v.own != xenbus.Connected {
		v.dropDisciplines()
	}
	carrier := carrierFor(v.conn.stalled)
	err := v.tap.SetCarrier(carrier == carrierOn)
	if err == nil && !v.nodes.hasHotplug {
		err = v.tap.SetUp()
		if errors.Is(err, tap.ErrElsewhere) {
			err = nil // the status shows that it is down
		}
	}
	if err == nil && carrier == carrierOn {
		err = v.awaitOperational()
	}
	if errors.Is(err, tap.ErrGone) {
		return errAgain
	}
	if err != nil {
		return v.retryOrGiveUp(ctx, err)
	}
	v.conn.carrier = carrier
	return nil
}

// setCarrier turns the TAP's carrier on or off.
func (v *Vif) setCarrier(on bool) {
	if err := v.tap.SetCarrier(on); err != nil && !errors.Is(err, tap.ErrGone) {
		v.log.Warn("carrier not changed", zap.Bool("on", on), zap.Error(err))
	}
}

// ClaimedKey is a key of the backend directory. It is 1 if another back end has served the
// vif, and this one has not been connected to the guest since.
const ClaimedKey = "claimed"

// clearClaim removes ClaimedKey: the vif belongs to this back end for good.
func (v *Vif) clearClaim(ctx context.Context) error {
	if !v.claimed {
		return nil
	}
	err := v.changeDir(ctx, func(tx *xenstore.Tx, _ xenbus.State) error {
		err := tx.Remove(ctx, v.cfg.Path+"/"+ClaimedKey)
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

// dropDisciplines removes the queueing disciplines that the kernel makes when another
// program deletes those of the TAP, as Open vSwitch does with its interfaces. Disciplines
// that an administrator has set stay. No packet is lost, since the carrier is still off.
func (v *Vif) dropDisciplines() {
	err := v.tap.SetNoQueue()
	for _, tolerable := range []error{nil, tap.ErrNotSupported, tap.ErrElsewhere, tap.ErrGone} {
		if errors.Is(err, tolerable) {
			return
		}
	}
	v.log.Warn("the kernel's queueing disciplines stay", zap.Error(err))
}

// limitMTU lowers the MTU for a frontend without scatter-gather, which takes only packets
// of one slot, and restores it for the next frontend with scatter-gather: a guest's boot
// loader often lacks a feature of its kernel.
func (v *Vif) limitMTU(sg bool) error {
	info, err := v.tap.Info()
	if err != nil {
		return err
	}
	switch {
	case !sg && info.MTU > defaultMTU:
		v.fullMTU = info.MTU
		v.saveRecord() // before the change, which no other place records
		err := v.tap.SetMTU(defaultMTU)
		switch {
		case err == nil:
			v.log.Warn("MTU lowered: the guest takes no packet larger than a page until it reconnects",
				zap.Int("mtu", defaultMTU), zap.Int("was", info.MTU))
		case errors.Is(err, tap.ErrElsewhere):
			v.fullMTU = 0
			v.log.Warn("the guest takes no packet larger than a page, and others are dropped: lower the MTU of its interface in the other network namespace",
				zap.Int("mtu", info.MTU), zap.Error(err))
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

// enforceMTU lowers the MTU again after packets were too large for a guest without
// scatter-gather, because the host has raised the MTU while the guest was connected.
// xen-netback refuses such a change (xenvif_change_mtu); the driver of a TAP cannot be
// made to refuse it.
func (v *Vif) enforceMTU() {
	info, err := v.tap.Info()
	if err == nil && info.MTU <= defaultMTU {
		v.log.Warn("packets dropped that are larger than the guest takes, and than the MTU of its interface", zap.Int("mtu", info.MTU))
		return
	}
	if err == nil {
		err = v.limitMTU(false)
	}
	if err != nil && !errors.Is(err, tap.ErrGone) {
		v.log.Warn("MTU not lowered", zap.Error(err))
	}
}
