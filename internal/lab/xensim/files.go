// SPDX-License-Identifier: Apache-2.0

package xensim

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/xensim/dev"
	"github.com/netbackd/netbackd/internal/lab/xensim/hyp"
	"github.com/netbackd/netbackd/internal/lab/xensim/wire"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/xen"
)

// This file decodes the calls on the domains' files.

var (
	_ file = (*domainFile)(nil)
	_ file = (*gntdevFile)(nil)
	_ file = (*evtchnFile)(nil)
	_ file = (*gntallocFile)(nil)
	_ file = noFile{}
)

// domainFile is a domain itself.
type domainFile struct{ dom *hyp.Domain }

func (f *domainFile) call(op wire.Op, r *wire.Reader, reply []byte) ([]byte, int, unix.Errno) {
	switch op {
	case wire.OpMemory:
		if r.Done() != nil {
			return reply, -1, unix.EINVAL
		}
		table, end := f.dom.Frames()
		rw, _ := f.dom.Files()
		return wire.AppendU32(reply, uint32(end-table), uint32(table)), rw, 0
	case wire.OpSetupTable:
		frames := r.U32()
		if r.Done() != nil {
			return reply, -1, unix.EINVAL
		}
		now, errno := f.dom.SetupTable(int(frames))
		return wire.AppendU32(reply, uint32(now)), -1, errno
	}
	return reply, -1, unix.ENOTTY
}

func (f *domainFile) maxRequest() int { return 8 }

func (f *domainFile) close() {}

// gntdevFile is a thread that uses an open /dev/xen/gntdev.
type gntdevFile struct {
	s      *server
	shared *sharedFile
	dev    *dev.Gntdev
	copier *dev.Copier
	status []gntdev.Status // of the last copy
}

// sharedFile is an open file that several connections use.
type sharedFile struct {
	number  uint32
	process dev.Process
	dom     *hyp.Domain
	dev     *dev.Gntdev
	users   int // guarded by server.mu
}

// openGntdev opens the device, or joins a file of the same process.
func (s *server) openGntdev(number uint32, dom *hyp.Domain, p dev.Process) (*gntdevFile, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.files[number]
	if number == 0 {
		s.lastFile++
		f = &sharedFile{number: s.lastFile, process: p, dom: dom, dev: dev.OpenGntdev(s.hv, dom, p)}
		s.files[f.number] = f
	} else if f == nil || f.process != p || f.dom != dom {
		return nil, unix.EBADF
	}
	f.users++
	return &gntdevFile{s: s, shared: f, dev: f.dev, copier: f.dev.NewCopier()}, nil
}

// leave ends one connection's use of f.
func (s *server) leave(f *sharedFile) {
	s.mu.Lock()
	f.users--
	last := f.users == 0
	if last {
		delete(s.files, f.number)
	}
	s.mu.Unlock()
	if last {
		f.dev.Close()
	}
}

func (f *gntdevFile) call(op wire.Op, r *wire.Reader, reply []byte) ([]byte, int, unix.Errno) {
	switch op {
	case wire.OpCopy:
		return f.copy(r, reply)
	case wire.OpMap:
		domid := r.U32()
		refs := make([]xen.Gref, r.Left()/4)
		for i := range refs {
			refs[i] = xen.Gref(r.U32())
		}
		if r.Done() != nil || domid > 0xffff {
			return reply, -1, unix.EINVAL
		}
		index, errno := f.dev.Map(xen.Domid(domid), refs)
		return wire.AppendU64(reply, index), -1, errno
	case wire.OpMmap:
		index, count, writable := r.U64(), r.U32(), r.U32()
		if r.Done() != nil {
			return reply, -1, unix.EINVAL
		}
		view, bad, errno := f.dev.Mmap(index, int(count), writable != 0)
		if errno != 0 {
			return wire.AppendU32(reply, uint32(bad.Number), uint32(bad.Status)), -1, errno
		}
		reply = wire.AppendU64(reply, view.VMA)
		return wire.AppendU32(reply, view.Frames...), view.File, 0
	case wire.OpMunmap:
		vma := r.U64()
		if r.Done() != nil {
			return reply, -1, unix.EINVAL
		}
		return reply, -1, f.dev.Munmap(vma)
	case wire.OpAdopt:
		pid, addr, word := r.U32(), r.U64(), r.U32()
		if r.Done() != nil || pid == 0 || pid > 1<<22 {
			return reply, -1, unix.EINVAL
		}
		errno := f.adopt(dev.Process(pid), addr, word)
		return wire.AppendU32(reply, f.shared.number), -1, errno
	case wire.OpJoin:
		if r.Done() != nil {
			return reply, -1, unix.EINVAL
		}
		fd, err := f.s.joined(f.shared)
		if err != nil {
			var errno unix.Errno
			errors.As(err, &errno)
			return reply, -1, max(errno, 1)
		}
		return reply, fd, 0
	case wire.OpUnmap:
		index, count := r.U64(), r.U32()
		if r.Done() != nil {
			return reply, -1, unix.EINVAL
		}
		return reply, -1, f.dev.Unmap(index, int(count))
	}
	return reply, -1, unix.ENOTTY
}

// adopt makes p the process that has the file open, as on Linux, where a file that another
// process has opened maps into the memory of its user. p proves that it is the caller by a
// word that it has put into its memory. The file was not used before.
func (f *gntdevFile) adopt(p dev.Process, addr uint64, word uint32) unix.Errno {
	if got, err := p.Probe(addr); err != nil || got != word {
		return unix.EFAULT
	}
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	if f.shared.users != 1 || !f.dev.Unused() {
		return unix.EBUSY
	}
	f.shared.process, f.shared.dev = p, dev.OpenGntdev(f.s.hv, f.shared.dom, p)
	f.dev, f.copier = f.shared.dev, f.shared.dev.NewCopier()
	return 0
}

// joined makes one more connection for an open file, and returns the client's end.
func (s *server) joined(shared *sharedFile) (int, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	c := &conn{s: s, fd: pair[0], stop: make(chan struct{}), done: make(chan struct{}), dom: shared.dom}
	if !s.add(c) {
		_, _ = unix.Close(pair[0]), unix.Close(pair[1])
		return -1, unix.ESRCH
	}
	if !shared.dom.Hold() {
		s.remove(c)
		_ = unix.Close(pair[1])
		return -1, unix.ESRCH
	}
	s.mu.Lock()
	shared.users++
	c.file = &gntdevFile{s: s, shared: shared, dev: shared.dev, copier: shared.dev.NewCopier()}
	s.mu.Unlock()
	go func() {
		defer s.remove(c)
		defer c.release()
		c.calls()
	}()
	return pair[1], nil
}

func (f *gntdevFile) copy(r *wire.Reader, reply []byte) ([]byte, int, unix.Errno) {
	count := r.U32()
	segs := r.Rest()
	if r.Done() != nil || count > wire.MaxSegments || uint64(len(segs)) != uint64(count)*dev.SegmentSize {
		return reply, -1, unix.EINVAL
	}
	if cap(f.status) < int(count) {
		f.status = make([]gntdev.Status, count)
	}
	f.status = f.status[:count]
	errno := f.copier.Copy(segs, f.status)
	if errno != 0 {
		return reply, -1, errno
	}
	for _, st := range f.status {
		reply = append(reply, byte(st), byte(uint16(st)>>8))
	}
	return reply, -1, 0
}

func (f *gntdevFile) maxRequest() int { return wire.MaxMessage }

func (f *gntdevFile) close() { f.s.leave(f.shared) }

// evtchnFile is an open /dev/xen/evtchn.
type evtchnFile struct{ dev *dev.Evtchn }

func (f *evtchnFile) call(op wire.Op, r *wire.Reader, reply []byte) ([]byte, int, unix.Errno) {
	switch op {
	case wire.OpNotify:
		return reply, -1, f.dev.Notify(r.U32())
	case wire.OpUnmask:
		for r.Left() > 0 {
			f.dev.Unmask(r.U32())
		}
		return reply, -1, 0
	case wire.OpReset:
		f.dev.Reset()
		return reply, -1, 0
	case wire.OpBindInterdomain:
		domid, remote := r.U32(), r.U32()
		if r.Done() != nil || domid > 0xffff {
			return reply, -1, unix.EINVAL
		}
		port, errno := f.dev.BindInterdomain(xen.Domid(domid), remote)
		return wire.AppendU32(reply, port), -1, errno
	}
	arg := r.U32()
	if r.Done() != nil {
		return reply, -1, unix.EINVAL
	}
	switch op {
	case wire.OpBindUnbound:
		if arg > 0xffff {
			return reply, -1, unix.EINVAL
		}
		port, errno := f.dev.BindUnbound(xen.Domid(arg))
		return wire.AppendU32(reply, port), -1, errno
	case wire.OpUnbind:
		return reply, -1, f.dev.Unbind(arg)
	case wire.OpRestrict:
		if arg > 0xffff {
			return reply, -1, unix.EINVAL
		}
		return reply, -1, f.dev.Restrict(xen.Domid(arg))
	}
	return reply, -1, unix.ENOTTY
}

func (f *evtchnFile) maxRequest() int { return 4 + 4*wire.MaxUnmask }

func (f *evtchnFile) close() { f.dev.Close() }

// gntallocFile is an open /dev/xen/gntalloc.
type gntallocFile struct {
	dev    *dev.Gntalloc
	memory int // the domain's
}

func (f *gntallocFile) call(op wire.Op, r *wire.Reader, reply []byte) ([]byte, int, unix.Errno) {
	switch op {
	case wire.OpAlloc:
		domid, count, writable := r.U32(), r.U32(), r.U32()
		if r.Done() != nil || domid > 0xffff || count > wire.MaxRefs {
			return reply, -1, unix.EINVAL
		}
		a, errno := f.dev.Alloc(xen.Domid(domid), int(count), writable != 0)
		if errno != 0 {
			return reply, -1, errno
		}
		reply = wire.AppendU64(reply, a.Index)
		for i := range a.Refs {
			reply = wire.AppendU32(reply, uint32(a.Refs[i]), a.Frames[i])
		}
		return reply, f.memory, 0
	case wire.OpDealloc:
		index, count := r.U64(), r.U32()
		if r.Done() != nil {
			return reply, -1, unix.EINVAL
		}
		return reply, -1, f.dev.Dealloc(index, int(count))
	}
	return reply, -1, unix.ENOTTY
}

func (f *gntallocFile) maxRequest() int { return 16 }

func (f *gntallocFile) close() { f.dev.Close() }

// noFile is a connection that only receives a file.
type noFile struct{}

func (noFile) call(_ wire.Op, _ *wire.Reader, reply []byte) ([]byte, int, unix.Errno) {
	return reply, -1, unix.ENOTTY
}

func (noFile) maxRequest() int { return 4 }

func (noFile) close() {}
