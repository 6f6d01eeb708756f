// SPDX-License-Identifier: Apache-2.0

// Package host opens what a back end needs of the Xen it runs on: the devices of the
// kernel below /dev/xen, and xenstore.
//
// It knows how to open things. It must not know what they are used for.
package host

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/netbackd/netbackd/internal/vif"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// DefaultDir is where Linux has Xen's devices.
const DefaultDir = "/dev/xen"

// Host is a real Xen as Linux offers it to a domain.
type Host struct {
	dir    string
	grants *gntdev.Device
}

// Open opens the Xen whose devices are in dir, usually DefaultDir. The event channel
// device is opened on trial, so that a missing module is reported at the start and not
// when the first guest comes.
func Open(dir string) (*Host, error) {
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s does not exist: this is not a Xen domain, or its modules are not loaded (modprobe xen-gntdev xen-evtchn); `make demo` in netbackd's sources shows it at work without Xen", dir)
	}
	h := &Host{dir: dir}
	var err error
	if h.grants, err = gntdev.Open(h.path("gntdev")); err != nil {
		return nil, err
	}
	e, err := evtchn.Open(h.path("evtchn"))
	if err == nil {
		err = e.Close()
	}
	if err != nil {
		return nil, errors.Join(err, h.grants.Close())
	}
	return h, nil
}

func (h *Host) path(device string) string { return filepath.Join(h.dir, device) }

// Real reports that the kernel has a back end of its own here.
func (h *Host) Real() bool { return true }

// Grants returns the grant device.
func (h *Host) Grants() vif.Grants { return h.grants }

// OpenMapper opens the grant device once more.
func (h *Host) OpenMapper() (vif.Mapper, error) { return gntdev.Open(h.path("gntdev")) }

// OpenEvents opens the event channel device for the channels of one domain.
func (h *Host) OpenEvents(domid xen.Domid) (vif.Events, error) {
	e, err := evtchn.Open(h.path("evtchn"))
	if err != nil {
		return nil, err
	}
	return Restrict(e, domid)
}

// DialStore connects to xenstore.
func (h *Host) DialStore() (*xenstore.Client, error) { return xenstore.Open() }

// Close closes the grant device.
func (h *Host) Close() error { return h.grants.Close() }

// Events is an event channel device that was just opened.
type Events interface {
	vif.Events
	Restrict(domid xen.Domid) error
}

// Restrict gives up the channels of all domains but one, and closes e if that fails. Xen
// cannot restrict a handle to domain 0, which may be a guest of a driver domain: such a
// handle stays unrestricted.
func Restrict(e Events, domid xen.Domid) (vif.Events, error) {
	if domid == 0 {
		return e, nil
	}
	if err := e.Restrict(domid); err != nil {
		return nil, errors.Join(err, e.Close())
	}
	return e, nil
}

var _ vif.Host = (*Host)(nil)
