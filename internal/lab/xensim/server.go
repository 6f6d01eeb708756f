// SPDX-License-Identifier: Apache-2.0

package xensim

import (
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/xensim/dev"
	"github.com/netbackd/netbackd/internal/lab/xensim/hyp"
	"github.com/netbackd/netbackd/internal/lab/xensim/store"
	"github.com/netbackd/netbackd/internal/lab/xensim/wire"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// server is the set of connections and of the domains' kernels.
type server struct {
	hv *hyp.Hypervisor
	xs *store.Server
	wg sync.WaitGroup // connections, xenbus ones included

	mu       sync.Mutex
	closed   bool                      // guarded by mu
	conns    map[*conn]bool            // guarded by mu
	kernels  map[xen.Domid]*dev.Kernel // guarded by mu
	files    map[uint32]*sharedFile    // by number; guarded by mu
	lastFile uint32                    // guarded by mu
}

func newServer(hv *hyp.Hypervisor, xs *store.Server) *server {
	s := &server{hv: hv, xs: xs, conns: map[*conn]bool{}, kernels: map[xen.Domid]*dev.Kernel{}, files: map[uint32]*sharedFile{}}
	s.kernels[0] = dev.Boot(hv.Domain(0, 0))
	return s
}

// acceptPause is the pause after an accept that failed for too many open files.
const acceptPause = 10 * time.Millisecond

// accept serves connections until the listener is shut down.
func (s *server) accept(listener int) error {
	for {
		fd, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
		switch err {
		case nil:
		case unix.EINTR, unix.ECONNABORTED:
			continue
		case unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.ENOBUFS:
			// The next one waits in the queue until there is room for it.
			s.hv.Sleep(acceptPause)
			continue
		case unix.EINVAL: // shut down
			return nil
		default:
			return err
		}
		c := &conn{s: s, fd: fd, stop: make(chan struct{}), done: make(chan struct{})}
		if !s.add(c) {
			_ = unix.Close(fd)
			continue
		}
		go c.serve()
	}
}

func (s *server) add(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.conns[c] = true
	s.wg.Add(1)
	return true
}

// remove forgets a connection before it closes it, so that cut cannot shut down another
// file with the same descriptor.
func (s *server) remove(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	if c.polled != nil {
		_ = c.polled.Close()
	} else {
		_ = unix.Close(c.fd)
	}
	close(c.done)
	s.wg.Done()
}

// close ends all connections and accepts no more.
func (s *server) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for c := range s.conns {
		c.cut()
	}
}

func (s *server) wait() { s.wg.Wait() }

// cutOff ends the connections of a domain and waits until everything that they held is
// released.
func (s *server) cutOff(domid xen.Domid) {
	s.mu.Lock()
	var cut []*conn
	for c := range s.conns {
		if c.dom != nil && c.dom.ID() == domid {
			c.cut()
			cut = append(cut, c)
		}
	}
	s.mu.Unlock()
	for _, c := range cut {
		<-c.done
	}
}

// overflow makes the event queues of all of a domain's files overflow.
func (s *server) overflow(domid xen.Domid) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		if e, ok := c.file.(*evtchnFile); ok && c.dom.ID() == domid {
			e.dev.Overflow()
		}
	}
}

// create makes a domain, with its kernel.
func (s *server) create(cfg wire.DomainConfig) (*hyp.Domain, error) {
	d, err := s.hv.Create(cfg)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.kernels[d.ID()] = dev.Boot(d)
	s.mu.Unlock()
	s.xs.DomainCreated(d.ID())
	return d, nil
}

// destroy ends a domain: it closes its ports, ends its connections, releases what it held
// of other domains, and notifies xenstored.
func (s *server) destroy(domid xen.Domid) unix.Errno {
	if domid == 0 {
		return unix.EPERM
	}
	d := s.hv.Domain(domid, 0)
	if d == nil {
		return unix.ESRCH
	}
	if !d.Kill() {
		return 0 // a zombie already
	}
	s.cutOff(domid)
	s.mu.Lock()
	delete(s.kernels, domid)
	s.mu.Unlock()
	s.xs.DomainDied(domid)
	return 0
}

// conn is one connection: one open file.
type conn struct {
	s    *server
	fd   int
	stop chan struct{} // closed by cut
	once sync.Once
	done chan struct{} // closed when everything is released

	dom  *hyp.Domain // set by open, under s.mu
	file file        // set by open, under s.mu

	polled *os.File // owns fd if the connection waits in Go's poller
	raw    syscall.RawConn
}

// poll makes the connection wait in Go's poller, which takes no thread. Other connections
// wait in a plain read(2): their calls take half as long, since fewer threads are woken.
func (c *conn) poll() error {
	if err := unix.SetNonblock(c.fd, true); err != nil {
		return err
	}
	f := os.NewFile(uintptr(c.fd), wire.HypercallSocket)
	raw, err := f.SyscallConn()
	c.polled, c.raw = f, raw
	return err
}

// receive waits for the next call.
func (c *conn) receive(buf []byte) (n int, err error) {
	if c.raw == nil {
		return wire.Receive(c.fd, buf)
	}
	perr := c.raw.Read(func(fd uintptr) bool {
		n, err = wire.Receive(int(fd), buf)
		return err != unix.EAGAIN
	})
	if perr != nil {
		return 0, perr
	}
	return n, err
}

// file is an open file of some kind.
type file interface {
	// call carries out one call, appends what follows the errno in the reply,
	// and may return a file to attach, -1 for none. errno is 0 or the reason
	// of the failure.
	call(op wire.Op, r *wire.Reader, reply []byte) (_ []byte, attach int, errno unix.Errno)
	// maxRequest is the length of the longest call in bytes.
	maxRequest() int
	// close releases everything.
	close()
}

// cut makes the connection end. It may be called again. The caller holds s.mu.
func (c *conn) cut() {
	c.once.Do(func() {
		close(c.stop)
		_ = unix.Shutdown(c.fd, unix.SHUT_RDWR)
	})
}

func (c *conn) serve() {
	defer c.s.remove(c)
	buf := make([]byte, wire.HelloSize)
	n, err := wire.Receive(c.fd, buf)
	if err != nil {
		return
	}
	attach, err := c.open(buf[:n])
	if err != nil {
		var errno unix.Errno
		if !errors.As(err, &errno) || errno == 0 {
			errno = unix.EPROTO
		}
		_ = wire.Send(c.fd, append(wire.AppendErrno(nil, errno), err.Error()...))
		return
	}
	defer c.release()
	if attach.send(c.fd) != nil {
		return
	}
	c.calls()
}

// calls carries out the calls on an open file until the connection ends, or is broken.
func (c *conn) calls() {
	buf := make([]byte, c.file.maxRequest())
	reply := make([]byte, 0, 256)
	switch c.file.(type) {
	case *gntdevFile, *evtchnFile:
	default:
		if c.poll() != nil {
			return
		}
	}
	for {
		n, err := c.receive(buf)
		if err != nil {
			return
		}
		r := wire.NewReader(buf[:n])
		op := wire.Op(r.U32())
		if _, ok := c.file.(*domainFile); !ok && !c.dom.WaitRunning(c.stop) {
			return
		}
		var fd int
		var errno unix.Errno
		reply = wire.AppendErrno(reply[:0], 0)
		reply, fd, errno = c.file.call(op, r, reply)
		if op.OneWay() {
			continue
		}
		copy(reply, wire.AppendErrno(nil, errno))
		if fd >= 0 {
			err = wire.Send(c.fd, reply, fd)
			if op == wire.OpJoin {
				_ = unix.Close(fd) // the other files belong to the domain
			}
		} else {
			err = wire.Send(c.fd, reply)
		}
		if err != nil {
			return
		}
	}
}

// attachment holds the files that go with the reply to a Hello.
type attachment struct {
	fd     int    // -1 for none
	ours   bool   // fd was opened only for this reply
	number uint32 // of the file, if it can be joined
}

func (a attachment) send(fd int) error {
	msg := wire.AppendU32(wire.AppendErrno(nil, 0), a.number)
	if a.fd < 0 {
		return wire.Send(fd, msg)
	}
	err := wire.Send(fd, msg, a.fd)
	if a.ours {
		_ = unix.Close(a.fd)
	}
	return err
}

// open returns the first call.
func (c *conn) open(msg []byte) (attachment, error) {
	none := attachment{fd: -1}
	hello, err := wire.ParseHello(msg)
	if err != nil {
		return none, err
	}
	d := c.s.hv.Domain(hello.Domid, hello.Domid)
	if d == nil {
		return none, unix.ESRCH
	}
	// From here on the end of the domain ends the connection. Before Hold the
	// domain may end unnoticed, but then Hold fails.
	c.s.mu.Lock()
	c.dom = d
	kernel := c.s.kernels[d.ID()]
	c.s.mu.Unlock()
	if !d.Hold() {
		return none, unix.ESRCH
	}
	f, attach, err := c.openFile(hello, kernel)
	if err != nil {
		d.Unhold()
		return none, err
	}
	c.s.mu.Lock()
	c.file = f
	c.s.mu.Unlock()
	return attach, nil
}

func (c *conn) openFile(hello wire.Hello, kernel *dev.Kernel) (file, attachment, error) {
	none := attachment{fd: -1}
	if kernel == nil {
		return nil, none, unix.ESRCH
	}
	if hello.File != 0 && hello.Kind != wire.KindGntdev {
		return nil, none, unix.EBADF
	}
	switch hello.Kind {
	case wire.KindDomain:
		return &domainFile{dom: c.dom}, none, nil
	case wire.KindGntdev:
		p, err := c.process(hello.Probe)
		if err != nil {
			return nil, none, err
		}
		f, err := c.s.openGntdev(hello.File, c.dom, p)
		if err != nil {
			return nil, none, err
		}
		return f, attachment{fd: -1, number: f.shared.number}, nil
	case wire.KindEvtchn:
		e, err := dev.OpenEvtchn(c.s.hv, c.dom)
		if err != nil {
			return nil, none, err
		}
		return &evtchnFile{dev: e}, attachment{fd: e.Pipe()}, nil
	case wire.KindGntalloc:
		rw, _ := c.dom.Files()
		return &gntallocFile{dev: kernel.OpenGntalloc(), memory: rw}, none, nil
	case wire.KindXenbus:
		fd, err := c.s.openXenbus(c.dom.ID())
		return noFile{}, attachment{fd: fd, ours: true}, err
	case wire.KindControl:
		if c.dom.ID() != 0 {
			return nil, none, unix.EPERM
		}
		return &controlFile{s: c.s}, none, nil
	}
	return nil, none, unix.ENXIO
}

// process returns the process at the other end. It fails if the process's memory cannot
// be read.
func (c *conn) process(probe uint64) (dev.Process, error) {
	cred, err := unix.GetsockoptUcred(c.fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return 0, err
	}
	p := dev.Process(cred.Pid)
	if got, err := p.Probe(probe); err != nil {
		return 0, err
	} else if got != wire.Probed {
		return 0, unix.EFAULT
	}
	return p, nil
}

// openXenbus connects a domain to the store.
func (s *server) openXenbus(domid xen.Domid) (int, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	f := os.NewFile(uintptr(pair[0]), "xenbus")
	conn, err := net.FileConn(f)
	_ = f.Close() // FileConn has a descriptor of its own
	if err != nil {
		_ = unix.Close(pair[1])
		return -1, err
	}
	s.wg.Add(1) // by a connection that is still in the group
	go func() {
		defer s.wg.Done()
		_ = s.xs.ServeConn(conn, domid, xenstore.Xenbus) // the client sees the end
	}()
	return pair[1], nil
}

// release releases everything that the connection holds.
func (c *conn) release() {
	c.file.close()
	c.dom.Unhold()
}
