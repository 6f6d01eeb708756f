// SPDX-License-Identifier: Apache-2.0

// Package hostcheck is the frame of the checks whether a machine is ready for a back end, and
// the checks that all back ends need. A [Report] has one item for each requirement and each
// conflict, with the command that repairs it.
//
// Checks change nothing. They read files below [Machine.Root] and call the functions of
// [Machine]. The package must not know how items are printed.
package hostcheck

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/xendriver"
)

// Level is the result of a check.
type Level string

// Levels.
const (
	OK      Level = "ok"
	Note    Level = "note"    // the program works, with a restriction
	Problem Level = "problem" // the program does not work, or does harm
)

// Item is one check.
type Item struct {
	Name  string `json:"name"`
	Level Level  `json:"level"`
	Text  string `json:"text"`
	Fix   string `json:"fix,omitempty"` // a command, if there is one
}

// Schema is the version of Report's JSON. It changes when a field is removed or changes its
// meaning.
const Schema = 1

// Report is the result of all checks.
type Report struct {
	Schema int    `json:"schema"`
	Ready  bool   `json:"ready"` // there is no problem
	Items  []Item `json:"checks"`
}

// NewReport makes a report of the items that run adds.
func NewReport(run func(Adder)) Report {
	r := Report{Schema: Schema}
	run(func(name string, level Level, text, fix string) {
		r.Items = append(r.Items, Item{name, level, text, fix})
	})
	r.Ready = r.Problems() == 0
	return r
}

// Problems counts the problems.
func (r *Report) Problems() (n int) {
	for i := range r.Items {
		if r.Items[i].Level == Problem {
			n++
		}
	}
	return n
}

// Adder adds an item to the report.
type Adder func(name string, level Level, text, fix string)

// Machine is the machine that is checked. Its functions may be called in any order.
type Machine struct {
	Program string // the daemon, and its unit and command
	Root    string // "/", or the root of a test's tree

	Open     func(path string) error                                        // opens a device for reading and writing, and closes it
	Xenstore func(ctx context.Context) error                                // sends a request to xenstored
	Modprobe func(ctx context.Context, arguments ...string) (string, error) // runs modprobe and returns its output; fs.ErrNotExist: there is no modprobe
	Uring    func() error                                                   // fails if io_uring does not work
	Daemon   func(ctx context.Context) (version string, err error)          // asks the running daemon
	Version  string                                                         // version of this program
}

// Path returns the path of a file below the root.
func (m *Machine) Path(p string) string { return filepath.Join(m.Root, p) }

// Read returns the contents of a file without white space around it.
func (m *Machine) Read(p string) (string, error) {
	b, err := os.ReadFile(m.Path(p))
	return strings.TrimSpace(string(b)), err
}

// Exists reports whether there is a file.
func (m *Machine) Exists(p string) bool {
	_, err := os.Stat(m.Path(p))
	return err == nil
}

// Executable reports whether there is a file that its owner may execute.
func (m *Machine) Executable(p string) bool {
	info, err := os.Stat(m.Path(p))
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o100 != 0
}

// Enumerate lists the first names and the number of the others.
func Enumerate(names []string) string {
	const most = 4
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}

// Xen checks for Xen. If it returns false, checks that depend on Xen would only repeat the
// problem. demo is the command that needs no Xen, config the guests' configuration of devices.
func (m *Machine) Xen(add Adder, demo, config string) bool {
	kind, err := m.Read("/sys/hypervisor/type")
	if err != nil || kind != "xen" {
		add("xen", Problem, "this machine runs no Xen; `"+demo+"` in netbackd's sources works without", "apt install xen-system-"+runtime.GOARCH+" && reboot")
		return false
	}
	caps, err := m.Read("/proc/xen/capabilities")
	switch {
	case err != nil:
		add("xen", Note, "/proc/xen is not mounted, which Xen's tools need", "mount -t xenfs xenfs /proc/xen")
	case slices.Contains(strings.Fields(caps), "control_d"):
		add("xen", OK, "this is dom0", "")
	default:
		add("xen", Note, "this is not dom0; it serves guests whose "+config+" says backend= and this domain's name", "")
	}
	return true
}

// Capability returns whether this process has a capability, such as unix.CAP_NET_ADMIN.
func (m *Machine) Capability(number uint) (has bool, err error) {
	status, err := m.Read("/proc/self/status")
	if err != nil {
		return false, err
	}
	_, caps, _ := strings.Cut(status, "\nCapEff:")
	caps, _, _ = strings.Cut(caps, "\n")
	have, err := strconv.ParseUint(strings.TrimSpace(caps), 16, 64)
	if err != nil {
		return false, errors.New("/proc/self/status has no CapEff")
	}
	return have&(1<<number) != 0, nil
}

// XenDevices checks for the devices below /dev/xen.
func (m *Machine) XenDevices(add Adder) {
	m.Device(add, "/dev/xen/gntdev", "xen-gntdev", nil)
	m.Device(add, "/dev/xen/evtchn", "xen-evtchn", nil)
	m.Device(add, "/dev/xen/xenbus", "xenfs", nil)
}

// Device checks for a device file that the daemon opens, of a module. more finds further
// faults, and may be nil.
func (m *Machine) Device(add Adder, path, module string, more func() error) {
	err := m.Open(m.Path(path))
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		add(path, Problem, "is not there", "modprobe "+module)
		return
	case errors.Is(err, fs.ErrPermission):
		text := "may not be opened for reading and writing"
		if info, err := os.Stat(m.Path(path)); err == nil {
			text += ": it is " + info.Mode().String()
		}
		add(path, Problem, text, "chmod u+rw "+path+" # and be its owner")
		return
	case err == nil && more != nil:
		err = more()
	}
	if err != nil {
		add(path, Problem, err.Error(), "")
		return
	}
	add(path, OK, "can be opened", "")
}

// XenstoreAnswers checks that xenstored answers.
func (m *Machine) XenstoreAnswers(ctx context.Context, add Adder) {
	if err := m.Xenstore(ctx); err != nil {
		fix := "systemctl start xenstored"
		if m.Exists("/etc/init.d/xen") {
			fix = "systemctl start xen" // Debian's
		}
		add("xenstore", Problem, "does not answer: "+err.Error(), fix)
		return
	}
	add("xenstore", OK, "answers", "")
}

// Driver returns the kernel's own back end.
func (m *Machine) Driver(k xendriver.Kind) *xendriver.Driver {
	return xendriver.New(m.Path("/sys"), k)
}

// Autoloads asks modprobe whether udev would load a driver when a device appears (-D: only
// print the command; -b: obey blacklists, as udev does). modprobe knows all files with its
// settings.
func (m *Machine) Autoloads(ctx context.Context, k xendriver.Kind) (bool, error) {
	out, err := m.Modprobe(ctx, "-b", "-D", k.Alias())
	if errors.Is(err, fs.ErrNotExist) {
		return false, errors.New("there is no modprobe")
	}
	// It fails where there is no such module.
	for line := range strings.Lines(out) {
		file, ok := strings.CutPrefix(strings.TrimSpace(line), "insmod ")
		base := strings.ReplaceAll(filepath.Base(file), "_", "-")
		if ok && strings.HasPrefix(base, k.Module+".ko") {
			return true, nil
		}
	}
	return false, nil
}

// UringWorks checks for io_uring. without tells what the daemon does without it.
func (m *Machine) UringWorks(add Adder, without string) {
	err := m.Uring()
	if err == nil {
		add("io_uring", OK, "works", "")
		return
	}
	fix := ""
	if off, rerr := m.Read("/proc/sys/kernel/io_uring_disabled"); rerr == nil && off != "0" {
		fix = "sysctl kernel.io_uring_disabled=0"
	}
	add("io_uring", Note, "does not work, so "+without+": "+err.Error(), fix)
}

// DaemonRuns checks for the daemon and its version. kept tells what guests keep in a restart.
func (m *Machine) DaemonRuns(ctx context.Context, add Adder, kept string) {
	version, err := m.Daemon(ctx)
	switch {
	case errors.Is(err, fs.ErrPermission):
		add("daemon", Note, "may not be asked: "+err.Error(), "sudo "+m.Program+" check")
	case err != nil:
		add("daemon", Note, "is not running", "systemctl start "+m.Program)
	case version != m.Version:
		add("daemon", Note, fmt.Sprintf("runs as version %s, this command is %s", version, m.Version), "systemctl restart "+m.Program+" # guests keep their "+kept)
	default:
		add("daemon", OK, "runs, version "+version, "")
	}
}
