// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/rundir"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// number returns the part of a vif's name behind "vif", such as 3.0. It is part of the names
// of files.
func number(id xenbus.VifID) string { return strings.TrimPrefix(id.String(), "vif") }

// parseNumber parses the result of number.
func parseNumber(s string) (xenbus.VifID, error) { return xenbus.ParseVifID("vif" + s) }

// journalName returns the name of the file with a queue's journal.
func journalName(id xenbus.VifID, queue int) string {
	return fmt.Sprintf("ring-%s-%d", number(id), queue)
}

func (v *Vif) journalPath(queue int) string {
	return filepath.Join(v.cfg.RunDir, journalName(v.cfg.ID, queue))
}

// removeJournals removes the journals and the record of the control ring of a connection
// that has ended. It does not depend on the number of queues that the connection had.
func (v *Vif) removeJournals() {
	if v.cfg.RunDir == "" {
		return
	}
	for i := range max(v.nodes.offered.maxQueues, v.cfg.MaxQueues) { // a predecessor may have offered more
		v.removeFile(v.journalPath(i))
	}
	v.removeControl()
}

// removeControl removes the record of a control ring.
func (v *Vif) removeControl() {
	if v.cfg.RunDir != "" {
		v.removeFile(v.ctrlPath())
	}
}

// removeFile removes a file in the run directory, if it is there.
func (v *Vif) removeFile(path string) {
	if err := rundir.Remove(path); err != nil {
		v.log.Warn("file not removed", zap.Error(err))
	}
}

// RemoveLeftovers removes the remains of vifs that were removed while no daemon served
// them: TAPs that no process has open, and files in runDir. here reports
// whether a vif still has its directory. RemoveLeftovers returns the names of what it has
// removed, and whether it left TAPs that are in use: the kernel closes the files of a killed
// daemon's io_uring some time after its end.
func RemoveLeftovers(runDir string, here func(xenbus.VifID) bool) (removed []string, inUse bool, err error) {
	others, err := tap.Numbers()
	if err != nil {
		return nil, false, fmt.Errorf("list network namespaces: %w", err)
	}
	var errs []error
	for _, network := range append([]int{ownNetwork}, others...) {
		links, err := tap.LinksIn(network)
		if err != nil && network == ownNetwork {
			return nil, false, fmt.Errorf("list interfaces: %w", err)
		}
		// A namespace that cannot be searched has no TAP of the daemon.
		for _, l := range links {
			if t, ok := l.(*netlink.Tuntap); ok && isLeftover(t, here) {
				gone, err := removeLeftover(network, t)
				if gone {
					removed = append(removed, t.Name)
				}
				inUse = inUse || !gone && err == nil
				errs = append(errs, err)
			}
		}
	}
	if runDir == "" {
		return removed, inUse, errors.Join(errs...)
	}
	files, err := os.ReadDir(runDir)
	errs = append(errs, err)
	for _, f := range files {
		id, ok := ownerOf(f.Name())
		if !ok || here(id) {
			continue
		}
		removed = append(removed, f.Name())
		errs = append(errs, os.Remove(filepath.Join(runDir, f.Name())))
	}
	return removed, inUse, errors.Join(errs...)
}

// isLeftover reports whether a TAP belongs to a vif that is gone.
func isLeftover(t *netlink.Tuntap, here func(xenbus.VifID) bool) bool {
	return slices.ContainsFunc(t.AltNames, func(alt string) bool {
		id, ok := parseAltName(alt)
		return ok && !here(id)
	})
}

// removeLeftover removes a TAP unless a process has one of its queues open.
func removeLeftover(network int, t *netlink.Tuntap) (gone bool, err error) {
	used := t.Queues+t.DisabledQueues > 0 || t.RawFlags&unix.IFF_LOWER_UP != 0
	if network == ownNetwork {
		used, err = tap.InUse(t)
	}
	if used || err != nil {
		return false, err
	}
	err = tap.DeleteIn(network, t)
	return err == nil, err
}

// ownerOf returns the vif that a file in the run directory belongs to.
func ownerOf(name string) (id xenbus.VifID, ok bool) {
	kind, rest, _ := strings.Cut(rundir.Base(name), "-")
	vif, queue, _ := strings.Cut(rest, "-")
	id, err := parseNumber(vif)
	if err != nil {
		return xenbus.VifID{}, false
	}
	switch kind {
	case "ring":
		n, err := strconv.Atoi(queue)
		return id, err == nil && journalName(id, n) == name
	case "ctrl":
		return id, ctrlName(id) == rundir.Base(name)
	case "vif":
		return id, recordName(id) == rundir.Base(name)
	}
	return xenbus.VifID{}, false
}
