// SPDX-License-Identifier: Apache-2.0

package netcheck

import (
	"context"
	"errors"
	"io/fs"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/hostcheck"
)

// TestOwnPages: netbackd works without any part of this, and the note has the command.
func TestOwnPages(t *testing.T) {
	const (
		dev     = "/dev/xen/gntalloc"
		limit   = "sys/module/xen_gntalloc/parameters/limit"
		restart = " && systemctl restart netbackd # guests keep their connections"
	)
	for _, c := range []struct {
		name  string
		files files
		open  error
		pages int
		want  hostcheck.Item
	}{
		{"no module", files{"dev/xen/gntalloc": "-"}, nil, 704,
			item(dev, hostcheck.Note, "is not there, so packets are copied by address, which takes more CPU", "modprobe xen-gntalloc"+restart)},
		{"no such device", nil, unix.ENXIO, 704,
			item(dev, hostcheck.Note, "is not there, so packets are copied by address, which takes more CPU", "modprobe xen-gntalloc"+restart)},
		{"no rights", nil, fs.ErrPermission, 704,
			item(dev, hostcheck.Note, "may not be opened, so packets are copied by address, which takes more CPU",
				"udevadm trigger --action=change --subsystem-match=misc"+restart)},
		{"another error", nil, errors.New("it is broken"), 704,
			item(dev, hostcheck.Note, "it is broken, so packets are copied by address, which takes more CPU", "")},
		{"no limit to read", files{limit: "-"}, nil, 704,
			item(dev, hostcheck.Note, "can be opened; cannot tell how many pages it grants: open ROOT/"+limit+": no such file or directory", "")},
		{"the kernel's limit, one worker", files{limit: "1024\n"}, nil, 704,
			item(dev, hostcheck.OK, "can be opened, and grants enough pages (704 of 1024)", "")},
		{"the kernel's limit, two workers", files{limit: "1024\n"}, nil, 1408,
			item(dev, hostcheck.Note, "grants at most 1024 pages, of which netbackd takes 768; its workers could use 1408, "+
				"and packets elsewhere are copied by address, which takes more CPU",
				"echo 2048 >/sys/module/xen_gntalloc/parameters/limit"+restart)},
		{"the unit's limit", files{limit: "24576\n"}, nil, 33 * 704,
			item(dev, hostcheck.OK, "can be opened, and grants enough pages (23232 of 24576)", "")},
		{"more workers than the unit's limit is for", files{limit: "24576\n"}, nil, 64 * 704,
			item(dev, hostcheck.Note, "grants at most 24576 pages, of which netbackd takes 23552; its workers could use 45056, "+
				"and packets elsewhere are copied by address, which takes more CPU; "+
				"give this domain a larger grant table as well (gnttab_max_frames= of Xen)",
				"echo 46080 >/sys/module/xen_gntalloc/parameters/limit"+restart)},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := host(t, ready.with(c.files))
			h.OwnPages = func(context.Context) int { return c.pages }
			if open := h.Open; c.open != nil {
				h.Open = func(path string) error {
					if strings.HasSuffix(path, dev) {
						return c.open
					}
					return open(path)
				}
			}
			r := h.Run(context.Background())
			if !r.Ready {
				t.Error("not ready")
			}
			for _, got := range r.Items {
				if got.Name == dev {
					got.Text = strings.ReplaceAll(got.Text, h.Root, "ROOT")
					if diff := cmp.Diff(c.want, got); diff != "" {
						t.Errorf("item (-want +got):\n%s", diff)
					}
					return
				}
			}
			t.Error("there is no item")
		})
	}
}
