// SPDX-License-Identifier: Apache-2.0

package netcheck

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/hostcheck"
)

// files describes a tree: contents by path, and links by path with "->" before the
// target. The path of an executable ends in "*".
type files map[string]string

// with returns the tree with some files changed, or removed if they are "-".
func (f files) with(changes files) files {
	f = maps.Clone(f)
	for p, v := range changes {
		f[p] = v
		if v == "-" {
			delete(f, p)
		}
	}
	return f
}

// ready is a dom0 in which every check succeeds.
var ready = files{
	"sys/hypervisor/type":                      "xen\n",
	"proc/xen/capabilities":                    "control_d\n",
	"proc/self/status":                         "Name:\tnetbackd\nCapEff:\t000001ffffffffff\nCapBnd:\t0\n",
	"dev/xen/gntdev":                           "",
	"dev/xen/evtchn":                           "",
	"dev/xen/xenbus":                           "",
	"dev/xen/gntalloc":                         "",
	"sys/module/xen_gntalloc/parameters/limit": "24576\n",
	"dev/net/tun":                              "",
	"etc/xen/scripts/vif-bridge*":              "",
	"etc/xen/scripts/vif-netbackd*":            "",
	"sys/class/net/xenbr0/bridge/bridge_id":    "8000.000000000000\n",
	"etc/init.d/xen*":                          "",
}

// loaded has the files that the driver adds to a tree.
var loaded = files{
	"sys/bus/xen-backend/drivers/vif/unbind": "",
	"sys/module/xen_netback/initstate":       "live\n",
}

// host makes a Host of a tree, with system calls and xenstore requests that succeed.
func host(t *testing.T, f files) *Host {
	t.Helper()
	root := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, content := range f {
		path, executable := strings.CutSuffix(filepath.Join(root, name), "*")
		mode := fs.FileMode(0o644)
		if executable {
			mode = 0o755
		}
		must(os.MkdirAll(filepath.Dir(path), 0o755))
		if to, link := strings.CutPrefix(content, "->"); link {
			must(os.Symlink(to, path))
		} else {
			must(os.WriteFile(path, []byte(content), mode))
		}
	}
	return &Host{
		Machine: hostcheck.Machine{
			Program: "netbackd", Version: "v1", Root: root,
			Open:     func(path string) error { _, err := os.Stat(path); return err },
			Xenstore: func(context.Context) error { return nil },
			Modprobe: func(context.Context, ...string) (string, error) { return "install /bin/false\n", nil },
			Uring:    func() error { return nil },
			Daemon:   func(context.Context) (string, error) { return "v1", nil },
		},
		OwnPages: func(context.Context) int { return 704 },
		Priority: func(context.Context) string { return "" },
		MultiTAP: func() error { return nil },
		Steering: func() error { return nil },
		Confined: func() error { return nil },
	}
}

func item(name string, level hostcheck.Level, text, fix string) hostcheck.Item {
	return hostcheck.Item{Name: name, Level: level, Text: text, Fix: fix}
}

func TestReady(t *testing.T) {
	want := hostcheck.Report{Schema: 1, Ready: true, Items: []hostcheck.Item{
		item("xen", hostcheck.OK, "this is dom0", ""),
		item("privileges", hostcheck.OK, "CAP_NET_ADMIN", ""),
		item("/dev/xen/gntdev", hostcheck.OK, "can be opened", ""),
		item("/dev/xen/evtchn", hostcheck.OK, "can be opened", ""),
		item("/dev/xen/xenbus", hostcheck.OK, "can be opened", ""),
		item("/dev/xen/gntalloc", hostcheck.OK, "can be opened, and grants enough pages (704 of 24576)", ""),
		item("xenstore", hostcheck.OK, "answers", ""),
		item("xen-netback", hostcheck.OK, "is not loaded and will not be", ""),
		item("hotplug scripts", hostcheck.OK, "vif-bridge and vif-netbackd", ""),
		item("/dev/net/tun", hostcheck.OK, "can be opened", ""),
		item("bridge", hostcheck.OK, "xenbr0", ""),
		item("io_uring", hostcheck.OK, "works", ""),
		item("steering", hostcheck.OK, "the kernel takes programs", ""),
		item("daemon", hostcheck.OK, "runs, version v1", ""),
	}}
	if diff := cmp.Diff(want, host(t, ready).Run(context.Background())); diff != "" {
		t.Errorf("unexpected report (-want +got):\n%s", diff)
	}
}

const wantKeepAway = `printf 'blacklist xen-netback\ninstall xen-netback /bin/false\n' >/etc/modprobe.d/netbackd.conf`

// TestWhatIsInTheWay changes one thing of a ready host and checks the items that are not
// ok.
func TestWhatIsInTheWay(t *testing.T) {
	prints := func(out string) func(h *Host) {
		return func(h *Host) {
			h.Modprobe = func(_ context.Context, a ...string) (string, error) {
				if strings.Join(a, " ") != "-b -D xen-backend:vif" {
					return "", errors.New("modprobe was asked something else")
				}
				return out, nil
			}
		}
	}
	const insmod = "insmod /lib/modules/6.1/kernel/drivers/net/xen-netback/xen-netback.ko \n"
	perVif := func(h *Host) { h.PerVif = true }
	open := func(path string, err error) func(h *Host) {
		return func(h *Host) {
			was := h.Open
			h.Open = func(p string) error {
				if p == filepath.Join(h.Root, path) {
					return err
				}
				return was(p)
			}
		}
	}
	for _, tt := range []struct {
		name   string
		tree   files
		change func(*Host)
		want   []hostcheck.Item // without those that are ok
	}{
		{"no Xen", ready.with(files{"sys/hypervisor/type": "-"}), nil,
			[]hostcheck.Item{item("xen", hostcheck.Problem, "this machine runs no Xen; `make demo` in netbackd's sources works without", "apt install xen-system-"+runtime.GOARCH+" && reboot")}},
		{"another hypervisor", ready.with(files{"sys/hypervisor/type": "s390\n"}), nil,
			[]hostcheck.Item{item("xen", hostcheck.Problem, "this machine runs no Xen; `make demo` in netbackd's sources works without", "apt install xen-system-"+runtime.GOARCH+" && reboot")}},
		{"no xenfs", ready.with(files{"proc/xen/capabilities": "-"}), nil,
			[]hostcheck.Item{item("xen", hostcheck.Note, "/proc/xen is not mounted, which Xen's tools need", "mount -t xenfs xenfs /proc/xen")}},
		{"driver domain", ready.with(files{"proc/xen/capabilities": "\n"}), nil,
			[]hostcheck.Item{item("xen", hostcheck.Note, "this is not dom0; it serves guests whose vif=[...] says backend= and this domain's name", "")}},
		{"no privileges", ready.with(files{"proc/self/status": "Name:\tx\nCapEff:\t0000000000000000\n"}), nil,
			[]hostcheck.Item{item("privileges", hostcheck.Problem, "CAP_NET_ADMIN is missing, for TAPs", "sudo netbackd check")}},
		{"privileges unknown", ready.with(files{"proc/self/status": "Name:\tx\n"}), nil,
			[]hostcheck.Item{item("privileges", hostcheck.Note, "cannot tell: /proc/self/status has no CapEff", "")}},
		{"no gntdev", ready.with(files{"dev/xen/gntdev": "-"}), nil,
			[]hostcheck.Item{item("/dev/xen/gntdev", hostcheck.Problem, "is not there", "modprobe xen-gntdev")}},
		{"evtchn's node without its module", ready, open("/dev/xen/evtchn", unix.ENODEV),
			[]hostcheck.Item{item("/dev/xen/evtchn", hostcheck.Problem, "is not there", "modprobe xen-evtchn")}},
		{"xenbus of another user", ready, open("/dev/xen/xenbus", unix.EACCES),
			[]hostcheck.Item{item("/dev/xen/xenbus", hostcheck.Problem, "may not be opened for reading and writing: it is -rw-r--r--", "chmod u+rw /dev/xen/xenbus # and be its owner")}},
		{"no tun", ready.with(files{"dev/net/tun": "-"}), nil,
			[]hostcheck.Item{item("/dev/net/tun", hostcheck.Problem, "is not there", "modprobe tun")}},
		{"tun without queues", ready, func(h *Host) { h.MultiTAP = func() error { return errors.New("no IFF_MULTI_QUEUE") } },
			[]hostcheck.Item{item("/dev/net/tun", hostcheck.Problem, "no IFF_MULTI_QUEUE", "")}},
		{"no xenstored", ready, func(h *Host) { h.Xenstore = func(context.Context) error { return unix.ECONNREFUSED } },
			[]hostcheck.Item{item("xenstore", hostcheck.Problem, "does not answer: connection refused", "systemctl start xen")}},
		{"no xenstored, not Debian", ready.with(files{"etc/init.d/xen*": "-"}), func(h *Host) { h.Xenstore = func(context.Context) error { return unix.ECONNREFUSED } },
			[]hostcheck.Item{item("xenstore", hostcheck.Problem, "does not answer: connection refused", "systemctl start xenstored")}},

		{"driver loaded", ready.with(loaded), nil,
			[]hostcheck.Item{item("xen-netback", hostcheck.Problem, "is loaded and takes every new vif (meant to be? see --per-vif)", wantKeepAway+"; modprobe -r xen-netback")}},
		{"driver loaded, serves", ready.with(loaded).with(files{"sys/bus/xen-backend/drivers/vif/vif-3-1": "->x"}), nil,
			[]hostcheck.Item{item("xen-netback", hostcheck.Problem, "is loaded and serves vif3.1; it takes every new vif (meant to be? see --per-vif)",
				wantKeepAway+"; for v in vif3.1; do netbackd adopt $v; done; modprobe -r xen-netback")}},
		{"driver built in", ready.with(loaded).with(files{"sys/module/xen_netback/initstate": "-"}), nil,
			[]hostcheck.Item{item("xen-netback", hostcheck.Problem, "is built into the kernel and takes every vif; boot with it switched off, or see --per-vif",
				`sed -i 's/^GRUB_CMDLINE_LINUX="/&initcall_blacklist=netback_init /' /etc/default/grub && update-grub && reboot`)}},
		{"driver would be loaded", ready, prints("insmod /lib/modules/6.1/kernel/drivers/net/other.ko\n" + insmod),
			[]hostcheck.Item{item("xen-netback", hostcheck.Problem, "is not loaded, but will be when a vif appears, and cut off the guests that netbackd serves by then", wantKeepAway)}},
		{"driver blacklisted", ready, prints(""), nil},
		{"no modprobe", ready, func(h *Host) {
			h.Modprobe = func(context.Context, ...string) (string, error) { return "", fs.ErrNotExist }
		}, []hostcheck.Item{item("xen-netback", hostcheck.Note, "is not loaded; cannot tell whether it will be: there is no modprobe", wantKeepAway)}},

		{"per vif", ready.with(loaded), perVif, nil},
		{"per vif, driver not loaded", ready, func(h *Host) { perVif(h); prints(insmod)(h) },
			[]hostcheck.Item{item("xen-netback", hostcheck.Problem, "is not loaded: netbackd serves all vifs, with any script, and they are cut off when it is loaded",
				"ln -sf /dev/null /etc/modprobe.d/netbackd.conf && modprobe xen-netback # while netbackd serves no vif")}},
		{"per vif, no script", ready.with(loaded).with(files{"etc/xen/scripts/vif-netbackd*": "-"}), perVif,
			[]hostcheck.Item{item("hotplug scripts", hostcheck.Problem, "/etc/xen/scripts/vif-netbackd is not there, by which single vifs are given to netbackd",
				"install -m 755 etc/xen/scripts/vif-netbackd /etc/xen/scripts/ # in netbackd's sources")}},
		{"script not executable", ready.with(files{"etc/xen/scripts/vif-netbackd*": "-", "etc/xen/scripts/vif-netbackd": ""}), nil,
			[]hostcheck.Item{item("hotplug scripts", hostcheck.Note, "/etc/xen/scripts/vif-netbackd is not there, by which single vifs are given to netbackd",
				"install -m 755 etc/xen/scripts/vif-netbackd /etc/xen/scripts/ # in netbackd's sources")}},
		{"no stock scripts", ready.with(files{"etc/xen/scripts/vif-bridge*": "-"}), nil,
			[]hostcheck.Item{item("hotplug scripts", hostcheck.Problem, "/etc/xen/scripts/vif-bridge is not there, which puts vifs into a bridge", "apt install --reinstall xen-utils-common")}},

		{"no bridge", ready.with(files{"sys/class/net/xenbr0/bridge/bridge_id": "-"}), nil,
			[]hostcheck.Item{item("bridge", hostcheck.Note, "there is none for vif-bridge to put vifs into", "ip link add xenbr0 type bridge && ip link set xenbr0 up")}},
		{"Open vSwitch", ready.with(files{"sys/class/net/xenbr0/bridge/bridge_id": "-", "sys/class/net/ovs-system/mtu": "1500"}), nil, nil},
		{"Open vSwitch in userspace", ready.with(files{
			"sys/class/net/xenbr0/bridge/bridge_id": "-", "sys/class/net/ovs-netdev/tun_flags": "0x1002",
			"sys/class/net/br0/tun_flags": "0x1002", "sys/class/net/tun0/tun_flags": "0x1001",
			"sys/class/net/vif1.0/tun_flags": "0x1002", "sys/class/net/web/tun_flags": "0x5102",
		}), nil, []hostcheck.Item{item("Open vSwitch", hostcheck.Note, "has bridges of the userspace datapath, which lose packets with offloads: netbackd finishes packets itself for vifs whose bridge= in the guest's config names one (br0); if a script plugs others into them, switch offload off for all vifs",
			`echo 'NETBACKD_ARGS="--offload none"' >>/etc/default/netbackd && systemctl restart netbackd # only if a script does`)}},
		{"no right to a priority", ready, func(h *Host) { h.Priority = func(context.Context) string { return "operation not permitted" } },
			[]hostcheck.Item{item("priority", hostcheck.Note, "workers take more CPU while their rates are high, because the daemon may not raise their priority: operation not permitted",
				"systemctl edit netbackd # [Service] LimitNICE=-10 SystemCallFilter=sched_setattr")}},
		{"no io_uring", ready, func(h *Host) { h.Uring = func() error { return errors.New("the kernel has none") } },
			[]hostcheck.Item{item("io_uring", hostcheck.Note, "does not work, so netbackd makes a system call per packet: the kernel has none", "")}},
		{"no programs", ready, func(h *Host) { h.Steering = func() error { return errors.New("CAP_BPF is needed") } },
			[]hostcheck.Item{item("steering", hostcheck.Note, "the kernel takes no program, so netbackd itself hands packets on to the queues that guests choose, one worker for each guest: CAP_BPF is needed", "")}},
		{"no seccomp", ready, func(h *Host) { h.Confined = func() error { return errors.New("the kernel has no filters") } },
			[]hostcheck.Item{item("isolation", hostcheck.Note, "packets move in the daemon, and not in a process without rights: the kernel has no filters", "")}},
		{"io_uring switched off", ready.with(files{"proc/sys/kernel/io_uring_disabled": "2\n"}), func(h *Host) { h.Uring = func() error { return errors.New("it is disabled") } },
			[]hostcheck.Item{item("io_uring", hostcheck.Note, "does not work, so netbackd makes a system call per packet: it is disabled", "sysctl kernel.io_uring_disabled=0")}},
		{"not running", ready, func(h *Host) {
			h.Daemon = func(context.Context) (string, error) { return "", errors.New("connection refused") }
		},
			[]hostcheck.Item{item("daemon", hostcheck.Note, "is not running", "systemctl start netbackd")}},
		{"running for others", ready, func(h *Host) { h.Daemon = func(context.Context) (string, error) { return "", unix.EACCES } },
			[]hostcheck.Item{item("daemon", hostcheck.Note, "may not be asked: permission denied", "sudo netbackd check")}},
		{"an old one is running", ready, func(h *Host) { h.Version = "v2" },
			[]hostcheck.Item{item("daemon", hostcheck.Note, "runs as version v1, this command is v2", "systemctl restart netbackd # guests keep their connections")}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := host(t, tt.tree)
			if tt.change != nil {
				tt.change(h)
			}
			r := h.Run(context.Background())
			var got []hostcheck.Item
			problems := 0
			for _, i := range r.Items {
				if i.Level == hostcheck.Problem {
					problems++
				}
				if i.Level != hostcheck.OK {
					i.Text = strings.ReplaceAll(i.Text, h.Root, "")
					got = append(got, i)
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("unexpected items (-want +got):\n%s", diff)
			}
			if r.Ready != (problems == 0) || r.Problems() != problems {
				t.Errorf("ready %t, %d problems, want %d", r.Ready, r.Problems(), problems)
			}
		})
	}
}

func TestEnumerate(t *testing.T) {
	if got := hostcheck.Enumerate([]string{"a", "b", "c", "d", "e", "f"}); got != "a, b, c, d and 2 more" {
		t.Error(got)
	}
}
