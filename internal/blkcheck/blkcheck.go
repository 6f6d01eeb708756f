// SPDX-License-Identifier: Apache-2.0

// Package blkcheck finds out whether a machine is ready for blkbackd. Its report has one item
// for each requirement and each conflict, with the command that repairs it.
//
// It changes nothing, except that it makes and removes a file in a directory of disks if it
// is asked to. It must not know how items are printed.
package blkcheck

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/hostcheck"
	"github.com/netbackd/netbackd/internal/xendriver"
)

// Host is the machine that is checked. Its functions may be called in any order.
type Host struct {
	hostcheck.Machine

	// Stores are directories with disks of guests, whose file systems are checked.
	Stores []string
	// Store tries a directory of disks, and returns the name of its file system.
	Store func(dir string) (StoreFacts, error)
	// Limit returns the hard limit of a resource of this process.
	Limit func(resource int) (uint64, error)
}

// StoreFacts tell what a file system can do.
type StoreFacts struct {
	FileSystem string
	Network    bool // its server may be away
	Lock       bool // flock works, and another lock of the same file is refused
	Direct     bool // O_DIRECT works
	Punch      bool // discards free space
}

// Run makes all checks.
func (h *Host) Run(ctx context.Context) hostcheck.Report {
	return hostcheck.NewReport(func(add hostcheck.Adder) {
		if h.Xen(add, "make demo-blk", "disk=[...]") {
			h.XenDevices(add)
			h.XenstoreAnswers(ctx, add)
			h.driver(ctx, add)
			h.script(add)
			h.others(add)
		}
		h.UringWorks(add, "disks are read and written by a pool of threads")
		h.stores(add)
		h.limits(add)
		h.DaemonRuns(ctx, add, "disks")
	})
}

// loadBlkback loads the kernel's driver so that it leaves the disks alone that are there.
const loadBlkback = "cd /sys/bus/xen-backend && echo 0 >drivers_autoprobe && modprobe xen-blkback; echo 1 >drivers_autoprobe"

const (
	scriptDir = "/etc/xen/scripts"
	ownScript = "block-blkbackd"
)

// driver checks for the kernel's own back end. It may serve other disks: the hotplug script
// takes those of blkbackd from it.
func (h *Host) driver(ctx context.Context, add hostcheck.Adder) {
	const name = "xen-blkback"
	d := h.Driver(xendriver.Blkback)
	served, _ := d.Devices()
	loads, err := h.Autoloads(ctx, xendriver.Blkback)
	switch {
	case d.Loaded() && len(served) > 0:
		names := make([]string, len(served))
		for i, id := range served {
			names[i] = id.String()
		}
		add(name, hostcheck.OK, "is loaded and serves "+hostcheck.Enumerate(names)+"; "+ownScript+" takes new disks of blkbackd from it", "")
	case d.Loaded():
		add(name, hostcheck.OK, "is loaded; "+ownScript+" takes new disks of blkbackd from it", "")
	case err != nil:
		add(name, hostcheck.Note, "is not loaded; cannot tell whether it will be: "+err.Error(), "")
	case loads:
		// It takes every disk that is there when it is loaded, also those in use.
		add(name, hostcheck.Problem, "is not loaded, but will be when a disk appears; it then closes the disks that blkbackd serves", loadBlkback)
	default:
		add(name, hostcheck.OK, "is not loaded and will not be", "")
	}
}

// script checks for the hotplug script.
func (h *Host) script(add hostcheck.Adder) {
	if !h.Executable(scriptDir + "/" + ownScript) {
		add("hotplug script", hostcheck.Problem, scriptDir+"/"+ownScript+" is not there, by which disks are given to blkbackd",
			"install -m 755 etc/xen/scripts/"+ownScript+" "+scriptDir+"/ # in netbackd's sources")
		return
	}
	add("hotplug script", hostcheck.OK, ownScript, "")
}

// others looks for programs that take every disk of a class that blkbackd watches.
func (h *Host) others(add hostcheck.Adder) {
	if h.Exists("/run/xen/tapback.pid") || h.Exists("/var/run/tapback.pid") || h.Exists("/run/blktap") {
		add("tapback", hostcheck.Note, "seems to run: it takes each disk with backendtype=tap, also those of "+ownScript+"; leave backendtype= out for them", "")
	}
}

// stores checks the file systems of the directories of disks.
func (h *Host) stores(add hostcheck.Adder) {
	for _, dir := range h.Stores {
		f, err := h.Store(dir)
		name := "store " + dir
		switch {
		case err != nil:
			add(name, hostcheck.Problem, "cannot be used: "+err.Error(), "")
		case !f.Lock:
			add(name, hostcheck.Problem, f.FileSystem+" has no locks (flock), which keep two writers off a disk", "mount it with locks # such as local_lock=none for NFS")
		case f.Network:
			add(name, hostcheck.Note, f.FileSystem+" is of a server: disks wait while that is away", "")
		case !f.Direct:
			add(name, hostcheck.Note, f.FileSystem+" has no O_DIRECT, so --cache=direct has no effect", "")
		case !f.Punch:
			add(name, hostcheck.Note, f.FileSystem+" cannot free parts of a file, so guests have no discard", "")
		default:
			add(name, hostcheck.OK, f.FileSystem+" with locks, O_DIRECT and discard", "")
		}
	}
}

// Least limits of the process. Each queue has some files and mappings, and with persistent
// grants a mapping for each page.
const (
	wantFiles   = 65536
	wantMaps    = 65530
	wantLocked  = 8 << 20
	mapsControl = "/proc/sys/vm/max_map_count"
)

// limits checks the limits of the process and the kernel.
func (h *Host) limits(add hostcheck.Adder) {
	var low, fixes []string
	check := func(resource int, name string, want uint64) {
		if n, err := h.Limit(resource); err == nil && n < want {
			low = append(low, fmt.Sprintf("%s is %d, want %d", name, n, want))
		}
	}
	check(unix.RLIMIT_NOFILE, "the number of open files", wantFiles)
	check(unix.RLIMIT_MEMLOCK, "the locked memory", wantLocked)
	if text, err := h.Read(mapsControl); err == nil {
		if n, err := strconv.ParseUint(text, 10, 64); err == nil && n < wantMaps {
			low = append(low, fmt.Sprintf("vm.max_map_count is %d, want %d", n, wantMaps))
			fixes = append(fixes, fmt.Sprintf("sysctl vm.max_map_count=%d", wantMaps))
		}
	}
	if len(low) > 0 {
		add("limits", hostcheck.Note, strings.Join(low, "; ")+": guests with many disks may not connect", strings.Join(fixes, "; "))
		return
	}
	add("limits", hostcheck.OK, "open files, locked memory and mappings suffice", "")
}
