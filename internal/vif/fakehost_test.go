// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"fmt"
	"testing"

	"github.com/netbackd/netbackd/internal/netengine"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xentest"
)

// fakeHost is a host with one guest. At the end of the test the backend may hold
// nothing of it.
type fakeHost struct{ *xentest.Guest }

var _ netengine.Host = fakeHost{}

// bufferGref is of a page that the guest has granted for packets.
const bufferGref = 3000

func newFakeHost(t testing.TB, domid xen.Domid) fakeHost {
	h := fakeHost{xentest.Start(t, domid)}
	h.GrantAt(bufferGref, gntdev.ReadWrite)
	return h
}

func (h fakeHost) Grants() netengine.Grants { return h.Gntdev() }

func (h fakeHost) OpenMapper() (netengine.Mapper, error) {
	m, err := h.OpenGntdev()
	if err != nil {
		return nil, err
	}
	return m, nil
}

func (h fakeHost) OpenEvents(domid xen.Domid) (netengine.Events, error) {
	e, err := h.OpenEvtchn()
	if err != nil {
		return nil, err
	}
	if err := e.Restrict(domid); err != nil {
		_ = e.Close()
		return nil, err
	}
	return e, nil
}

// held describes what the backend has of the guest.
func (h fakeHost) held() string {
	u := h.Usage()
	return fmt.Sprintf("%d pages, %d handles, %d ports", u.Pages, u.Devices, u.Ports)
}

const nothing = "0 pages, 0 handles, 0 ports"

// kick sends an event from the guest. It is lost if there is no such port.
func (h fakeHost) kick(port evtchn.Port) { _ = h.Send(port) }

// failNth fails the nth call (counted from 1) of one operation.
func failNth(op xentest.Op, n int, err error) func(xentest.Call) error {
	return func(c xentest.Call) error {
		if c.Op != op {
			return nil
		}
		if n--; n == 0 {
			return err
		}
		return nil
	}
}
