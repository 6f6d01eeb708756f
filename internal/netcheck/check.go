// SPDX-License-Identifier: Apache-2.0

// Package netcheck finds out whether a machine is ready for netbackd. Its report has one
// item for each requirement and each conflict, with the command that repairs it.
//
// It changes nothing. It reads files below [Host.Root] and calls the functions of [Host].
// It must not know how items are printed.
package netcheck

import (
	"context"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/hostcheck"
	"github.com/netbackd/netbackd/internal/xendriver"
	"github.com/netbackd/netbackd/internal/xennetback"
)

// Host is the machine that is checked. Its functions may be called in any order.
type Host struct {
	hostcheck.Machine

	MultiTAP func() error // fails if the kernel has no multi-queue TAPs
	Steering func() error // fails if the kernel refuses steering programs
	Confined func() error // fails if the kernel cannot take system calls from a process

	// OwnPages returns the number of pages that the workers grant to this domain, if each
	// has a vif.
	OwnPages func(context.Context) int

	// Priority returns the error of the running daemon that may not raise the priority of
	// its workers, or nothing.
	Priority func(context.Context) string

	// PerVif: the kernel's driver is expected, and netbackd should serve only vifs
	// whose script is vif-netbackd.
	PerVif bool
}

// Run makes all checks.
func (h *Host) Run(ctx context.Context) hostcheck.Report {
	return hostcheck.NewReport(func(add hostcheck.Adder) {
		xen := h.Xen(add, "make demo", "vif=[...]")
		h.privileges(add)
		if xen {
			h.XenDevices(add)
			h.ownPages(ctx, add)
			h.XenstoreAnswers(ctx, add)
			h.driver(ctx, add)
			h.scripts(add)
		}
		h.Device(add, "/dev/net/tun", "tun", h.MultiTAP)
		h.bridge(add)
		h.openVSwitch(add)
		h.UringWorks(add, "netbackd makes a system call per packet")
		h.confined(add)
		h.steering(add)
		h.DaemonRuns(ctx, add, "connections")
		h.priority(ctx, add)
	})
}

// privileges checks for the capability that TAPs need.
func (h *Host) privileges(add hostcheck.Adder) {
	has, err := h.Capability(unix.CAP_NET_ADMIN)
	switch {
	case err != nil:
		add("privileges", hostcheck.Note, "cannot tell: "+err.Error(), "")
	case !has:
		add("privileges", hostcheck.Problem, "CAP_NET_ADMIN is missing, for TAPs", "sudo netbackd check")
	default:
		add("privileges", hostcheck.OK, "CAP_NET_ADMIN", "")
	}
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
func (h *Host) driver(ctx context.Context, add hostcheck.Adder) {
	const name = "xen-netback"
	d := xennetback.New(h.Path("/sys"))
	served, _ := d.Vifs()
	serves := "serves no vif"
	if len(served) > 0 {
		serves = "serves " + hostcheck.Enumerate(served)
	}
	loads, lerr := h.Autoloads(ctx, xendriver.Netback)
	switch {
	case d.Loaded() && h.PerVif:
		add(name, hostcheck.OK, "is loaded and "+serves+"; netbackd serves vifs with script="+ownScript, "")
	case h.PerVif:
		text := "is not loaded: netbackd serves all vifs, with any script"
		if loads || lerr != nil {
			text += ", and they are cut off when it is loaded"
		}
		add(name, hostcheck.Problem, text, "ln -sf /dev/null "+modprobeFile+" && modprobe "+xennetback.Module+" # while netbackd serves no vif")
	case d.BuiltIn():
		add(name, hostcheck.Problem, "is built into the kernel and takes every vif; boot with it switched off, or see --per-vif",
			`sed -i 's/^GRUB_CMDLINE_LINUX="/&initcall_blacklist=netback_init /' /etc/default/grub && update-grub && reboot`)
	case d.Loaded() && len(served) > 0:
		add(name, hostcheck.Problem, "is loaded and "+serves+"; it takes every new vif (meant to be? see --per-vif)",
			keepAway+"; for v in "+strings.Join(served, " ")+"; do netbackd adopt $v; done; modprobe -r "+xennetback.Module)
	case d.Loaded():
		add(name, hostcheck.Problem, "is loaded and takes every new vif (meant to be? see --per-vif)", keepAway+"; modprobe -r "+xennetback.Module)
	case lerr != nil:
		add(name, hostcheck.Note, "is not loaded; cannot tell whether it will be: "+lerr.Error(), keepAway)
	case loads:
		add(name, hostcheck.Problem, "is not loaded, but will be when a vif appears, and cut off the guests that netbackd serves by then", keepAway)
	default:
		add(name, hostcheck.OK, "is not loaded and will not be", "")
	}
}

func (h *Host) scripts(add hostcheck.Adder) {
	if !h.Executable(scriptDir + "/vif-bridge") {
		add("hotplug scripts", hostcheck.Problem, scriptDir+"/vif-bridge is not there, which puts vifs into a bridge", "apt install --reinstall xen-utils-common")
		return
	}
	if !h.Executable(scriptDir + "/" + ownScript) {
		level := hostcheck.Note
		if h.PerVif {
			level = hostcheck.Problem
		}
		add("hotplug scripts", level, scriptDir+"/"+ownScript+" is not there, by which single vifs are given to netbackd",
			"install -m 755 etc/xen/scripts/"+ownScript+" "+scriptDir+"/ # in netbackd's sources")
		return
	}
	add("hotplug scripts", hostcheck.OK, "vif-bridge and "+ownScript, "")
}

// bridge checks for a bridge for vifs.
func (h *Host) bridge(add hostcheck.Adder) {
	dirs, _ := filepath.Glob(h.Path("/sys/class/net/*/bridge"))
	var names []string
	for _, d := range dirs {
		names = append(names, filepath.Base(filepath.Dir(d)))
	}
	if len(names) == 0 && !h.Exists("/sys/class/net/ovs-system") && !h.Exists("/sys/class/net/ovs-netdev") {
		add("bridge", hostcheck.Note, "there is none for vif-bridge to put vifs into", "ip link add xenbr0 type bridge && ip link set xenbr0 up")
		return
	}
	if len(names) == 0 {
		names = []string{"Open vSwitch"}
	}
	add("bridge", hostcheck.OK, hostcheck.Enumerate(names), "")
}

// Flags of a TAP, as sysfs shows them (linux/if_tun.h).
const (
	tapFlag        = 0x0002 // IFF_TAP
	multiQueueFlag = 0x0100 // IFF_MULTI_QUEUE
)

// openVSwitch looks for bridges of Open vSwitch's userspace datapath, which takes packets
// without their offloads. Its bridges are TAPs. It tells them from netbackd's TAPs, which
// have several queues, or names that begin with vif.
func (h *Host) openVSwitch(add hostcheck.Adder) {
	const datapath = "ovs-netdev"
	if !h.Exists("/sys/class/net/" + datapath) {
		return
	}
	files, _ := filepath.Glob(h.Path("/sys/class/net/*/tun_flags"))
	var bridges []string
	for _, f := range files {
		name := filepath.Base(filepath.Dir(f))
		text, err := h.Read("/sys/class/net/" + name + "/tun_flags")
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
		which += " (" + hostcheck.Enumerate(bridges) + ")"
	}
	add("Open vSwitch", hostcheck.Note, "has bridges of the userspace datapath, which lose packets with offloads: netbackd finishes packets itself for vifs "+which+
		"; if a script plugs others into them, switch offload off for all vifs", `echo 'NETBACKD_ARGS="--offload none"' >>/etc/default/netbackd && systemctl restart netbackd # only if a script does`)
}

func (h *Host) steering(add hostcheck.Adder) {
	if err := h.Steering(); err != nil {
		add("steering", hostcheck.Note, "the kernel takes no program, so netbackd itself hands packets on to the queues that guests choose, one worker for each guest: "+err.Error(), "")
		return
	}
	add("steering", hostcheck.OK, "the kernel takes programs", "")
}

// confined checks whether packets can move in processes without rights.
func (h *Host) confined(add hostcheck.Adder) {
	if err := h.Confined(); err != nil {
		add("isolation", hostcheck.Note, "packets move in the daemon, and not in a process without rights: "+err.Error(), "")
	}
}

// priority checks whether the daemon has the right to raise the priority of its workers.
func (h *Host) priority(ctx context.Context, add hostcheck.Adder) {
	if denied := h.Priority(ctx); denied != "" {
		add("priority", hostcheck.Note, "workers take more CPU while their rates are high, because the daemon may not raise their priority: "+denied,
			"systemctl edit netbackd # [Service] LimitNICE=-10 SystemCallFilter=sched_setattr")
	}
}
