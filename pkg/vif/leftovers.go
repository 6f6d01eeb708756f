// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/netbackd/netbackd/pkg/tap"
)

// journalName is the file of a queue's journal.
func journalName(domid uint16, devid, queue int) string {
	return fmt.Sprintf("ring-%d.%d-%d", domid, devid, queue)
}

func (v *Vif) journalPath(queue int) string {
	return filepath.Join(v.cfg.RunDir, journalName(v.cfg.Domid, v.cfg.Devid, queue))
}

// removeJournals removes the journals of a device that is gone, however many
// queues it had.
func (v *Vif) removeJournals() {
	if v.cfg.RunDir == "" {
		return
	}
	n, _ := parseUint("", v.nodes.maxQueues, 0, tap.MaxQueues) // as a predecessor offered
	for i := range max(int(n), v.cfg.MaxQueues) {
		v.removeJournal(v.journalPath(i))
	}
	v.removeControl()
}

// removeControl removes the record of a control ring.
func (v *Vif) removeControl() {
	if v.cfg.RunDir == "" {
		return
	}
	v.removeJournal(v.ctrlPath())
	v.removeJournal(v.ctrlPath() + ctrlNew)
}

func (v *Vif) removeJournal(path string) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		v.log.Warn("remove journal", errField(err))
	}
}

// RemoveLeftovers removes what earlier daemons left of vifs that were removed
// while nobody served them: TAPs that no process holds, and the journals in
// runDir. Here reports whether a vif still has its directory. It returns what
// was removed.
func RemoveLeftovers(runDir string, here func(domid uint16, devid int) bool) (removed []string, err error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	var errs []error
	for _, l := range links {
		t, ok := l.(*netlink.Tuntap)
		if !ok {
			continue
		}
		for _, alt := range t.AltNames {
			domid, devid, ok := parseName(strings.TrimPrefix(alt, altPrefix))
			if !ok || altName(domid, devid) != alt || here(domid, devid) {
				continue
			}
			if used, err := tap.InUse(t); used || err != nil {
				errs = append(errs, err)
				continue
			}
			removed = append(removed, t.Name)
			errs = append(errs, netlink.LinkDel(l))
		}
	}
	if runDir == "" {
		return removed, errors.Join(errs...)
	}
	files, err := os.ReadDir(runDir)
	errs = append(errs, err)
	for _, f := range files {
		domid, devid, ok := ownerOf(f.Name())
		if !ok || here(domid, devid) {
			continue
		}
		removed = append(removed, f.Name())
		errs = append(errs, os.Remove(filepath.Join(runDir, f.Name())))
	}
	return removed, errors.Join(errs...)
}

// ownerOf tells whose a file in the run directory is, if it is a vif's.
func ownerOf(name string) (domid uint16, devid int, ok bool) {
	var queue int
	if n, _ := fmt.Sscanf(name, "ring-%d.%d-%d", &domid, &devid, &queue); n == 3 {
		return domid, devid, journalName(domid, devid, queue) == name
	}
	if n, _ := fmt.Sscanf(name, "ctrl-%d.%d", &domid, &devid); n == 2 {
		return domid, devid, ctrlName(domid, devid) == strings.TrimSuffix(name, ctrlNew)
	}
	return 0, 0, false
}

// parseName reads the name that a vif's TAP is made with.
func parseName(name string) (domid uint16, devid int, ok bool) {
	n, _ := fmt.Sscanf(name, "vif%d.%d", &domid, &devid)
	return domid, devid, n == 2
}

// removeTapNamed removes a TAP by one of its names, if there is one.
func removeTapNamed(name string) error {
	l, err := netlink.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err != nil {
		return err
	}
	return netlink.LinkDel(l)
}
