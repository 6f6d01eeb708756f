// SPDX-License-Identifier: Apache-2.0

package tap

import (
	"errors"
	"os"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// busy returns an ErrBusy that names the processes which have a device open, and a
// remedy.
func busy(name string) error {
	who := holders(name)
	if len(who) == 0 {
		return withHint(ErrBusy, "no process visible from here holds it: look in other containers")
	}
	return withHint(ErrBusy, "held by "+strings.Join(who, ", ")+": stop it first")
}

// InUse reports whether a process has a queue of a TAP open, attached or detached.
// The kernel does not tell the number of queues of a device that can have one only.
// InUse tries to open that one; a device that is not in use has no carrier before
// and after.
func InUse(t *netlink.Tuntap) (bool, error) {
	if !isSingle(t) {
		return t.Queues+t.DisabledQueues > 0, nil
	}
	fd, err := openTUN()
	if err != nil {
		return false, err
	}
	err = attachByName(fd, t.Name, uint16(t.Mode)|uint16(t.Flags)|unix.IFF_NO_CARRIER)
	err = errors.Join(err, unix.Close(fd))
	if errors.Is(err, unix.EBUSY) {
		return true, nil
	}
	return false, err
}

// maxHolders is the largest number of processes that an error names.
const maxHolders = 4

// holders names processes that have queues of a device open, as "pid (command)".
// The kernel tells a queue's device in /proc/PID/fdinfo, by name alone, and names
// repeat in other network namespaces. So only processes of this namespace count. That
// is right for a process that has not changed its namespace since it opened the device.
// Processes whose files cannot be read are ignored.
func holders(name string) []string {
	pids, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	here, _ := os.Readlink("/proc/thread-self/ns/net")
	var who []string
	for _, p := range pids {
		pid, ok := atoi(p.Name())
		proc := "/proc/" + p.Name()
		if there, _ := os.Readlink(proc + "/ns/net"); !ok || there != here || !holds(pid, name) {
			continue
		}
		comm, _ := os.ReadFile(proc + "/comm")
		if pid == os.Getpid() {
			who = append(who, "this process")
		} else {
			who = append(who, p.Name()+" ("+strings.TrimSpace(string(comm))+")")
		}
		if len(who) == maxHolders {
			break
		}
	}
	return who
}

// holds reports whether a process has a queue of a device.
func holds(pid int, name string) bool {
	proc := "/proc/" + strconv.Itoa(pid)
	fds, err := os.ReadDir(proc + "/fd")
	if err != nil {
		return false
	}
	for _, fd := range fds {
		if target, err := os.Readlink(proc + "/fd/" + fd.Name()); err != nil || target != tunPath {
			continue
		}
		info, err := os.ReadFile(proc + "/fdinfo/" + fd.Name())
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(info)) {
			if dev, ok := strings.CutPrefix(line, "iff:"); ok && strings.TrimSpace(dev) == name {
				return true
			}
		}
	}
	return false
}

// describe returns a description of a device that is not a TAP.
func describe(link netlink.Link) string {
	kind := link.Type()
	if t, ok := link.(*netlink.Tuntap); ok {
		kind = t.Mode.String()
	}
	if driver := driverOf(link.Attrs().Name); driver != "" {
		kind += ", driver " + driver
	}
	return "a " + kind
}

// driverOf returns the name of a device's driver, or "": it is to help, not to
// fail.
func driverOf(name string) string {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	info, err := unix.IoctlGetEthtoolDrvinfo(fd, name)
	if err := errors.Join(err, unix.Close(fd)); err != nil {
		return ""
	}
	return unix.ByteSliceToString(info.Driver[:])
}

// atoi parses a number of decimal digits only.
func atoi(s string) (int, bool) {
	n, err := strconv.ParseUint(s, 10, 31)
	return int(n), err == nil
}
