// SPDX-License-Identifier: Apache-2.0

package xennetback

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/pkg/xenbus"
)

// tree makes a sysfs: files by path, links by path and "->" before the target,
// directories by a path with a slash at the end.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		path := filepath.Join(root, name)
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		switch {
		case name[len(name)-1] == '/':
			must(t, os.MkdirAll(path, 0o755))
		case len(content) > 2 && content[:2] == "->":
			must(t, os.Symlink(content[2:], path))
		default:
			must(t, os.WriteFile(path, []byte(content), 0o644))
		}
	}
	return root
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// loaded makes the sysfs of a Debian 12 dom0 in which one of two vifs is served.
func loaded(t *testing.T) string {
	return tree(t, map[string]string{
		"bus/xen-backend/drivers/vif/bind":             "",
		"bus/xen-backend/drivers/vif/unbind":           "",
		"bus/xen-backend/drivers/vif/uevent":           "",
		"bus/xen-backend/drivers/vif/module":           "->../../../../module/xen_netback",
		"bus/xen-backend/drivers/vif/vif-3-1":          "->../../../../devices/vif-3-1",
		"bus/xen-backend/devices/vif-3-1/driver":       "->../../bus/xen-backend/drivers/vif",
		"bus/xen-backend/devices/vif-3-1/net/web/mtu":  "1500\n",
		"bus/xen-backend/devices/vif-4-0/uevent":       "",
		"module/xen_netback/initstate":                 "live\n",
		"module/xen_netback/parameters/max_queues":     "2\n",
		"bus/xen-backend/devices/vbd-3-51712/driver":   "->../../bus/xen-backend/drivers/vbd",
		"bus/xen-backend/devices/vif-5-0/driver":       "->../../bus/xen-backend/drivers/other",
		"bus/xen-backend/drivers/vbd/vbd-3-51712/node": "",
	})
}

func TestLoaded(t *testing.T) {
	root := loaded(t)
	d := New(root)
	if !d.Loaded() || d.BuiltIn() {
		t.Errorf("loaded %t, built in %t", d.Loaded(), d.BuiltIn())
	}
	for _, tt := range []struct {
		id     xenbus.VifID
		serves bool
	}{
		{xenbus.VifID{Domid: 3, Devid: 1}, true}, {xenbus.VifID{Domid: 3}, false},
		{xenbus.VifID{Domid: 4}, false}, {xenbus.VifID{Domid: 5}, false},
	} {
		if got := d.Serves(tt.id); got != tt.serves {
			t.Errorf("serves %v: %t", tt.id, got)
		}
	}
	names, err := d.Vifs()
	if diff := cmp.Diff([]string{"vif3.1"}, names); diff != "" || err != nil {
		t.Errorf("unexpected vifs, %v (-want +got):\n%s", err, diff)
	}
	if name, err := d.Interface(xenbus.VifID{Domid: 3, Devid: 1}); name != "web" || err != nil {
		t.Errorf("interface %q, %v", name, err)
	}
	if _, err := d.Interface(xenbus.VifID{Domid: 4, Devid: 0}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("interface of a vif that is not served: %v", err)
	}
	if n, err := d.MaxQueues(); n != 2 || err != nil {
		t.Errorf("max queues %d, %v", n, err)
	}
	must(t, d.Unbind(xenbus.VifID{Domid: 3, Devid: 1}))
	must(t, d.Bind(xenbus.VifID{Domid: 4, Devid: 0}))
	for file, want := range map[string]string{"unbind": "vif-3-1", "bind": "vif-4-0"} {
		if got, err := os.ReadFile(filepath.Join(root, "bus/xen-backend/drivers/vif", file)); string(got) != want || err != nil {
			t.Errorf("%s was told %q, %v", file, got, err)
		}
	}
}

func TestNotLoaded(t *testing.T) {
	d := New(tree(t, map[string]string{"bus/xen-backend/devices/vif-3-1/uevent": ""}))
	if d.Loaded() || d.BuiltIn() || d.Serves(xenbus.VifID{Domid: 3, Devid: 1}) {
		t.Error("claims to be loaded")
	}
	if names, err := d.Vifs(); len(names) != 0 || err != nil {
		t.Errorf("vifs %v, %v", names, err)
	}
	if err := d.Unbind(xenbus.VifID{Domid: 3, Devid: 1}); !errors.Is(err, ErrNotLoaded) {
		t.Errorf("unbind: %v", err)
	}
	if err := d.Bind(xenbus.VifID{Domid: 3, Devid: 1}); !errors.Is(err, ErrNotLoaded) {
		t.Errorf("bind: %v", err)
	}
	if _, err := d.MaxQueues(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("max queues: %v", err)
	}
}

func TestBuiltIn(t *testing.T) {
	d := New(tree(t, map[string]string{
		"bus/xen-backend/drivers/vif/unbind":       "",
		"module/xen_netback/parameters/max_queues": "2\n",
	}))
	if !d.Loaded() || !d.BuiltIn() {
		t.Errorf("loaded %t, built in %t", d.Loaded(), d.BuiltIn())
	}
}
