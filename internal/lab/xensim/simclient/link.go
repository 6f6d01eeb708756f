// SPDX-License-Identifier: Apache-2.0

package simclient

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/xensim/wire"
	"github.com/netbackd/netbackd/pkg/xen"
)

// ErrGone is returned by all calls once the domain was destroyed or the
// simulation has ended.
var ErrGone = errors.New("the embedded Xen is gone, or has destroyed this domain")

// link is a connection to the simulation: one open file, or one more thread
// that uses it.
type link struct {
	number uint32 // of the file, for join

	mu     sync.Mutex // one call at a time
	fd     int        // -1 once closed; guarded by mu
	users  int        // the open file, and each mapping of its memory; guarded by mu
	closed bool       // the file is closed, though memory may keep fd open; guarded by mu
	buf    []byte     // of the last reply; guarded by mu
	msg    []byte     // of the next call; guarded by mu
}

// open connects for the given kind of file. fd is the file that came with the answer, or
// -1.
func open(dir string, domid xen.Domid, kind wire.Kind) (l *link, fd int, err error) {
	return join(dir, domid, kind, 0)
}

// join is like open for one more thread of the file of that number.
func join(dir string, domid xen.Domid, kind wire.Kind, number uint32) (l *link, file int, err error) {
	fail := func(err error) (*link, int, error) {
		return nil, -1, fmt.Errorf("embedded Xen: open %v of domain %d: %w", kind, domid, err)
	}
	fd, err := wire.Connect(dir, wire.HypercallSocket, unix.SOCK_SEQPACKET)
	if err != nil {
		return fail(err)
	}
	if kind == wire.KindGntdev {
		allowReach(fd)
	}
	l = &link{fd: fd, users: 1, buf: make([]byte, 512)}
	r, file, errno, err := l.callFile(wire.AppendHello(nil, wire.Hello{Kind: kind, Domid: domid, Probe: probeAddr(), File: number}))
	if err == nil && errno != 0 {
		err = openError(errno, kind, string(r.Rest()))
	}
	if err != nil {
		_ = l.close()
		return fail(err)
	}
	l.number = r.U32()
	return l, file, nil
}

func openError(errno unix.Errno, kind wire.Kind, text string) error {
	switch {
	case errno == unix.ESRCH && kind != wire.KindGntdev:
		return fmt.Errorf("no such domain: %w", errno)
	case kind == wire.KindGntdev && (errno == unix.EPERM || errno == unix.ESRCH):
		return fmt.Errorf("the simulation may not read this process's memory (%w): "+
			"run both as one user, in one pid namespace, and this process without extra privileges", errno)
	case errno == unix.EPROTO:
		return fmt.Errorf("%s: %w", text, errno)
	}
	return errno
}

// allowReach lets the simulation read and write this process's memory where the Yama
// security module forbids it (ptrace_scope 1). Elsewhere it has no effect.
func allowReach(fd int) {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err == nil {
		_ = unix.Prctl(unix.PR_SET_PTRACER, uintptr(cred.Pid), 0, 0, 0)
	}
}

// call makes a call and returns a reader of the reply behind the errno. The reader is valid
// until the next call. The caller holds mu, unless no other goroutine has the link.
func (l *link) call(msg []byte) (*wire.Reader, unix.Errno, error) {
	if err := l.send(msg); err != nil {
		return nil, 0, err
	}
	n, err := wire.Receive(l.fd, l.buf)
	if err != nil {
		return nil, 0, gone(err)
	}
	r := wire.NewReader(l.buf[:n])
	return r, unix.Errno(r.U32()), nil
}

// callFile is like call for a reply that may bring a file, else -1.
func (l *link) callFile(msg []byte) (*wire.Reader, int, unix.Errno, error) {
	if err := l.send(msg); err != nil {
		return nil, -1, 0, err
	}
	n, file, err := wire.ReceiveFile(l.fd, l.buf)
	if err != nil {
		return nil, -1, 0, gone(err)
	}
	r := wire.NewReader(l.buf[:n])
	return r, file, unix.Errno(r.U32()), nil
}

// send makes a call without waiting for a reply. The caller holds mu, unless no other
// goroutine has the link.
func (l *link) send(msg []byte) error {
	if l.fd < 0 {
		return os.ErrClosed
	}
	return gone(wire.Send(l.fd, msg))
}

func gone(err error) error {
	if err == io.EOF {
		return ErrGone
	}
	return err
}

// close ends the use of the file. As with a device node, the file lives on
// while memory of it is mapped.
func (l *link) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	l.closed = true
	return l.leave()
}

// leave removes one user. The caller holds mu.
func (l *link) leave() error {
	if l.users--; l.users > 0 || l.fd < 0 {
		return nil
	}
	fd := l.fd
	l.fd = -1
	// Like close(2) of a device node this returns after everything is released: it
	// waits until the simulation closes its end.
	if unix.Shutdown(fd, unix.SHUT_WR) == nil {
		for err := error(nil); err == nil; {
			_, err = wire.Receive(fd, l.buf)
		}
	}
	return unix.Close(fd)
}
