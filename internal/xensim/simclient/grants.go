// SPDX-License-Identifier: Apache-2.0

package simclient

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/xensim/wire"
	"github.com/netbackd/netbackd/pkg/gntdev"
)

// Grants does for the embedded Xen what [gntdev.Device] does for a real one.
// Its methods may be called from several goroutines at once, but one Grants
// makes one call at a time.
type Grants struct{ link *link }

// Grants opens the grant device.
func (c *Conn) Grants() (*Grants, error) {
	l, _, err := open(c.dir, c.domid, wire.KindGntdev)
	if err != nil {
		return nil, err
	}
	return &Grants{link: l}, nil
}

// Close closes the device. Pages that are still mapped stay so until their
// Unmap. Close may be called again, which does nothing.
func (g *Grants) Close() error { return g.link.close() }

// Copy is [gntdev.Device.Copy]. The simulation does the copying, with the
// rights of a hypervisor over all memory involved.
func (g *Grants) Copy(segs []gntdev.Segment) error {
	if len(segs) == 0 {
		return nil
	}
	if err := gntdev.Check(segs); err != nil {
		return err
	}
	l := g.link
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return &gntdev.Error{Op: "copy", Index: -1, Err: gntdev.ErrClosed}
	}
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

// copy is one OpCopy. The caller holds mu.
func (l *link) copy(segs []gntdev.Segment) error {
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

// Map is [gntdev.Device.Map].
func (g *Grants) Map(domid uint16, refs []gntdev.Ref, prot gntdev.Prot) (*gntdev.Mapping, error) {
	if len(refs) == 0 || len(refs) > wire.MaxRefs {
		return nil, &gntdev.Error{Op: "map", Index: -1, Domid: domid, Err: unix.EINVAL,
			Hint: fmt.Sprintf("%d refs: from 1 to %d can be mapped at once", len(refs), wire.MaxRefs)}
	}
	l := g.link
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, &gntdev.Error{Op: "map", Index: -1, Domid: domid, Err: gntdev.ErrClosed}
	}
	index, err := l.record(domid, refs)
	if err != nil {
		return nil, &gntdev.Error{Op: "map", Index: -1, Domid: domid, Err: err}
	}
	v, err := l.mmap(domid, index, refs, prot)
	if err != nil {
		_ = l.simple(l.unmapMsg(index, len(refs))) // the record cannot be used again
		return nil, err
	}
	l.users++
	return gntdev.NewMapping(v.mem, func() error { return l.unmap(v, index, len(refs)) }), nil
}

// view is memory of another domain, mapped.
type view struct {
	mem []byte
	vma uint64
}

// record has the references recorded. The caller holds mu.
func (l *link) record(domid uint16, refs []gntdev.Ref) (index uint64, err error) {
	l.msg = wire.AppendU32(l.msg[:0], uint32(wire.OpMap), uint32(domid))
	l.msg = wire.AppendU32(l.msg, refs...)
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

// mmap maps what was recorded. The caller holds mu.
func (l *link) mmap(domid uint16, index uint64, refs []gntdev.Ref, prot gntdev.Prot) (view, error) {
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
		_ = l.simple(wire.AppendU64(wire.AppendU32(nil, uint32(wire.OpMunmap)), v.vma))
		return fail(err)
	}
	return v, nil
}

// mapError says which reference is at fault, as gntdev.Device finds out by
// trying.
func mapError(domid uint16, refs []gntdev.Ref, errno unix.Errno, number int32, st gntdev.Status) error {
	e := &gntdev.Error{Op: "map", Index: -1, Domid: domid, Err: errno}
	if number >= 0 && int(number) < len(refs) {
		e.Index, e.Ref, e.Status = int(number), refs[number], st
	}
	return e
}

// unmap is a Mapping's Unmap.
func (l *link) unmap(v view, index uint64, count int) error {
	err := unmapPages(v.mem)
	l.mu.Lock()
	defer l.mu.Unlock()
	if e := l.simple(wire.AppendU64(wire.AppendU32(nil, uint32(wire.OpMunmap)), v.vma)); err == nil {
		err = e
	}
	if !l.closed { // else the record went with the file
		if e := l.simple(l.unmapMsg(index, count)); err == nil {
			err = e
		}
	}
	if e := l.leave(); err == nil {
		err = e
	}
	if err != nil {
		return &gntdev.Error{Op: "unmap", Index: -1, Err: err}
	}
	return nil
}

func (l *link) unmapMsg(index uint64, count int) []byte {
	return wire.AppendU32(wire.AppendU64(wire.AppendU32(nil, uint32(wire.OpUnmap)), index), uint32(count))
}

// simple makes a call whose reply is only an errno. The caller holds mu.
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
