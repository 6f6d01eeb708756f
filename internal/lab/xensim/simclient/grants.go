// SPDX-License-Identifier: Apache-2.0

package simclient

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/xensim/wire"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/xen"
)

// Grants is [gntdev.Device] for the embedded Xen. Its methods may be called from several
// goroutines at once. As with system calls, none waits for another: each call has a link
// of its own, which has a thread in the simulation.
type Grants struct {
	dir    string
	domid  xen.Domid
	number uint32 // of the file all links use
	door   *link  // of an adopted file: brings further links, and makes no other call; guarded by mu

	mu     sync.Mutex
	idle   []*link // guarded by mu
	mapped int     // present mappings; guarded by mu
	closed bool    // guarded by mu
}

// Grants opens the grant device.
func (c *Conn) Grants() (*Grants, error) {
	l, _, err := open(c.dir, c.domid, wire.KindGntdev)
	if err != nil {
		return nil, err
	}
	return &Grants{dir: c.dir, domid: c.domid, number: l.number, idle: []*link{l}}, nil
}

// Close closes the device. Mapped pages stay mapped until their Unmap. Close may be called
// again, which has no effect.
func (g *Grants) Close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	return g.trim()
}

// trim closes the idle links once the device is closed: all, or all but one
// while pages are mapped. The caller holds mu.
func (g *Grants) trim() error {
	var errs []error
	if g.closed && g.mapped == 0 && g.door != nil {
		errs = append(errs, g.door.close())
		g.door = nil
	}
	for g.closed && (g.mapped == 0 && len(g.idle) > 0 || len(g.idle) > 1) {
		last := len(g.idle) - 1
		errs = append(errs, g.idle[last].close())
		g.idle = g.idle[:last]
	}
	return errors.Join(errs...)
}

// take returns a link for one call. With evenClosed a closed device has one as well, for
// the unmapping of its pages.
func (g *Grants) take(evenClosed bool) (*link, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed && !evenClosed {
		return nil, os.ErrClosed
	}
	if last := len(g.idle) - 1; last >= 0 {
		l := g.idle[last]
		g.idle = g.idle[:last]
		return l, nil
	}
	// Under mu, since the file must not close in the meantime.
	if g.door != nil {
		return g.enter()
	}
	l, _, err := join(g.dir, g.domid, wire.KindGntdev, g.number)
	return l, err
}

// put returns a link to the pool, and adds mapped to the number of mappings.
func (g *Grants) put(l *link, mapped int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.idle = append(g.idle, l)
	g.mapped += mapped
	_ = g.trim() // a close of a socket
}

// Copy implements [gntdev.Device.Copy]. The simulation does the copying, with the
// rights of a hypervisor over all memory involved.
func (g *Grants) Copy(segs []gntdev.Segment) error {
	if len(segs) == 0 {
		return nil
	}
	if err := gntdev.Check(segs); err != nil {
		return err
	}
	l, err := g.take(false)
	if err != nil {
		return &gntdev.Error{Op: "copy", Index: -1, Err: err}
	}
	defer g.put(l, 0)
	for rest := segs; len(rest) > 0; {
		n := min(len(rest), wire.MaxSegments)
		if err := l.copy(rest[:n]); err != nil {
			for i := range segs {
				segs[i].SetStatus(gntdev.StatusGeneralError)
			}
			return &gntdev.Error{Op: "copy", Index: -1, Err: err}
		}
		rest = rest[n:]
	}
	return nil
}

// copy returns one OpCopy.
func (l *link) copy(segs []gntdev.Segment) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.msg = wire.AppendU32(l.msg[:0], uint32(wire.OpCopy), uint32(len(segs)))
	l.msg = append(l.msg, segmentBytes(segs)...)
	if want := 4 + 2*len(segs); len(l.buf) < want {
		l.buf = make([]byte, want)
	}
	if err := l.send(l.msg); err != nil {
		return err
	}
	n, err := wire.Receive(l.fd, l.buf)
	if err != nil {
		return gone(err)
	}
	errno, status, ok := wire.ParseCopyReply(l.buf[:n], len(segs))
	if !ok {
		return wire.ErrMessage
	}
	if errno != 0 {
		return errno
	}
	for i := range segs {
		segs[i].SetStatus(gntdev.Status(status[2*i]) | gntdev.Status(status[2*i+1])<<8)
	}
	return nil
}

// Map implements [gntdev.Device.Map].
func (g *Grants) Map(domid xen.Domid, refs []xen.Gref, prot gntdev.Prot) (*gntdev.Mapping, error) {
	if len(refs) == 0 || len(refs) > wire.MaxRefs {
		return nil, &gntdev.Error{Op: "map", Index: -1, Domid: domid, Err: unix.EINVAL,
			Hint: fmt.Sprintf("%d refs: from 1 to %d can be mapped at once", len(refs), wire.MaxRefs)}
	}
	l, err := g.take(false)
	if err != nil {
		return nil, &gntdev.Error{Op: "map", Index: -1, Domid: domid, Err: err}
	}
	v, err := l.mapRefs(domid, refs, prot)
	if err != nil {
		if prot == gntdev.ReadWrite {
			l.explain(domid, err)
		}
		g.put(l, 0)
		return nil, err
	}
	g.put(l, 1)
	return gntdev.NewMapping(v.mem, func() error { return g.unmap(v) }), nil
}

// explain tests, as gntdev.Device does, whether the only fault is that a page was granted
// for reading only. Xen does not report this.
func (l *link) explain(domid xen.Domid, err error) {
	var e *gntdev.Error
	if !errors.As(err, &e) || e.Status != gntdev.StatusGeneralError {
		return
	}
	v, err := l.mapRefs(domid, []xen.Gref{e.Ref}, gntdev.ReadOnly)
	if err != nil {
		return
	}
	_ = errors.Join(unmapPages(v.mem), l.unmap(v)) // there is a better error to report
	e.Status = gntdev.StatusPermissionDenied
	e.Hint = "the guest granted this page read-only"
}

// mapRefs has references recorded and maps them.
func (l *link) mapRefs(domid xen.Domid, refs []xen.Gref, prot gntdev.Prot) (view, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	index, err := l.record(domid, refs)
	if err != nil {
		return view{}, &gntdev.Error{Op: "map", Index: -1, Domid: domid, Err: err}
	}
	v, err := l.mmap(domid, index, refs, prot)
	if err != nil {
		_ = l.forget(index, len(refs)) // the record cannot be used again
		return view{}, err
	}
	v.index, v.count = index, len(refs)
	return v, nil
}

// view is memory of another domain, mapped.
type view struct {
	mem   []byte
	vma   uint64
	index uint64 // of the record
	count int    // of pages
}

// record has the references recorded. The caller holds mu.
func (l *link) record(domid xen.Domid, refs []xen.Gref) (index uint64, err error) {
	l.msg = wire.AppendU32(l.msg[:0], uint32(wire.OpMap), uint32(domid))
	for _, ref := range refs {
		l.msg = wire.AppendU32(l.msg, uint32(ref))
	}
	r, errno, err := l.call(l.msg)
	if err != nil {
		return 0, err
	}
	if errno != 0 {
		return 0, errno
	}
	index = r.U64()
	return index, r.Done()
}

// mmap maps the recorded references. The caller holds mu.
func (l *link) mmap(domid xen.Domid, index uint64, refs []xen.Gref, prot gntdev.Prot) (view, error) {
	fail := func(err error) (view, error) {
		return view{}, &gntdev.Error{Op: "map", Index: -1, Domid: domid, Err: err}
	}
	writable, p := uint32(0), unix.PROT_READ
	if prot == gntdev.ReadWrite {
		writable, p = 1, p|unix.PROT_WRITE
	}
	if want := 64 + 4*len(refs); len(l.buf) < want {
		l.buf = make([]byte, want)
	}
	l.msg = wire.AppendU32(wire.AppendU64(wire.AppendU32(l.msg[:0], uint32(wire.OpMmap)), index), uint32(len(refs)), writable)
	r, file, errno, err := l.callFile(l.msg)
	if err != nil {
		return fail(err)
	}
	if file >= 0 {
		defer unix.Close(file)
	}
	if errno != 0 {
		return view{}, mapError(domid, refs, errno, int32(r.U32()), gntdev.Status(int32(r.U32())))
	}
	v := view{vma: r.U64()}
	pages := make([]uint32, len(refs))
	for i := range pages {
		pages[i] = r.U32()
	}
	if r.Done() != nil || file < 0 {
		return fail(wire.ErrMessage)
	}
	if v.mem, err = mapPages(file, pages, p); err != nil {
		_ = l.munmap(v.vma)
		return fail(err)
	}
	return v, nil
}

// mapError names the faulty reference, which gntdev.Device finds by trying.
func mapError(domid xen.Domid, refs []xen.Gref, errno unix.Errno, number int32, st gntdev.Status) error {
	e := &gntdev.Error{Op: "map", Index: -1, Domid: domid, Err: errno}
	if number >= 0 && int(number) < len(refs) {
		e.Index, e.Ref, e.Status = int(number), refs[number], st
	}
	return e
}

// unmap returns a Mapping's Unmap.
func (g *Grants) unmap(v view) error {
	err := unmapPages(v.mem)
	l, lerr := g.take(true)
	if lerr == nil {
		lerr = l.unmap(v)
		g.put(l, -1)
	}
	if err = errors.Join(err, lerr); err != nil {
		return &gntdev.Error{Op: "unmap", Index: -1, Err: err}
	}
	return nil
}

func (l *link) unmap(v view) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return errors.Join(l.munmap(v.vma), l.forget(v.index, v.count))
}

// munmap tells the simulation that a view is not mapped any more. The caller holds mu.
func (l *link) munmap(vma uint64) error {
	return l.simple(wire.AppendU64(wire.AppendU32(nil, uint32(wire.OpMunmap)), vma))
}

// forget has a record forgotten. The caller holds mu.
func (l *link) forget(index uint64, count int) error {
	return l.simple(wire.AppendU32(wire.AppendU64(wire.AppendU32(nil, uint32(wire.OpUnmap)), index), uint32(count)))
}

// simple makes a call that is answered with an errno only. The caller holds mu.
func (l *link) simple(msg []byte) error {
	if l.fd < 0 {
		return os.ErrClosed
	}
	r, errno, err := l.call(msg)
	if err != nil {
		return err
	}
	if errno != 0 {
		return errno
	}
	return r.Done()
}
