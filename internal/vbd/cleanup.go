// SPDX-License-Identifier: Apache-2.0

package vbd

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/netbackd/netbackd/internal/rundir"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// RemoveLeftovers removes the files in runDir of vbds that were removed while no daemon
// served them. here reports whether a vbd still has its directory. RemoveLeftovers returns
// the names of what it has removed.
func RemoveLeftovers(runDir string, here func(xenbus.DeviceID) bool) (removed []string, err error) {
	if runDir == "" {
		return nil, nil
	}
	files, err := os.ReadDir(runDir)
	errs := []error{err}
	for _, f := range files {
		id, ok := ownerOf(f.Name())
		if !ok || here(id) {
			continue
		}
		removed = append(removed, f.Name())
		errs = append(errs, os.Remove(filepath.Join(runDir, f.Name())))
	}
	return removed, errors.Join(errs...)
}

// ownerOf returns the vbd that a file in the run directory belongs to.
func ownerOf(name string) (id xenbus.DeviceID, ok bool) {
	base := rundir.Base(name)
	if rest, ring := strings.CutPrefix(base, "ring-"); ring {
		i := strings.LastIndexByte(rest, '-')
		if i < 0 {
			return id, false
		}
		id, err := xenbus.ParseDeviceID(rest[:i])
		queue, qerr := strconv.Atoi(rest[i+1:])
		return id, err == nil && qerr == nil && isVbd(id) && journalName(id, queue) == base
	}
	id, err := xenbus.ParseDeviceID(base)
	return id, err == nil && isVbd(id)
}

func isVbd(id xenbus.DeviceID) bool { return id.Class == xenbus.VBD || id.Class == xenbus.VBD3 }
