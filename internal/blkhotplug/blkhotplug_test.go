// SPDX-License-Identifier: Apache-2.0

package blkhotplug

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/netbackd/netbackd/internal/control"
	"github.com/netbackd/netbackd/internal/disk"
	"github.com/netbackd/netbackd/internal/vbd"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a host with one vbd. It notes what is done, in order.
type world struct {
	did    []string
	nodes  map[string]string
	kernel bool // the kernel's driver has the vbd

	canAdopt, adopt, bind error
	absent                int    // requests that no daemon answers
	status                string // error with which the daemon opens the disk; "": it opens it
	open                  bool   // the daemon has the disk open already
}

var (
	id  = xenbus.DeviceID{Class: xenbus.VBD, Domid: 3, Devid: 51712}
	dir = id.BackendPath(0)
)

func (w *world) note(what string) { w.did = append(w.did, what) }

func (w *world) Serves(xenbus.DeviceID) bool { return w.kernel }
func (w *world) Unbind(xenbus.DeviceID) error {
	w.note("unbind")
	return nil
}
func (w *world) Bind(xenbus.DeviceID) error {
	w.note("bind")
	return w.bind
}

// gone reports whether no daemon answers this request.
func (w *world) gone() error {
	if w.absent == 0 {
		return nil
	}
	w.absent--
	return control.ErrNotRunning
}

func (w *world) Vbd(context.Context, string, uint64) (vbd.Status, error) {
	if err := w.gone(); err != nil {
		return vbd.Status{}, err
	}
	s := vbd.NewStatus(id)
	s.Hotplug = w.nodes[dir+"/hotplug-status"]
	s.Disk.Open = w.open || s.Hotplug == "connected" && w.status == ""
	if s.Hotplug == "connected" {
		s.Error = w.status
	}
	return s, nil
}

func (w *world) Await(context.Context) error {
	w.note("await")
	return nil
}

func (w *world) CanAdopt(context.Context, string) error {
	w.note("can adopt")
	return w.canAdopt
}

func (w *world) Adopt(_ context.Context, name string) error {
	if err := w.gone(); err != nil {
		return err
	}
	w.note("adopt " + name)
	return w.adopt
}

func (w *world) Read(_ context.Context, path string) (string, error) {
	if v, ok := w.nodes[path]; ok {
		return v, nil
	}
	return "", xenstore.ErrNotExist
}

func (w *world) Write(_ context.Context, path, value string) error {
	w.nodes[path] = value
	return nil
}

func (w *world) Remove(_ context.Context, path string) error {
	if _, ok := w.nodes[path]; !ok {
		return xenstore.ErrNotExist
	}
	delete(w.nodes, path)
	return nil
}

func TestAdd(t *testing.T) {
	image := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(image, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(t.TempDir(), "missing.img")
	for _, tt := range []struct {
		name   string
		world  world
		params string
		did    string
		want   string // part of the error
		path   string // physical-device-path
	}{
		{"no back end has it", world{}, image, "adopt vbd-3-51712", "", image},
		{"raw of xl", world{}, "aio:" + image, "adopt vbd-3-51712", "", image},
		{"null", world{}, "null:1m", "adopt vbd-3-51712", "", ""},
		{"the kernel has it", world{kernel: true}, image, "can adopt, unbind, adopt vbd-3-51712", "", image},
		{"the guest uses it", world{kernel: true, canAdopt: errors.New("connected")}, image, "can adopt", "connected", ""},
		{"is returned", world{kernel: true, adopt: errors.New("full")}, image, "can adopt, unbind, adopt vbd-3-51712, bind", "full", ""},
		{"is lost", world{kernel: true, adopt: errors.New("full"), bind: errors.New("gone")}, image,
			"can adopt, unbind, adopt vbd-3-51712, bind", "no back end serves it now: gone", ""},
		{"no file", world{}, missing, "adopt vbd-3-51712", "not found", ""},
		{"no file, and it is open", world{open: true}, missing, "adopt vbd-3-51712", "", missing},
		{"the daemon may not open it", world{status: "disk: permission denied"}, image, "adopt vbd-3-51712", "permission denied", image},
		{"no path", world{}, "", "adopt vbd-3-51712", "no path", ""},
		{"the daemon restarts", world{absent: 2}, image, "await, adopt vbd-3-51712", "", image},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := tt.world
			w.nodes = map[string]string{dir + "/params": tt.params, dir + "/mode": "w", dir + "/hotplug-status": "", dir + "/hotplug-error": "old"}
			p := &Plugger{Kernel: &w, Daemon: &w, Store: &w}
			err := p.Add(t.Context(), id)
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
			if diff := cmp.Diff(tt.did, strings.Join(w.did, ", ")); diff != "" {
				t.Errorf("steps (-want +got):\n%s", diff)
			}
			if got := w.nodes[dir+"/physical-device-path"]; got != tt.path {
				t.Errorf("path %q, want %q", got, tt.path)
			}
			if err == nil && (w.nodes[dir+"/hotplug-status"] != "connected" || w.nodes[dir+"/hotplug-error"] != "") {
				t.Errorf("nodes %v", w.nodes)
			}
			if err != nil {
				if err := p.Fail(t.Context(), id, err); err != nil || w.nodes[dir+"/hotplug-status"] != "error" || w.nodes[dir+"/hotplug-error"] == "old" {
					t.Errorf("fail: %v, nodes %v", err, w.nodes)
				}
			}
		})
	}
}

// TestAddOfALockedDisk refuses a disk that another process has locked, except for a guest that
// arrives by a migration: the sending end has it until it is destroyed.
func TestAddOfALockedDisk(t *testing.T) {
	image := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(image, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := disk.Open(t.Context(), disk.Options{Path: image})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for name, wait := range map[string]bool{"guest": false, "guest--incoming": true} {
		ctx, cancel := context.WithTimeout(t.Context(), lockTimeout/50)
		defer cancel()
		w := world{status: "busy", nodes: map[string]string{
			dir + "/params": image, dir + "/mode": "w", dir + "/hotplug-status": "", xenstore.DomainPath(id.Domid) + "/name": name,
		}}
		err = (&Plugger{Kernel: &w, Daemon: &w, Store: &w}).Add(ctx, id)
		var e *disk.Error
		if busy := errors.As(err, &e) && e.Reason == disk.ReasonBusy; busy == wait || err != nil && !busy {
			t.Errorf("%s: got %v", name, err)
		}
		if connected := w.nodes[dir+"/hotplug-status"] == "connected"; connected != wait {
			t.Errorf("%s: nodes %v", name, w.nodes)
		}
	}
}

func TestParseID(t *testing.T) {
	vbd3 := xenbus.DeviceID{Class: xenbus.VBD3, Domid: 3, Devid: 51728}
	for in, want := range map[string]xenbus.DeviceID{
		"vbd-3-51712": id, "backend/vbd/3/51712": id, "/local/domain/0/backend/vbd/3/51712": id, "3/xvda": id, "3/51712": id,
		"vbd3-3-51728": vbd3, "backend/vbd3/3/51728": vbd3,
	} {
		if got, err := ParseID(in); got != want || err != nil {
			t.Errorf("ParseID(%q) = %v, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "xvda", "vif3.0", "backend/vif/3/0", "3/", "/xvda", "x/xvda", "vbd-3"} {
		if got, err := ParseID(in); err == nil {
			t.Errorf("ParseID(%q) = %v", in, got)
		}
	}
}

// TestDriverDomain finds the directory of a domain with a number.
func TestDriverDomain(t *testing.T) {
	w := world{nodes: map[string]string{"domid": "7"}}
	p := &Plugger{Store: &w}
	if got, err := p.directory(t.Context(), id); got != id.BackendPath(xen.Domid(7)) || err != nil {
		t.Errorf("%s, %v", got, err)
	}
	w.nodes["domid"] = "seven"
	if _, err := p.directory(t.Context(), id); err == nil {
		t.Error("no error for a domid that is no number")
	}
}
