// SPDX-License-Identifier: Apache-2.0

package netcheck

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/hostcheck"
	"github.com/netbackd/netbackd/pkg/gntalloc"
)

// UnitLimit is the number of pages that the unit and the modprobe.d file of the package
// allow to all programs of this domain that grant pages: three quarters of the grant table
// that dom0 has unless gnttab_max_frames says otherwise (64 frames of 512 entries). The rest
// is for what this domain's drivers grant, which is much in a driver domain that has disks
// and a network itself.
const UnitLimit = 24576

// ownPages checks for the device for pages that netbackd grants to this domain itself. Without
// them it works as well, and takes more CPU.
func (h *Host) ownPages(ctx context.Context, add hostcheck.Adder) {
	const (
		path    = gntalloc.DefaultPath
		without = ", so packets are copied by address, which takes more CPU"
		restart = " && systemctl restart netbackd # guests keep their connections"
	)
	err := h.Open(h.Path(path))
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		add(path, hostcheck.Note, "is not there"+without, "modprobe xen-gntalloc"+restart)
		return
	case errors.Is(err, fs.ErrPermission):
		add(path, hostcheck.Note, "may not be opened"+without, "udevadm trigger --action=change --subsystem-match=misc"+restart)
		return
	case err != nil:
		add(path, hostcheck.Note, err.Error()+without, "")
		return
	}
	limit, err := gntalloc.Limit(h.Path(gntalloc.LimitPath))
	if err != nil {
		add(path, hostcheck.Note, "can be opened; cannot tell how many pages it grants: "+err.Error(), "")
		return
	}
	wanted := h.OwnPages(ctx)
	if share := gntalloc.Share(limit); share < wanted {
		need := neededLimit(wanted)
		text := fmt.Sprintf("grants at most %d pages, of which netbackd takes %d; its workers could use %d, and packets elsewhere are copied by address, which takes more CPU", limit, share, wanted)
		if need > UnitLimit {
			text += "; give this domain a larger grant table as well (gnttab_max_frames= of Xen)"
		}
		add(path, hostcheck.Note, text, fmt.Sprintf("echo %d >%s%s", need, gntalloc.LimitPath, restart))
		return
	}
	add(path, hostcheck.OK, fmt.Sprintf("can be opened, and grants enough pages (%d of %d)", wanted, limit), "")
}

// neededLimit returns the smallest multiple of 1024 of which netbackd's share is enough.
func neededLimit(pages int) int {
	const step = 1024
	limit := step
	for gntalloc.Share(limit) < pages {
		limit += step
	}
	return limit
}
