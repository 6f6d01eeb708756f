// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"go.uber.org/zap"

	"github.com/netbackd/netbackd/pkg/nlsock"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// altName returns the alternative name of a vif's TAP. The TAP keeps it when a script
// renames the TAP or moves it to another network namespace, so that a successor finds it.
// Kernels before 5.5 have no such names.
func altName(id xenbus.VifID) string { return altPrefix + id.String() }

const altPrefix = "netbackd-"

// noAltName is logged when a TAP cannot be given its alternative name.
const noAltName = "TAP has no alternative name: a successor will not find it if a script renames it"

// parseAltName returns the vif whose TAP has an alternative name.
func parseAltName(alt string) (id xenbus.VifID, ok bool) {
	name, ok := strings.CutPrefix(alt, altPrefix)
	if !ok {
		return xenbus.VifID{}, false
	}
	id, err := xenbus.ParseVifID(name)
	return id, err == nil
}

// ownNetwork stands for the daemon's own network namespace: see tap.LinkIn.
const ownNetwork = -1

// foundTap is a TAP that a predecessor left.
type foundTap struct {
	link    netlink.Link
	network int  // number of its network namespace
	hasAlt  bool // it was found by its alternative name
}

// findTap finds the TAP that a predecessor left. It returns nil if there is none. A script
// may have renamed or moved the TAP, and the alternative name may be missing. findTap
// searches other network namespaces only if there has been a TAP before.
func (v *Vif) findTap() (*foundTap, error) {
	found, err := findByAltName(altName(v.cfg.ID), v.setup != tapUntouched)
	if found != nil || err != nil {
		return found, err
	}
	link, err := nlsock.LinkByName(v.cfg.ID.String())
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, alt := range link.Attrs().AltNames {
		if id, ok := parseAltName(alt); ok {
			return nil, fmt.Errorf("%w: %s is the TAP of %v, which was renamed; give it another name",
				tap.ErrMismatch, v.cfg.ID, id)
		}
	}
	return &foundTap{link: link, network: ownNetwork}, nil
}

// findByAltName finds a TAP by its alternative name in the daemon's own network namespace.
// If everywhere is set, it also searches all namespaces that have a number in the daemon's
// own one. Each namespace in which the daemon has seen a TAP has such a number.
func findByAltName(alt string, everywhere bool) (*foundTap, error) {
	link, err := tap.LinkIn(ownNetwork, alt)
	if err == nil {
		return &foundTap{link: link, network: ownNetwork, hasAlt: true}, nil
	}
	if !errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, err
	}
	if !everywhere {
		return nil, nil
	}
	others, err := tap.Numbers()
	if err != nil {
		return nil, fmt.Errorf("list network namespaces: %w", err)
	}
	for _, n := range others {
		if link, err := tap.LinkIn(n, alt); err == nil {
			return &foundTap{link: link, network: n, hasAlt: true}, nil
		}
		// The daemon has no TAP in a namespace that is gone by now, or that it may not
		// search.
	}
	return nil, nil
}

// errTapElsewhere returns the error for a TAP that is in another network namespace, where
// it cannot be opened.
func errTapElsewhere(link netlink.Link) error {
	return fmt.Errorf("%s: %w, and its queues were lost with the daemon that had them; move it back, or detach and attach the vif",
		link.Attrs().Name, tap.ErrElsewhere)
}

// RemoveTap removes the TAP that a daemon left of a vif that is gone.
func RemoveTap(id xenbus.VifID) error {
	found, err := findByAltName(altName(id), true)
	if found == nil || err != nil {
		return err
	}
	return tap.DeleteIn(found.network, found.link)
}

// removePredecessorTap removes the TAP that a predecessor left of this vif.
func (v *Vif) removePredecessorTap() error {
	if v.setup == tapUntouched {
		// No script has moved it, so it is in the namespace where it was made.
		return removeTapNamed(altName(v.cfg.ID))
	}
	return RemoveTap(v.cfg.ID)
}

// removeTapNamed removes a TAP by one of its names, if it exists.
func removeTapNamed(name string) error {
	l, err := nlsock.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err != nil {
		return err
	}
	return nlsock.LinkDel(l)
}

// restoreAltName gives an adopted TAP its alternative name, if it has none: the daemon that
// made it was killed before it could.
func (v *Vif) restoreAltName(info *tap.Info) {
	alt := altName(v.cfg.ID)
	if slices.Contains(info.AltNames, alt) {
		return
	}
	if err := v.tap.AddAltName(alt); err != nil {
		v.log.Warn(noAltName, zap.Error(err))
	}
}

// checkTap finds out whether the TAP was deleted or moved.
func (v *Vif) checkTap() {
	elsewhere, err := v.tap.Elsewhere()
	switch {
	case errors.Is(err, tap.ErrGone):
		v.tapDeleted()
	case err == nil && elsewhere != v.elsewhere:
		v.elsewhere = elsewhere
		v.log.Info("TAP moved to or from another network namespace", zap.Bool("elsewhere", elsewhere))
	}
}

// closeSpareQueues closes the queues that a new TAP has in case its script moves it to
// another network namespace, where no more can be opened: see tap.ErrElsewhere. If the
// script has done that, they stay.
func (v *Vif) closeSpareQueues() {
	if !v.spareQueues || v.tap == nil || !v.nodes.plugged() {
		return
	}
	v.spareQueues = false
	if err := v.tap.SetQueues(1); err != nil && !errors.Is(err, tap.ErrGone) {
		v.log.Warn("spare TAP queues not closed", zap.Error(err))
	}
	v.storeQueues()
}
