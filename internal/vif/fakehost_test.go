// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"fmt"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/xen"
)

// fakeHost is a Xen with one guest: the pages it granted, the ports it offered, and the
// numbers of what the backend holds of either. As on Xen, a gref that was not granted
// cannot be mapped, and a port that is not offered or already bound cannot be bound.
type fakeHost struct {
	mu      sync.Mutex // guards all below
	domid   xen.Domid
	pages   map[xen.Gref][]byte
	ports   map[evtchn.Port]*fakePort // by the guest's number
	mapped  int
	handles int
	bound   int
	maps    int // since the beginning
	fault   func(op string) error
}

type fakePort struct {
	by       *fakeEvents // bound there, nil if it is not
	local    evtchn.Port
	notified int
}

func newFakeHost(domid xen.Domid) *fakeHost {
	return &fakeHost{domid: domid, pages: map[xen.Gref][]byte{}, ports: map[evtchn.Port]*fakePort{}}
}

// held describes what the backend has of the guest.
func (h *fakeHost) held() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return fmt.Sprintf("%d pages, %d handles, %d ports", h.mapped, h.handles, h.bound)
}

const nothing = "0 pages, 0 handles, 0 ports"

// mapCalls returns the number of calls to map.
func (h *fakeHost) mapCalls() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.maps
}

// failing makes the operations fail for which fault returns an error.
func (h *fakeHost) failing(fault func(op string) error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fault = fault
}

// try returns the fault of an operation. The caller holds mu.
func (h *fakeHost) try(op string) error {
	if h.fault == nil {
		return nil
	}
	return h.fault(op)
}

// kick sends an event from the guest.
func (h *fakeHost) kick(remote evtchn.Port) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if p := h.ports[remote]; p != nil && p.by != nil {
		p.by.raise(p.local)
	}
}

func (h *fakeHost) Grants() Grants { return fakeGrants{h} }

func (h *fakeHost) OpenMapper() (Mapper, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.try("open grants"); err != nil {
		return nil, &gntdev.Error{Op: "open", Index: -1, Err: err}
	}
	h.handles++
	return fakeMapper{fakeGrants{h}}, nil
}

type fakeMapper struct{ fakeGrants }

func (m fakeMapper) Close() error {
	m.h.mu.Lock()
	defer m.h.mu.Unlock()
	m.h.handles--
	return nil
}

func (h *fakeHost) OpenEvents(domid xen.Domid) (Events, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.try("open events"); err != nil {
		return nil, &evtchn.Error{Op: "open", Err: err}
	}
	if domid != h.domid {
		return nil, &evtchn.Error{Op: "restrict", Domid: domid, Err: unix.EINVAL}
	}
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, err
	}
	h.handles++
	return &fakeEvents{h: h, fd: fd}, nil
}

type fakeGrants struct{ h *fakeHost }

func (g fakeGrants) Map(domid xen.Domid, refs []xen.Gref, _ gntdev.Prot) (*gntdev.Mapping, error) {
	h := g.h
	h.mu.Lock()
	defer h.mu.Unlock()
	h.maps++
	err := h.try("map")
	if err == nil && len(refs) != 1 {
		err = fmt.Errorf("%d refs in one call", len(refs))
	}
	var page []byte
	if err == nil {
		if page = h.pages[refs[0]]; page == nil || domid != h.domid {
			err = unix.EINVAL
		}
	}
	if err != nil {
		return nil, &gntdev.Error{Op: "map", Index: 0, Domid: domid, Ref: refs[0], Err: err}
	}
	h.mapped++
	return gntdev.NewMapping(page, func() error {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.mapped--
		return nil
	}), nil
}

// Copy copies nothing: this package does not look into packets.
func (g fakeGrants) Copy(segs []gntdev.Segment) error {
	for i := range segs {
		segs[i].SetStatus(gntdev.StatusOkay)
	}
	return nil
}

// fakeEvents is an open event channel device.
type fakeEvents struct {
	h       *fakeHost
	fd      int
	remotes []evtchn.Port // local port i+1 is bound to remotes[i]
	pending []evtchn.Port
}

func (e *fakeEvents) raise(local evtchn.Port) {
	if !slices.Contains(e.pending, local) {
		e.pending = append(e.pending, local)
	}
	_, _ = unix.Write(e.fd, []byte{1, 0, 0, 0, 0, 0, 0, 0})
}

func (e *fakeEvents) BindInterdomain(domid xen.Domid, remote evtchn.Port) (evtchn.Port, error) {
	h := e.h
	h.mu.Lock()
	defer h.mu.Unlock()
	err := h.try("bind")
	p := h.ports[remote]
	if err == nil && (domid != h.domid || p == nil || p.by != nil) {
		err = unix.EINVAL
	}
	if err != nil {
		return 0, &evtchn.Error{Op: "bind", Domid: domid, Port: remote, Err: err}
	}
	e.remotes = append(e.remotes, remote)
	h.bound++
	p.by, p.local = e, evtchn.Port(len(e.remotes))
	e.raise(p.local) // as Xen does
	return p.local, nil
}

func (e *fakeEvents) FD() int { return e.fd }

func (e *fakeEvents) Pending(buf []evtchn.Port) (int, error) {
	e.h.mu.Lock()
	defer e.h.mu.Unlock()
	var b [8]byte
	_, _ = unix.Read(e.fd, b[:])
	n := copy(buf, e.pending)
	if e.pending = e.pending[n:]; len(e.pending) > 0 {
		_, _ = unix.Write(e.fd, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	}
	return n, nil
}

func (e *fakeEvents) Unmask([]evtchn.Port) error { return nil }
func (e *fakeEvents) Reset() error               { return nil }

func (e *fakeEvents) Notify(local evtchn.Port) error {
	e.h.mu.Lock()
	defer e.h.mu.Unlock()
	e.h.ports[e.remotes[local-1]].notified++
	return nil
}

func (e *fakeEvents) Close() error {
	e.h.mu.Lock()
	defer e.h.mu.Unlock()
	if e.fd < 0 {
		return evtchn.ErrClosed
	}
	for _, r := range e.remotes {
		if p := e.h.ports[r]; p != nil && p.by == e {
			p.by = nil
		}
		e.h.bound--
	}
	e.h.handles--
	fd := e.fd
	e.fd = -1
	return unix.Close(fd)
}

var _ Host = (*fakeHost)(nil)

// failNth fails the nth call (counted from 1) of one operation.
func failNth(op string, n int, err error) func(string) error {
	return func(o string) error {
		if o != op {
			return nil
		}
		if n--; n == 0 {
			return err
		}
		return nil
	}
}

// TestFakeHostIsStrict keeps the fake from being kinder than Xen.
func TestFakeHostIsStrict(t *testing.T) {
	h := newFakeHost(7)
	h.pages[8] = make([]byte, gntdev.PageSize)
	h.ports[3] = new(fakePort)
	if _, err := h.Grants().Map(7, []xen.Gref{9}, gntdev.ReadWrite); err == nil {
		t.Error("mapped what was not granted")
	}
	if _, err := h.Grants().Map(6, []xen.Gref{8}, gntdev.ReadWrite); err == nil {
		t.Error("mapped another domain's page")
	}
	e, err := h.OpenEvents(7)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.BindInterdomain(7, 4); err == nil {
		t.Error("bound what was not offered")
	}
	if _, err := e.BindInterdomain(7, 3); err != nil {
		t.Error(err)
	}
	if _, err := e.BindInterdomain(7, 3); err == nil {
		t.Error("bound twice")
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	if got := h.held(); got != nothing {
		t.Errorf("held %s", got)
	}
}
