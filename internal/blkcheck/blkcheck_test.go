// SPDX-License-Identifier: Apache-2.0

package blkcheck

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/hostcheck"
)

// ready is a dom0 in which every check succeeds. The path of an executable ends in "*".
var ready = map[string]string{
	"sys/hypervisor/type":             "xen\n",
	"proc/xen/capabilities":           "control_d\n",
	"proc/sys/vm/max_map_count":       "65530\n",
	"dev/xen/gntdev":                  "",
	"dev/xen/evtchn":                  "",
	"dev/xen/xenbus":                  "",
	"etc/xen/scripts/block-blkbackd*": "",
}

// host makes a Host of a tree, some of whose files are changed, or removed if they are "-".
func host(t *testing.T, changes map[string]string) *Host {
	t.Helper()
	files := maps.Clone(ready)
	maps.Copy(files, changes)
	root := t.TempDir()
	for name, content := range files {
		path, executable := strings.CutSuffix(filepath.Join(root, name), "*")
		mode := os.FileMode(0o644)
		if executable {
			mode = 0o755
		}
		if content == "-" {
			continue
		}
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		if to, link := strings.CutPrefix(content, "->"); link {
			err = errors.Join(err, os.Symlink(to, path))
		} else {
			err = errors.Join(err, os.WriteFile(path, []byte(content), mode))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return &Host{
		Machine: hostcheck.Machine{
			Program: "blkbackd", Version: "v1", Root: root,
			Open:     func(path string) error { _, err := os.Stat(path); return err },
			Xenstore: func(context.Context) error { return nil },
			Modprobe: func(context.Context, ...string) (string, error) { return "", nil },
			Uring:    func() error { return nil },
			Daemon:   func(context.Context) (string, error) { return "v1", nil },
		},
		Stores: []string{"/srv"},
		Store:  func(string) (StoreFacts, error) { return StoreFacts{"ext4", false, true, true, true}, nil },
		Limit:  func(int) (uint64, error) { return 1 << 30, nil },
	}
}

func TestReady(t *testing.T) {
	want := hostcheck.Report{Schema: 1, Ready: true, Items: []hostcheck.Item{
		{Name: "xen", Level: hostcheck.OK, Text: "this is dom0"},
		{Name: "/dev/xen/gntdev", Level: hostcheck.OK, Text: "can be opened"},
		{Name: "/dev/xen/evtchn", Level: hostcheck.OK, Text: "can be opened"},
		{Name: "/dev/xen/xenbus", Level: hostcheck.OK, Text: "can be opened"},
		{Name: "xenstore", Level: hostcheck.OK, Text: "answers"},
		{Name: "xen-blkback", Level: hostcheck.OK, Text: "is not loaded and will not be"},
		{Name: "hotplug script", Level: hostcheck.OK, Text: "block-blkbackd"},
		{Name: "io_uring", Level: hostcheck.OK, Text: "works"},
		{Name: "store /srv", Level: hostcheck.OK, Text: "ext4 with locks, O_DIRECT and discard"},
		{Name: "limits", Level: hostcheck.OK, Text: "open files, locked memory and mappings suffice"},
		{Name: "daemon", Level: hostcheck.OK, Text: "runs, version v1"},
	}}
	if diff := cmp.Diff(want, host(t, nil).Run(t.Context())); diff != "" {
		t.Errorf("unexpected report (-want +got):\n%s", diff)
	}
}

func TestFaults(t *testing.T) {
	facts := func(f StoreFacts) func(*Host) {
		return func(h *Host) { h.Store = func(string) (StoreFacts, error) { return f, nil } }
	}
	for _, tt := range []struct {
		name   string
		files  map[string]string
		change func(*Host)
		item   string
		level  hostcheck.Level
		text   string // part
		fix    string // part
	}{
		{name: "no Xen", files: map[string]string{"sys/hypervisor/type": "-"}, item: "xen", level: hostcheck.Problem, text: "make demo-blk", fix: "apt install"},
		{name: "driver loaded", files: map[string]string{
			"sys/bus/xen-backend/drivers/vbd/unbind":      "",
			"sys/bus/xen-backend/drivers/vbd/vbd-3-51712": "",
		}, item: "xen-blkback", level: hostcheck.OK, text: "serves vbd-3-51712; block-blkbackd takes"},
		{name: "driver will be loaded", change: func(h *Host) {
			h.Modprobe = func(_ context.Context, a ...string) (string, error) {
				if a[len(a)-1] != "xen-backend:vbd" {
					return "", errors.New("asked for another driver")
				}
				return "insmod /lib/modules/6.1/kernel/drivers/block/xen-blkback/xen-blkback.ko.xz\n", nil
			}
		}, item: "xen-blkback", level: hostcheck.Problem, text: "will be when a disk appears", fix: "drivers_autoprobe"},
		{name: "no modprobe", change: func(h *Host) {
			h.Modprobe = func(context.Context, ...string) (string, error) { return "", os.ErrNotExist }
		}, item: "xen-blkback", level: hostcheck.Note, text: "cannot tell"},
		{name: "no script", files: map[string]string{"etc/xen/scripts/block-blkbackd*": "-"},
			item: "hotplug script", level: hostcheck.Problem, text: "is not there", fix: "install -m 755"},
		{name: "tapback", files: map[string]string{"run/xen/tapback.pid": "7"}, item: "tapback", level: hostcheck.Note, text: "backendtype=tap"},
		{name: "no io_uring", change: func(h *Host) { h.Uring = func() error { return unix.EPERM } },
			item: "io_uring", level: hostcheck.Note, text: "pool of threads"},
		{name: "store away", change: func(h *Host) {
			h.Store = func(string) (StoreFacts, error) { return StoreFacts{}, os.ErrNotExist }
		}, item: "store /srv", level: hostcheck.Problem, text: "cannot be used"},
		{name: "no locks", change: facts(StoreFacts{FileSystem: "NFS", Network: true}), item: "store /srv", level: hostcheck.Problem, text: "NFS has no locks", fix: "mount"},
		{name: "server", change: facts(StoreFacts{"NFS", true, true, true, true}), item: "store /srv", level: hostcheck.Note, text: "of a server"},
		{name: "no O_DIRECT", change: facts(StoreFacts{"tmpfs", false, true, false, true}), item: "store /srv", level: hostcheck.Note, text: "no O_DIRECT"},
		{name: "no holes", change: facts(StoreFacts{"vfat", false, true, true, false}), item: "store /srv", level: hostcheck.Note, text: "no discard"},
		{name: "few files", change: func(h *Host) { h.Limit = func(int) (uint64, error) { return 1024, nil } },
			item: "limits", level: hostcheck.Note, text: "open files is 1024"},
		{name: "few mappings", files: map[string]string{"proc/sys/vm/max_map_count": "1000"},
			item: "limits", level: hostcheck.Note, text: "max_map_count is 1000", fix: "sysctl"},
		{name: "no daemon", change: func(h *Host) {
			h.Daemon = func(context.Context) (string, error) { return "", errors.New("no") }
		}, item: "daemon", level: hostcheck.Note, text: "not running", fix: "systemctl start blkbackd"},
		{name: "other daemon", change: func(h *Host) {
			h.Daemon = func(context.Context) (string, error) { return "v0", nil }
		}, item: "daemon", level: hostcheck.Note, text: "version v0", fix: "systemctl restart blkbackd # guests keep their disks"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := host(t, tt.files)
			if tt.change != nil {
				tt.change(h)
			}
			r := h.Run(t.Context())
			if r.Ready != (tt.level != hostcheck.Problem) {
				t.Errorf("ready %t", r.Ready)
			}
			for _, i := range r.Items {
				if i.Name == tt.item {
					if i.Level != tt.level || !strings.Contains(i.Text, tt.text) || !strings.Contains(i.Fix, tt.fix) {
						t.Errorf("got %+v", i)
					}
					return
				}
			}
			t.Errorf("no item %s in %+v", tt.item, r.Items)
		})
	}
}

// TestTryStore leaves nothing behind.
func TestTryStore(t *testing.T) {
	dir := t.TempDir()
	f, err := TryStore(dir)
	if err != nil || f.FileSystem == "" || !f.Lock {
		t.Errorf("%+v, %v", f, err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left %v", left)
	}
	if _, err := TryStore(filepath.Join(dir, "missing")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if n, err := Limit(unix.RLIMIT_NOFILE); n == 0 || err != nil {
		t.Errorf("%d files, %v", n, err)
	}
}
