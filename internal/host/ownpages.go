// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/gntalloc"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// PageDevice is the device that grants pages in the place of a program's memory, normally a
// *gntalloc.Device.
type PageDevice interface {
	AllocAt(mem []byte, domid xen.Domid, writable bool) (*gntalloc.Pages, error)
	Close() error
}

// Copier is the device that copies between granted pages, normally a *gntdev.Device.
type Copier interface {
	Copy(segs []gntdev.Segment) error
}

// OwnPages grants pages to the domain that the program runs in. There are some from the
// time on at which Learn has succeeded. Its methods may be called from several goroutines
// at once.
type OwnPages struct {
	dev    PageDevice
	copier Copier
	limit  func() (int, error)

	mu    sync.Mutex
	domid xen.Domid // of this domain; guarded by mu
	err   error     // the reason why there are none; guarded by mu
	used  int       // pages granted; guarded by mu
}

// Reasons why there are no own pages.
var (
	errNotLearned = errors.New("xenstored has not told the number of this domain yet")
	errNotCopied  = errors.New("a copy between own pages went wrong: the bytes are not there")
)

// NewOwnPages makes an OwnPages of a device. limit reads the largest number of pages that
// all programs of this domain may have granted; nil, or an error of it, means that only the
// device knows.
func NewOwnPages(dev PageDevice, copier Copier, limit func() (int, error)) *OwnPages {
	return &OwnPages{dev: dev, copier: copier, limit: limit, err: errNotLearned}
}

// Learn reads the number of this domain and tries a copy. It returns nil if that was done
// before, and otherwise the reason why there are no own pages.
func (o *OwnPages) Learn(ctx context.Context, s xenbus.Store) error {
	o.mu.Lock()
	known := o.err == nil
	o.mu.Unlock()
	if known {
		return nil
	}
	domid, err := xenbus.OwnDomid(ctx, s)
	if err != nil {
		return o.learned(domid, err)
	}
	return o.Told(domid)
}

// Told is Learn with the number of this domain, in a process that has no xenstore.
func (o *OwnPages) Told(domid xen.Domid) error { return o.learned(domid, o.try(domid)) }

func (o *OwnPages) learned(domid xen.Domid, err error) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.domid, o.err = domid, err
	return err
}

// try copies within an own page, so that a hypervisor, a kernel or a security policy that
// does not allow it is found before there are packets.
func (o *OwnPages) try(domid xen.Domid) error {
	a, err := gntdev.NewArena(gntdev.PageSize)
	if err != nil {
		return err
	}
	p, err := o.dev.AllocAt(a.Bytes(), domid, true)
	if err != nil {
		return errors.Join(err, a.Close())
	}
	const from, to = 64, 2048
	text := []byte("a page that this domain has granted to itself")
	copy(a.Bytes()[from:], text)
	var seg [1]gntdev.Segment
	seg[0].FromGuestToOwn(xen.DomidSelf, p.Refs()[0], from, p.Refs()[0], to, uint16(len(text)))
	err = o.copier.Copy(seg[:])
	switch st := seg[0].Status(); {
	case err != nil:
	case st != gntdev.StatusOkay:
		err = fmt.Errorf("copy between own pages of domain %d: %w", domid, st)
	case !bytes.Equal(a.Bytes()[to:][:len(text)], text):
		err = errNotCopied
	}
	return errors.Join(err, p.Free(), a.Close())
}

// Domid returns the number of this domain, or the reason why there are no own pages.
func (o *OwnPages) Domid() (xen.Domid, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.domid, o.err
}

// AllocOwn puts pages that this domain has granted to itself, for writing, in the place of
// mem; see [gntalloc.Device.AllocAt]. All are granted or none.
func (o *OwnPages) AllocOwn(mem []byte) (*gntalloc.Pages, error) {
	n := len(mem) / gntalloc.PageSize
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err != nil {
		return nil, o.err
	}
	if o.limit != nil {
		if limit, err := o.limit(); err == nil && o.used+n > gntalloc.Share(limit) {
			return nil, &gntalloc.Error{Op: "alloc", Domid: o.domid, Pages: n, Err: unix.ENOSPC,
				Hint: fmt.Sprintf("of the %d pages that %s allows, %d are in use here and the rest is left to other programs: raise it", limit, gntalloc.LimitPath, o.used)}
		}
	}
	p, err := o.dev.AllocAt(mem, o.domid, true)
	if err != nil {
		return nil, err
	}
	o.used += n
	return gntalloc.NewPages(p.Bytes(), p.Refs(), func() error {
		o.mu.Lock()
		o.used -= n
		o.mu.Unlock()
		return p.Free()
	}), nil
}

// Close closes the device. Pages stay granted until their Free.
func (o *OwnPages) Close() error { return o.dev.Close() }
