// SPDX-License-Identifier: Apache-2.0

// Package hostcheck finds out whether a machine is ready for netbackd. Its report has one
// item for each requirement and each conflict, with the command that repairs it.
//
// It changes nothing. It reads files below [Host.Root] and calls the functions of [Host].
// It must not know how items are printed.
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

	"github.com/netbackd/netbackd/internal/xennetback"
)

// Level is the result of a check.
type Level string

// Levels.
const (
	OK      Level = "ok"
	Note    Level = "note"    // netbackd works, with a restriction
	Problem Level = "problem" // netbackd does not work, or does harm
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

// Problems counts the problems.
func (r *Report) Problems() (n int) {
	for i := range r.Items {
		if r.Items[i].Level == Problem {
			n++
		}
	}
	return n
}

// Host is the machine that is checked. Its functions may be called in any order.
type Host struct {
	Root string // "/", or the root of a test's tree

	Open     func(path string) error                                        // opens a device for reading and writing, and closes it
	Xenstore func(ctx context.Context) error                                // sends a request to xenstored
	Modprobe func(ctx context.Context, arguments ...string) (string, error) // runs modprobe and returns its output; fs.ErrNotExist: there is no modprobe
	MultiTAP func() error                                                   // fails if the kernel has no multi-queue TAPs
	Uring    func() error                                                   // fails if io_uring does not work
	Steering func() error                                                   // fails if the kernel refuses steering programs
	Daemon   func(ctx context.Context) (version string, err error)          // asks the running netbackd
	Version  string                                                         // version of this program

	// PerVif: the kernel's driver is expected, and netbackd should serve only vifs
	// whose script is vif-netbackd.
	PerVif bool
}

// Run makes all checks.
func (h *Host) Run(ctx context.Context) Report {
	r := Report{Schema: Schema}
	add := func(name string, level Level, text, fix string) {
		r.Items = append(r.Items, Item{name, level, text, fix})
	}
	xen := h.xen(add)
	h.privileges(add)
	if xen {
		for _, d := range xenDevices {
			h.device(add, d)
		}
		h.xenstore(ctx, add)
		h.driver(ctx, add)
		h.scripts(add)
	}
	h.device(add, tunDevice)
	h.bridge(add)
	h.openVSwitch(add)
	h.uring(add)
	h.steering(add)
	h.daemon(ctx, add)
	r.Ready = r.Problems() == 0
	return r
}

// adder adds an item to the report.
type adder func(name string, level Level, text, fix string)

func (h *Host) path(p string) string { return filepath.Join(h.Root, p) }

func (h *Host) read(p string) (string, error) {
	b, err := os.ReadFile(h.path(p))
	return strings.TrimSpace(string(b)), err
}

func (h *Host) exists(p string) bool {
	_, err := os.Stat(h.path(p))
	return err == nil
}

// xen checks for Xen. If it returns false, checks that depend on Xen would only repeat
// the problem.
func (h *Host) xen(add adder) bool {
	kind, err := h.read("/sys/hypervisor/type")
	if err != nil || kind != "xen" {
		add("xen", Problem, "this machine runs no Xen; `make demo` in netbackd's sources works without", "apt install xen-system-"+runtime.GOARCH+" && reboot")
		return false
	}
	caps, err := h.read("/proc/xen/capabilities")
	switch {
	case err != nil:
		add("xen", Note, "/proc/xen is not mounted, which Xen's tools need", "mount -t xenfs xenfs /proc/xen")
	case slices.Contains(strings.Fields(caps), "control_d"):
		add("xen", OK, "this is dom0", "")
	default:
		add("xen", Note, "this is not dom0; it serves guests whose vif=[...] says backend= and this domain's name", "")
	}
	return true
}

// privileges checks for the capability that TAPs need.
func (h *Host) privileges(add adder) {
	status, err := h.read("/proc/self/status")
	if err != nil {
		add("privileges", Note, "cannot tell: "+err.Error(), "")
		return
	}
	_, caps, _ := strings.Cut(status, "\nCapEff:")
	caps, _, _ = strings.Cut(caps, "\n")
	have, err := strconv.ParseUint(strings.TrimSpace(caps), 16, 64)
	if err != nil {
		add("privileges", Note, "cannot tell: /proc/self/status has no CapEff", "")
		return
	}
	if have&(1<<unix.CAP_NET_ADMIN) == 0 {
		add("privileges", Problem, "CAP_NET_ADMIN is missing, for TAPs", "sudo netbackd check")
		return
	}
	add("privileges", OK, "CAP_NET_ADMIN", "")
}

// device is a device file that the daemon opens.
type device struct{ path, module string }

var (
	xenDevices = []device{
		{"/dev/xen/gntdev", "xen-gntdev"},
		{"/dev/xen/evtchn", "xen-evtchn"},
		{"/dev/xen/xenbus", "xenfs"},
	}
	tunDevice = device{"/dev/net/tun", "tun"}
)

func (h *Host) device(add adder, d device) {
	err := h.Open(h.path(d.path))
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		add(d.path, Problem, "is not there", "modprobe "+d.module)
		return
	case errors.Is(err, fs.ErrPermission):
		text := "may not be opened for reading and writing"
		if info, err := os.Stat(h.path(d.path)); err == nil {
			text += ": it is " + info.Mode().String()
		}
		add(d.path, Problem, text, "chmod u+rw "+d.path+" # and be its owner")
		return
	case err != nil:
		add(d.path, Problem, err.Error(), "")
		return
	}
	if d == tunDevice {
		if err := h.MultiTAP(); err != nil {
			add(d.path, Problem, err.Error(), "")
			return
		}
	}
	add(d.path, OK, "can be opened", "")
}

func (h *Host) xenstore(ctx context.Context, add adder) {
	if err := h.Xenstore(ctx); err != nil {
		fix := "systemctl start xenstored"
		if h.exists("/etc/init.d/xen") {
			fix = "systemctl start xen" // Debian's
		}
		add("xenstore", Problem, "does not answer: "+err.Error(), fix)
		return
	}
	add("xenstore", OK, "answers", "")
}

// Paths of netbackd's files. modprobeFile overrides the file of the same name below
// /usr/lib, which is part of the package.
const (
	modprobeFile = "/etc/modprobe.d/netbackd.conf"
	scriptDir    = "/etc/xen/scripts"
	ownScript    = "vif-netbackd"
)

// keepAway is the command that keeps the driver from being loaded.
const keepAway = `printf 'blacklist xen-netback\ninstall xen-netback /bin/false\n' >` + modprobeFile

// driver checks for the kernel's own back end, which takes each new vif.
func (h *Host) driver(ctx context.Context, add adder) {
	const name = "xen-netback"
	d := xennetback.New(h.path("/sys"))
	served, _ := d.Vifs()
	serves := "serves no vif"
	if len(served) > 0 {
		serves = "serves " + enumerate(served)
	}
	loads, lerr := h.autoloads(ctx)
	switch {
	case d.Loaded() && h.PerVif:
		add(name, OK, "is loaded and "+serves+"; netbackd serves vifs with script="+ownScript, "")
	case h.PerVif:
		text := "is not loaded: netbackd serves all vifs, with any script"
		if loads || lerr != nil {
			text += ", and they are cut off when it is loaded"
		}
		add(name, Problem, text, "ln -sf /dev/null "+modprobeFile+" && modprobe "+xennetback.Module+" # while netbackd serves no vif")
	case d.BuiltIn():
		add(name, Problem, "is built into the kernel and takes every vif; boot with it switched off, or see --per-vif",
			`sed -i 's/^GRUB_CMDLINE_LINUX="/&initcall_blacklist=netback_init /' /etc/default/grub && update-grub && reboot`)
	case d.Loaded() && len(served) > 0:
		add(name, Problem, "is loaded and "+serves+"; it takes every new vif (meant to be? see --per-vif)",
			keepAway+"; for v in "+strings.Join(served, " ")+"; do netbackd adopt $v; done; modprobe -r "+xennetback.Module)
	case d.Loaded():
		add(name, Problem, "is loaded and takes every new vif (meant to be? see --per-vif)", keepAway+"; modprobe -r "+xennetback.Module)
	case lerr != nil:
		add(name, Note, "is not loaded; cannot tell whether it will be: "+lerr.Error(), keepAway)
	case loads:
		add(name, Problem, "is not loaded, but will be when a vif appears, and cut off the guests that netbackd serves by then", keepAway)
	default:
		add(name, OK, "is not loaded and will not be", "")
	}
}

// autoloads asks modprobe whether udev would load the driver when a vif appears (-D: only
// print the command; -b: obey blacklists, as udev does). modprobe knows all files with its
// settings.
func (h *Host) autoloads(ctx context.Context) (bool, error) {
	out, err := h.Modprobe(ctx, "-b", "-D", xennetback.Alias)
	if errors.Is(err, fs.ErrNotExist) {
		return false, errors.New("there is no modprobe")
	}
	// It fails where there is no such module.
	for line := range strings.Lines(out) {
		file, ok := strings.CutPrefix(strings.TrimSpace(line), "insmod ")
		if base := filepath.Base(file); ok && (strings.HasPrefix(base, "xen-netback.ko") || strings.HasPrefix(base, "xen_netback.ko")) {
			return true, nil
		}
	}
	return false, nil
}

// enumerate lists the first names and the number of the others.
func enumerate(names []string) string {
	const most = 4
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}

func (h *Host) scripts(add adder) {
	if !h.executable(scriptDir + "/vif-bridge") {
		add("hotplug scripts", Problem, scriptDir+"/vif-bridge is not there, which puts vifs into a bridge", "apt install --reinstall xen-utils-common")
		return
	}
	if !h.executable(scriptDir + "/" + ownScript) {
		level := Note
		if h.PerVif {
			level = Problem
		}
		add("hotplug scripts", level, scriptDir+"/"+ownScript+" is not there, by which single vifs are given to netbackd",
			"install -m 755 etc/xen/scripts/"+ownScript+" "+scriptDir+"/ # in netbackd's sources")
		return
	}
	add("hotplug scripts", OK, "vif-bridge and "+ownScript, "")
}

func (h *Host) executable(p string) bool {
	info, err := os.Stat(h.path(p))
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o100 != 0
}

// bridge checks for a bridge for vifs.
func (h *Host) bridge(add adder) {
	dirs, _ := filepath.Glob(h.path("/sys/class/net/*/bridge"))
	var names []string
	for _, d := range dirs {
		names = append(names, filepath.Base(filepath.Dir(d)))
	}
	if len(names) == 0 && !h.exists("/sys/class/net/ovs-system") && !h.exists("/sys/class/net/ovs-netdev") {
		add("bridge", Note, "there is none for vif-bridge to put vifs into", "ip link add xenbr0 type bridge && ip link set xenbr0 up")
		return
	}
	if len(names) == 0 {
		names = []string{"Open vSwitch"}
	}
	add("bridge", OK, enumerate(names), "")
}

// Flags of a TAP, as sysfs shows them (linux/if_tun.h).
const (
	tapFlag        = 0x0002 // IFF_TAP
	multiQueueFlag = 0x0100 // IFF_MULTI_QUEUE
)

// openVSwitch looks for bridges of Open vSwitch's userspace datapath, which takes packets
// without their offloads. Its bridges are TAPs. It tells them from netbackd's TAPs, which
// have several queues, or names that begin with vif.
func (h *Host) openVSwitch(add adder) {
	const datapath = "ovs-netdev"
	if !h.exists("/sys/class/net/" + datapath) {
		return
	}
	files, _ := filepath.Glob(h.path("/sys/class/net/*/tun_flags"))
	var bridges []string
	for _, f := range files {
		name := filepath.Base(filepath.Dir(f))
		text, err := h.read("/sys/class/net/" + name + "/tun_flags")
		if err != nil {
			continue
		}
		flags, err := strconv.ParseUint(text, 0, 32)
		if err == nil && flags&tapFlag != 0 && flags&multiQueueFlag == 0 && name != datapath && !strings.HasPrefix(name, "vif") {
			bridges = append(bridges, name)
		}
	}
	which := "whose bridge= in the guest's config names one"
	if len(bridges) > 0 {
		which += " (" + enumerate(bridges) + ")"
	}
	add("Open vSwitch", Note, "has bridges of the userspace datapath, which lose packets with offloads: netbackd finishes packets itself for vifs "+which+
		"; if a script plugs others into them, switch offload off for all vifs", `echo 'NETBACKD_ARGS="--offload none"' >>/etc/default/netbackd && systemctl restart netbackd # only if a script does`)
}

func (h *Host) uring(add adder) {
	err := h.Uring()
	if err == nil {
		add("io_uring", OK, "works", "")
		return
	}
	fix := ""
	if off, rerr := h.read("/proc/sys/kernel/io_uring_disabled"); rerr == nil && off != "0" {
		fix = "sysctl kernel.io_uring_disabled=0"
	}
	add("io_uring", Note, "does not work, so netbackd makes a system call per packet: "+err.Error(), fix)
}

func (h *Host) steering(add adder) {
	if err := h.Steering(); err != nil {
		add("steering", Note, "the kernel takes no program, so netbackd itself hands packets on to the queues that guests choose, one worker for each guest: "+err.Error(), "")
		return
	}
	add("steering", OK, "the kernel takes programs", "")
}

func (h *Host) daemon(ctx context.Context, add adder) {
	version, err := h.Daemon(ctx)
	switch {
	case errors.Is(err, fs.ErrPermission):
		add("daemon", Note, "may not be asked: "+err.Error(), "sudo netbackd check")
	case err != nil:
		add("daemon", Note, "is not running", "systemctl start netbackd")
	case version != h.Version:
		add("daemon", Note, fmt.Sprintf("runs as version %s, this command is %s", version, h.Version), "systemctl restart netbackd # guests keep their connections")
	default:
		add("daemon", OK, "runs, version "+version, "")
	}
}
