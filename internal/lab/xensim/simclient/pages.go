// SPDX-License-Identifier: Apache-2.0

package simclient

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/xensim/wire"
	"github.com/netbackd/netbackd/pkg/gntalloc"
	"github.com/netbackd/netbackd/pkg/xen"
)

// Pages is [gntalloc.Device] for the embedded Xen: it grants pages of this domain's memory
// to other domains. Its methods may be called from several goroutines at once.
type Pages struct{ link *link }

// Pages opens the grant allocation device.
func (c *Conn) Pages() (*Pages, error) {
	l, _, err := open(c.dir, c.domid, wire.KindGntalloc)
	if err != nil {
		return nil, err
	}
	return &Pages{link: l}, nil
}

// Close closes the device. Pages stay granted until their Free. Close may be
// called again, which does nothing.
func (p *Pages) Close() error { return p.link.close() }

// Alloc implements [gntalloc.Device.Alloc].
func (p *Pages) Alloc(domid xen.Domid, n int, writable bool) (*gntalloc.Pages, error) {
	if n < 1 || n > wire.MaxRefs {
		return nil, &gntalloc.Error{Op: "alloc", Domid: domid, Pages: n, Err: unix.EINVAL}
	}
	return p.alloc(domid, n, writable, func(file int, frames []uint32) ([]byte, func([]byte) error, error) {
		mem, err := mapPages(file, frames, unix.PROT_READ|unix.PROT_WRITE)
		return mem, unmapPages, err
	})
}

// AllocAt implements [gntalloc.Device.AllocAt].
func (p *Pages) AllocAt(mem []byte, domid xen.Domid, writable bool) (*gntalloc.Pages, error) {
	n := len(mem) / pageSize
	if n < 1 || n > wire.MaxRefs || len(mem)%pageSize != 0 || !aligned(mem) {
		return nil, &gntalloc.Error{Op: "alloc", Domid: domid, Pages: n, Err: unix.EINVAL}
	}
	return p.alloc(domid, n, writable, func(file int, frames []uint32) ([]byte, func([]byte) error, error) {
		err := mapPagesAt(mem, file, frames, unix.PROT_READ|unix.PROT_WRITE)
		if err != nil {
			err = errors.Join(err, clearPlace(mem))
		}
		return mem, clearPlace, err
	})
}

// alloc has pages granted. mmap maps them and returns their memory with its opposite.
func (p *Pages) alloc(domid xen.Domid, n int, writable bool,
	mmap func(file int, frames []uint32) ([]byte, func([]byte) error, error),
) (*gntalloc.Pages, error) {
	fail := func(err error) (*gntalloc.Pages, error) {
		return nil, &gntalloc.Error{Op: "alloc", Domid: domid, Pages: n, Err: err}
	}
	l := p.link
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return fail(gntalloc.ErrClosed)
	}
	w := uint32(0)
	if writable {
		w = 1
	}
	if want := 64 + 8*n; len(l.buf) < want {
		l.buf = make([]byte, want)
	}
	l.msg = wire.AppendU32(l.msg[:0], uint32(wire.OpAlloc), uint32(domid), uint32(n), w)
	r, file, errno, err := l.callFile(l.msg)
	if file >= 0 {
		defer unix.Close(file)
	}
	switch {
	case err != nil:
		return fail(err)
	case errno != 0:
		return fail(errno)
	}
	index := r.U64()
	refs, frames := make([]xen.Gref, n), make([]uint32, n)
	for i := range refs {
		refs[i], frames[i] = xen.Gref(r.U32()), r.U32()
	}
	if r.Done() != nil || file < 0 {
		return fail(wire.ErrMessage)
	}
	mem, munmap, err := mmap(file, frames)
	if err != nil {
		_ = l.simple(deallocMsg(index, n))
		return fail(err)
	}
	l.users++
	return gntalloc.NewPages(mem, refs, func() error { return l.free(munmap(mem), index, n) }), nil
}

// free is like gntalloc.Pages.Free, after the memory was unmapped with err.
func (l *link) free(err error, index uint64, n int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e := l.simple(deallocMsg(index, n)); err == nil {
		err = e
	}
	if e := l.leave(); err == nil {
		err = e
	}
	if err != nil {
		return &gntalloc.Error{Op: "free", Pages: n, Err: err}
	}
	return nil
}

func deallocMsg(index uint64, n int) []byte {
	return wire.AppendU32(wire.AppendU64(wire.AppendU32(nil, uint32(wire.OpDealloc)), index), uint32(n))
}
