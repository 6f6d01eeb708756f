// SPDX-License-Identifier: Apache-2.0

// Package host opens the interfaces of the Xen that a back end runs on: the kernel's devices
// below /dev/xen, and xenstore.
//
// It must not know their use.
package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntalloc"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// DefaultDir is Linux's directory of Xen's devices.
const DefaultDir = "/dev/xen"

// Host is the interface of Linux to a real Xen.
type Host struct{ dir string }

// Open opens the Xen whose devices are in dir, usually DefaultDir. It opens and closes the
// devices, so that a missing module is reported at the start and not with the first guest.
func Open(dir string) (*Host, error) {
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s does not exist: this is not a Xen domain, or its modules are not loaded (modprobe xen-gntdev xen-evtchn); `make demo` in netbackd's sources shows it at work without Xen", dir)
	}
	h := &Host{dir: dir}
	g, err := h.OpenGrants()
	if err == nil {
		err = g.Close()
	}
	if err != nil {
		return nil, err
	}
	e, err := evtchn.Open(h.path("evtchn"))
	if err == nil {
		err = e.Close()
	}
	if err != nil {
		return nil, err
	}
	return h, nil
}

func (h *Host) path(device string) string { return filepath.Join(h.dir, device) }

// Real returns true: the kernel may have its own back end here.
func (h *Host) Real() bool { return true }

// OpenGrants opens the grant device.
func (h *Host) OpenGrants() (*gntdev.Device, error) { return gntdev.Open(h.path("gntdev")) }

// OpenOwnPages opens the device for pages that this domain grants to itself, which are
// copied to and from with grants. Until [OwnPages.Learn] has succeeded there are none.
func (h *Host) OpenOwnPages(grants Copier) (*OwnPages, error) {
	d, err := gntalloc.Open(h.path("gntalloc"))
	if err != nil {
		return nil, err
	}
	return NewOwnPages(d, grants, func() (int, error) { return gntalloc.Limit(gntalloc.LimitPath) }), nil
}

// OpenEvents opens the event channel device for the channels of one domain.
func (h *Host) OpenEvents(domid xen.Domid) (*evtchn.Device, error) {
	e, err := evtchn.Open(h.path("evtchn"))
	if err != nil {
		return nil, err
	}
	return Restrict(e, domid)
}

// OpenFile opens a device and returns its descriptor, for another process.
func (h *Host) OpenFile(device string, flags int) (int, error) {
	fd, err := unix.Open(h.path(device), unix.O_RDWR|unix.O_CLOEXEC|flags, 0)
	if err != nil {
		return -1, fmt.Errorf("%s: %w", h.path(device), err)
	}
	return fd, nil
}

// OpenGrantFile opens a grant device for another process.
func (h *Host) OpenGrantFile() (int, error) { return h.OpenFile("gntdev", 0) }

// EventFiles returns the number of descriptors of an event channel device.
func (h *Host) EventFiles() int { return 1 }

// OpenEventFiles opens the event channel device for the channels of one domain, for another
// process.
func (h *Host) OpenEventFiles(domid xen.Domid) ([]int, error) {
	e, err := h.OpenEvents(domid)
	if err != nil {
		return nil, err
	}
	// The copy is of the same open file, and keeps it open.
	fd, err := unix.FcntlInt(uintptr(e.FD()), unix.F_DUPFD_CLOEXEC, 0)
	if err = errors.Join(err, e.Close()); err != nil {
		return nil, err
	}
	return []int{fd}, nil
}

// DialStore connects to xenstore.
func (h *Host) DialStore(ctx context.Context) (*xenstore.Client, error) { return xenstore.Open(ctx) }

// Events is an event channel device without bound channels.
type Events interface {
	Restrict(domid xen.Domid) error
	Close() error
}

// Restrict restricts e to the channels of one domain, and closes e if that fails. Xen
// cannot restrict a handle to domain 0, which may be a guest of a driver domain: such a
// handle stays unrestricted.
func Restrict[E Events](e E, domid xen.Domid) (E, error) {
	if domid == 0 {
		return e, nil
	}
	if err := e.Restrict(domid); err != nil {
		var none E
		return none, errors.Join(err, e.Close())
	}
	return e, nil
}
