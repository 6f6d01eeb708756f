// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Holder is the process that took a lock.
type Holder struct {
	PID     int    // 0: not known
	Command string // empty: not known
	// Ended means that the process is no more, and its operations in the kernel, or a
	// process that it started, keep the file open.
	Ended bool
}

func (h Holder) String() string {
	switch {
	case h.PID == 0:
		return "an unknown process"
	case h.Ended:
		return fmt.Sprintf("process %d, which has ended and whose i/o has not", h.PID)
	case h.Command != "":
		return fmt.Sprintf("process %d (%s)", h.PID, h.Command)
	}
	return fmt.Sprintf("process %d", h.PID)
}

func (h Holder) hint() string {
	switch {
	case h.Ended:
		return "the disk below does not finish its i/o: see the kernel's log"
	case h.PID != 0:
		return "a disk has one writer: end the other program, or serve the disk read-only in both"
	}
	return "fuser -v names the programs that have it open"
}

// holder returns the process that has the lock, from /proc/locks.
func (d *Disk) holder() Holder {
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		return Holder{}
	}
	pid := findLock(locks, d.id.Device, d.id.Inode)
	if pid <= 0 {
		return Holder{}
	}
	h := Holder{PID: pid}
	command, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	h.Command = strings.TrimSpace(string(command))
	h.Ended = os.IsNotExist(err) || processEnded(pid)
	return h
}

// processEnded returns whether pid is a zombie.
func processEnded(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return os.IsNotExist(err)
	}
	_, rest, _ := bytes.Cut(stat, []byte(") "))
	return bytes.HasPrefix(rest, []byte("Z")) || bytes.HasPrefix(rest, []byte("X"))
}

// findLock returns the pid of the flock on the file with these numbers, from the text of
// /proc/locks, or 0. A line is "1: FLOCK  ADVISORY  WRITE 123 fe:00:4567 0 EOF". Those who
// wait have "->" behind the number. A file system may show another device number there
// than in stat(2); then the inode number alone decides.
func findLock(locks []byte, device, inode uint64) int {
	found := 0
	for line := range bytes.Lines(locks) {
		f := bytes.Fields(line)
		if len(f) < 6 || string(f[1]) != "FLOCK" {
			continue
		}
		pid, err := strconv.Atoi(string(f[4]))
		if err != nil || pid <= 0 {
			continue
		}
		n := strings.Split(string(f[5]), ":")
		if len(n) != 3 {
			continue
		}
		major, err1 := strconv.ParseUint(n[0], 16, 32)
		minor, err2 := strconv.ParseUint(n[1], 16, 32)
		ino, err3 := strconv.ParseUint(n[2], 10, 64)
		if err1 != nil || err2 != nil || err3 != nil || ino != inode {
			continue
		}
		if unix.Mkdev(uint32(major), uint32(minor)) == device {
			return pid
		}
		if found == 0 {
			found = pid
		}
	}
	return found
}

// usedBy says what the host does with a block device that cannot be opened exclusively:
// mounted file systems and devices on top of it. It is empty if nothing is known.
func (d *Disk) usedBy() string {
	if d.id.Backing != KindBlock {
		return ""
	}
	if info, err := os.ReadFile("/proc/self/mountinfo"); err == nil {
		if at := findMount(info, d.id.Major, d.id.Minor); at != "" {
			return "mounted on " + at
		}
	}
	holders, _ := filepath.Glob(fmt.Sprintf("/sys/dev/block/%d:%d/holders/*", d.id.Major, d.id.Minor))
	if len(holders) > 0 {
		return "part of device " + filepath.Base(holders[0])
	}
	return ""
}

// findMount returns the first mount point of a device from the text of mountinfo, as
// written there, or "".
func findMount(info []byte, major, minor uint32) string {
	want := fmt.Sprintf("%d:%d", major, minor)
	for line := range bytes.Lines(info) {
		if f := bytes.Fields(line); len(f) > 4 && string(f[2]) == want {
			return string(f[4])
		}
	}
	return ""
}
