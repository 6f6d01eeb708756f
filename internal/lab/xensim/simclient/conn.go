// SPDX-License-Identifier: Apache-2.0

package simclient

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/xensim/wire"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// Conn is the membership of this process in a domain.
type Conn struct {
	dir   string
	domid xen.Domid
	line  *os.File // a read returns only at the end of the domain
	done  chan struct{}
}

// Dial joins domain domid of the simulation that runs in dir. The domain must
// exist: 0 always does, others are made by [Control.CreateDomain].
func Dial(dir string, domid xen.Domid) (*Conn, error) {
	l, _, err := open(dir, domid, wire.KindDomain)
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(l.fd, true); err != nil {
		_ = l.close()
		return nil, err
	}
	c := &Conn{
		dir:   dir,
		domid: domid,
		line:  os.NewFile(uintptr(l.fd), wire.HypercallSocket),
		done:  make(chan struct{}),
	}
	go c.wait()
	return c, nil
}

// wait waits for the end of the domain.
func (c *Conn) wait() {
	var b [1]byte
	_, _ = c.line.Read(b[:]) // any result means the end
	close(c.done)
}

// Domid returns the domain this process belongs to.
func (c *Conn) Domid() xen.Domid { return c.domid }

// Done returns a channel that is closed when the domain was destroyed, the simulation has ended, or
// Close was called.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Close leaves the domain. Files opened through c stay open.
func (c *Conn) Close() error {
	err := c.line.Close()
	<-c.done
	return err
}

// Xenstore connects to xenstored: dom0 by its socket, other domains as by
// /dev/xen/xenbus. As there, requests of a domain that was not introduced wait
// until it is.
func (c *Conn) Xenstore(opts ...xenstore.Option) (*xenstore.Client, error) {
	var fd int
	var err error
	kind := xenstore.Socket
	if c.domid == 0 {
		fd, err = wire.Connect(c.dir, wire.XenstoreSocket, unix.SOCK_STREAM)
	} else {
		kind = xenstore.Xenbus
		fd, err = c.xenbus()
	}
	if err != nil {
		return nil, fmt.Errorf("embedded Xen: xenstore of domain %d: %w", c.domid, err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return xenstore.New(os.NewFile(uintptr(fd), "xenstore"), kind, opts...), nil
}

// xenbus opens a stream to xenstored by way of the domain.
func (c *Conn) xenbus() (int, error) {
	l, fd, err := open(c.dir, c.domid, wire.KindXenbus)
	if err != nil {
		return -1, err
	}
	_ = l.close() // the link only delivered the stream
	if fd < 0 {
		return -1, wire.ErrMessage
	}
	return fd, nil
}
