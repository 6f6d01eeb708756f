// SPDX-License-Identifier: Apache-2.0

package vhostnet

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/nlsock"
	"github.com/netbackd/netbackd/pkg/tap"
)

// TapConfig describes the TAP of a device.
type TapConfig struct {
	// Name is the interface's name. A TAP that exists is used as it is, and stays when the
	// device ends. Otherwise one is made, which the device removes at its end.
	Name string
	// Bridge is the Linux bridge that the TAP is added to; empty: none.
	Bridge string
	// MTU is set on the interface; 0 leaves it, and gives a new TAP that of its bridge.
	MTU int
	// Queues is the number of queues, 1 to tap.MaxQueues; 0 is Auto, or 1 if the TAP can
	// have one only.
	Queues, Auto int
	// HashKey steers packets to the guest by the Toeplitz hash with this key; empty: the
	// kernel chooses.
	HashKey []byte
	// Transient makes a TAP that ends with the process, even if it is killed: no successor
	// could find it.
	Transient bool
}

// altPrefix begins the second name of a TAP that was made here, by which a successor of a
// killed process knows that the TAP is not the administrator's.
const altPrefix = "netbackd-vhost-"

// txQueueLen is the number of packets that the TAP queues per queue for a slow guest.
const txQueueLen = 512

// macOfTaps is the MAC address of the host's end of TAPs that are made here, as of those of
// vifs: a bridge takes the lowest address of its ports, so it does not take this one.
var macOfTaps = net.HardwareAddr{0xfe, 0xff, 0xff, 0xff, 0xff, 0xff}

// link is the TAP of a device.
type link struct {
	mu        sync.Mutex // guards all below
	dev       *tap.Device
	ours      bool // it was made here, or by a predecessor
	transient bool
	uso       bool   // it takes UDP segmentation
	fixedMTU  bool   // the MTU was given, or is the administrator's
	toldMTU   int    // that the front end has set; 0: none
	ownMTU    int    // that there was before
	running   []bool // by pair: its ring to the guest is started and enabled
	stalled   []bool // by pair: its guest posts no buffers
	active    int    // queues that the host has
	carrier   bool
	offload   tap.Offload // that the guest takes
	steering  *steering
}

// openLink opens the TAP, or makes one. It has no carrier, and the host drops what it sends.
func openLink(cfg TapConfig) (*link, error) {
	t, err := findTap(cfg.Name)
	if err != nil {
		return nil, err
	}
	l := &link{ours: t == nil, transient: cfg.Transient && t == nil, fixedMTU: cfg.MTU != 0}
	// A new TAP persists when it has its second name: see complete.
	c := tap.Config{Name: cfg.Name, Queues: cfg.Queues, VnetHdr: true, Persist: t != nil, NoCarrier: true}
	if cfg.Queues == 0 {
		c.Queues = max(cfg.Auto, 1)
	}
	if t != nil {
		l.ours = slices.Contains(t.AltNames, altPrefix+cfg.Name)
		c.VnetHdr = t.Flags&netlink.TUNTAP_VNET_HDR != 0
		if t.Flags&netlink.TUNTAP_MULTI_QUEUE == 0 && cfg.Queues == 0 {
			c.Queues = 1
		}
	}
	if l.dev, err = tap.Create(c); err != nil {
		return nil, explainTap(cfg.Name, err)
	}
	if l.dev.Queues() < c.Queues {
		err = fmt.Errorf("the TAP %s can have one queue only: make it with `ip tuntap add %s mode tap multi_queue vnet_hdr`, or use --queues 1", cfg.Name, cfg.Name)
		return nil, errors.Join(err, l.close())
	}
	l.fixedMTU = l.fixedMTU || !l.ours
	l.running, l.stalled = make([]bool, l.dev.Queues()), make([]bool, l.dev.Queues())
	if l.steering, err = newSteering(cfg.HashKey, l.dev.SetSteering); err == nil {
		err = errors.Join(l.probe(), l.configure(cfg, t == nil))
	}
	if err != nil {
		return nil, errors.Join(err, l.close())
	}
	return l, nil
}

// probe finds out whether the TAP takes UDP segmentation, and leaves it without offloads.
func (l *link) probe() error {
	if !l.dev.VnetHdr() {
		return nil
	}
	err := l.dev.SetOffload(tap.Offload{Csum: true, USO: true})
	if errors.Is(err, tap.ErrNotSupported) { // before Linux 6.2
		err = nil
	} else {
		l.uso = err == nil
	}
	return errors.Join(err, l.dev.SetOffload(tap.Offload{}))
}

// findTap returns the TAP of a name, nil if there is no interface of that name.
func findTap(name string) (*netlink.Tuntap, error) {
	found, err := nlsock.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look for the TAP %s: %w", name, err)
	}
	t, ok := found.(*netlink.Tuntap)
	if !ok || t.Mode != netlink.TUNTAP_MODE_TAP {
		return nil, fmt.Errorf("the interface %s is no TAP but a %s: give another name, or use --bridge to have a TAP made", name, found.Type())
	}
	return t, nil
}

// explainTap adds a remedy to an error of opening the TAP.
func explainTap(name string, err error) error {
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w; an administrator can make it for this user: `ip tuntap add %s mode tap multi_queue vnet_hdr user NAME`", err, name)
	}
	return err
}

// configure applies the settings. made says that the TAP is new.
func (l *link) configure(cfg TapConfig, made bool) error {
	var bridge netlink.Link
	if cfg.Bridge != "" {
		var err error
		if bridge, err = findBridge(cfg.Bridge); err != nil {
			return err
		}
	}
	if made {
		if err := l.complete(cfg.Name); err != nil {
			return err
		}
	}
	mtu := cfg.MTU
	if mtu == 0 && made && bridge != nil {
		mtu = bridge.Attrs().MTU
	}
	if mtu != 0 {
		if err := l.dev.SetMTU(mtu); err != nil {
			return err
		}
	}
	// Before it is up, so that it does not announce itself on the wrong network.
	if bridge != nil {
		own, err := nlsock.LinkByIndex(l.dev.Index())
		if err == nil && own.Attrs().MasterIndex != bridge.Attrs().Index {
			err = nlsock.Do(func(h *netlink.Handle) error { return h.LinkSetMaster(own, bridge) })
		}
		if err != nil {
			return fmt.Errorf("add %s to the bridge %s: %w", cfg.Name, cfg.Bridge, err)
		}
	}
	if err := l.attach(0); err != nil {
		return err
	}
	if l.ours || bridge != nil {
		return l.dev.SetUp()
	}
	return nil
}

// complete completes a TAP that is new.
func (l *link) complete(name string) error {
	if !l.transient {
		if err := errors.Join(l.dev.AddAltName(altPrefix+name), l.dev.SetPersist(true)); err != nil {
			return err
		}
	}
	if err := l.dev.SetMAC(macOfTaps); err != nil {
		return err
	}
	if err := l.dev.SetTxQueueLen(txQueueLen); err != nil {
		return err
	}
	if err := l.dev.SetNoQueue(); err != nil && !errors.Is(err, tap.ErrNotSupported) {
		return err
	}
	return nil
}

// findBridge returns a Linux bridge.
func findBridge(name string) (netlink.Link, error) {
	b, err := nlsock.LinkByName(name)
	switch {
	case errors.As(err, new(netlink.LinkNotFoundError)):
		return nil, fmt.Errorf("there is no bridge %s: make it with `ip link add %s type bridge`", name, name)
	case err != nil:
		return nil, fmt.Errorf("look for the bridge %s: %w", name, err)
	case b.Type() != "bridge":
		return nil, fmt.Errorf("%s is no Linux bridge but a %s: use --tap, and add the TAP to its switch, such as by `ovs-vsctl add-port %s TAP`", name, b.Type(), name)
	}
	return b, nil
}

// setRunning says whether the ring to the guest of a pair is started and enabled.
func (l *link) setRunning(pair int, on bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.running[pair] = on
	if !on {
		l.stalled[pair] = false
	}
	return l.follow()
}

// setStalled says whether the guest of a pair posts no buffers, and returns whether that is
// new.
func (l *link) setStalled(pair int, on bool) (changed bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	on = on && l.running[pair]
	changed = on != l.stalled[pair]
	l.stalled[pair] = on
	return changed, l.follow()
}

// stop takes all pairs out of use.
func (l *link) stop() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.running)
	clear(l.stalled)
	return l.follow()
}

// follow gives the host the queues of the first pairs that run, and the carrier. The kernel
// numbers the queues in the order in which they are attached, so a pair behind one that does
// not run gets none. Preconditions: mu held.
func (l *link) follow() error {
	n := slices.Index(l.running, false)
	if n < 0 {
		n = len(l.running)
	}
	carrier := n > 0 && !slices.Contains(l.stalled, true)
	if l.carrier && !carrier {
		if err := l.dev.SetCarrier(false); err != nil {
			return err
		}
		l.carrier = false
	}
	if n != l.active {
		if err := errors.Join(l.attach(n), l.steering.follow(n)); err != nil {
			return err
		}
		l.active = n
	}
	if carrier && !l.carrier {
		if err := l.dev.SetCarrier(true); err != nil {
			return err
		}
		l.carrier = true
		// Recent kernels act on the carrier before they answer this. Older ones do it a
		// moment later, by themselves.
		_, err := l.dev.Info()
		return err
	}
	return nil
}

// attach gives the host the first n queues. What waits in them, which was sent to an earlier
// guest, is dropped first. The only queue of a device that can have one cannot be taken away:
// it is stopped by the carrier alone, because the filter of tap.Device.Rest would outlive a
// killed process on an administrator's TAP.
func (l *link) attach(n int) error {
	single := l.dev.MaxQueues() == 1
	switch {
	case single && n == 0:
		return nil
	case n == 0:
		return l.dev.Rest()
	case single:
		if err := l.dev.Rest(); err != nil {
			return err
		}
	}
	return l.dev.Use(n)
}

// use returns the number of pairs in use, and whether the guest of one posts no buffers.
func (l *link) use() (active int, stalled bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.active, slices.Contains(l.stalled, true)
}

// setOffload sets the offloads that the guest takes.
func (l *link) setOffload(o tap.Offload) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.dev.VnetHdr() || o == l.offload {
		return nil
	}
	if err := l.dev.SetOffload(o); err != nil {
		return err
	}
	l.offload = o
	return nil
}

// setMTU gives the interface the MTU of the guest, or refuses it: an MTU that was given by
// flag or set by an administrator stays, and the guest's may not be larger.
func (l *link) setMTU(mtu int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	info, err := l.dev.Info()
	switch {
	case err != nil:
		return err
	case mtu == info.MTU:
		return nil
	case l.fixedMTU && mtu > info.MTU:
		return fmt.Errorf("the interface %s has an MTU of %d, the front end wants %d: set it with --mtu or `ip link set %s mtu %d`", info.Name, info.MTU, mtu, info.Name, mtu)
	case l.fixedMTU:
		return nil
	}
	if err := l.dev.SetMTU(mtu); err != nil {
		return err
	}
	if l.toldMTU == 0 {
		l.ownMTU = info.MTU
	}
	l.toldMTU = mtu
	return nil
}

// restoreMTU gives the interface the MTU that it had before the front end set one, unless it
// was changed since.
func (l *link) restoreMTU() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.toldMTU == 0 {
		return nil
	}
	told := l.toldMTU
	l.toldMTU = 0
	info, err := l.dev.Info()
	if err != nil || info.MTU != told {
		return err
	}
	return l.dev.SetMTU(l.ownMTU)
}

// info asks the host about the interface.
func (l *link) info() (tap.Info, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.dev.Info()
}

// nameOf returns the name of an interface, or "" if there is none.
func nameOf(index int) string {
	if index == 0 {
		return ""
	}
	l, err := nlsock.LinkByIndex(index)
	if err != nil {
		return ""
	}
	return l.Attrs().Name
}

// close removes a TAP that was made here, and leaves another as it was found.
func (l *link) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	err := l.steering.close()
	if l.ours {
		err = errors.Join(err, l.dev.Close())
	} else {
		err = errors.Join(err, l.dev.CloseKeep())
	}
	if l.ours && errors.Is(err, tap.ErrGone) {
		return nil
	}
	return err
}
