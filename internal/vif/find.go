// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"go.uber.org/zap"

	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/xen"
)

// altName is a second name that the TAP keeps when a script renames it or moves it to
// another network namespace, so that a successor finds it. Kernels before 5.5 have no
// such names.
func altName(domid xen.Domid, devid int) string {
	return fmt.Sprintf("%svif%d.%d", altPrefix, domid, devid)
}

const altPrefix = "netbackd-"

// ownNetwork is the number of our own network namespace: see tap.LinkIn.
const ownNetwork = -1

// leftTap is a TAP that a predecessor left.
type leftTap struct {
	link    netlink.Link
	network int
	hasAlt  bool
}

// findTap finds the TAP that a predecessor left; nil if there is none. A script may have
// renamed it or moved it, and its second name may be missing. Only if there has been a
// TAP before, others' namespaces are looked through.
func (v *Vif) findTap() (*leftTap, error) {
	found, err := findAlt(altName(v.cfg.Domid, v.cfg.Devid), v.hadTap)
	if found != nil || err != nil {
		return found, err
	}
	link, err := netlink.LinkByName(v.Name())
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, alt := range link.Attrs().AltNames {
		if domid, devid, ok := parseAlt(alt); ok {
			return nil, fmt.Errorf("%w: %s is the TAP of vif%d.%d, which was renamed; give it another name",
				tap.ErrMismatch, v.Name(), domid, devid)
		}
	}
	return &leftTap{link: link, network: ownNetwork}, nil
}

// findAlt finds a TAP by its second name: in our own network namespace, and if
// everywhere in all others that have a number in ours. A namespace in which we have seen a
// TAP has one.
func findAlt(alt string, everywhere bool) (*leftTap, error) {
	networks := []int{ownNetwork}
	if everywhere {
		others, err := tap.Numbers()
		if err != nil {
			return nil, fmt.Errorf("list network namespaces: %w", err)
		}
		networks = append(networks, others...)
	}
	for _, n := range networks {
		link, err := tap.LinkIn(n, alt)
		if err == nil {
			return &leftTap{link: link, network: n, hasAlt: true}, nil
		}
		if n == ownNetwork && !errors.As(err, new(netlink.LinkNotFoundError)) {
			return nil, err
		}
		// One of the others that is gone by now, or is not ours to look into, is
		// not one in which we have a TAP.
	}
	return nil, nil
}

// parseAlt tells whose TAP has a second name.
func parseAlt(alt string) (domid xen.Domid, devid int, ok bool) {
	name, ok := strings.CutPrefix(alt, altPrefix)
	if !ok {
		return 0, 0, false
	}
	domid, devid, ok = parseName(name)
	return domid, devid, ok && altName(domid, devid) == alt
}

// errTapElsewhere: the TAP cannot be opened where it is.
func errTapElsewhere(link netlink.Link) error {
	return fmt.Errorf("%s: %w, and its queues were lost with the daemon that had them; move it back, or detach and attach the vif",
		link.Attrs().Name, tap.ErrElsewhere)
}

// RemoveTap removes the TAP that a daemon left of a vif that is no more.
func RemoveTap(domid xen.Domid, devid int) error {
	found, err := findAlt(altName(domid, devid), true)
	if found == nil || err != nil {
		return err
	}
	return tap.DeleteIn(found.network, found.link)
}

// removeLeftTap removes the TAP that a predecessor left of this vif.
func (v *Vif) removeLeftTap() error {
	if !v.hadTap {
		// None that a script has seen, so it is where it was made, if there is one.
		return removeTapNamed(altName(v.cfg.Domid, v.cfg.Devid))
	}
	return RemoveTap(v.cfg.Domid, v.cfg.Devid)
}

// nameAgain gives a TAP that was adopted its second name, if it has none: its
// maker was killed before it could.
func (v *Vif) nameAgain(info *tap.Info) {
	alt := altName(v.cfg.Domid, v.cfg.Devid)
	if slices.Contains(info.AltNames, alt) {
		return
	}
	if err := v.tap.AddAltName(alt); err != nil {
		v.log.Warn(noSecondName, errField(err))
	}
}

const noSecondName = "the TAP has no second name: a successor will not find it if a script renames it"

// followTap notices that the TAP was deleted or moved.
func (v *Vif) followTap() {
	away, err := v.tap.Elsewhere()
	switch {
	case errors.Is(err, tap.ErrGone):
		v.loseTap()
	case err == nil && away != v.away:
		v.away = away
		v.log.Info("the TAP was moved to or from another network namespace", zap.Bool("away", away))
	}
}

// dropSpares closes the queues that a new TAP has for the case that its script moves it
// to another network namespace, where no more can be opened: see tap.ErrElsewhere. If
// it did, they stay.
func (v *Vif) dropSpares() {
	if !v.spares || v.tap == nil || !v.nodes.plugged() {
		return
	}
	v.spares = false
	if err := v.tap.SetQueues(1); err != nil && !errors.Is(err, tap.ErrGone) {
		v.log.Warn("tap queues", errField(err))
	}
	v.keepQueues()
}
