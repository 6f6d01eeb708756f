// SPDX-License-Identifier: Apache-2.0

package simclient

import (
	"fmt"
	"math/rand/v2"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/xensim/wire"
)

// The functions of this file hand open files to another process, which must not connect to
// the simulation itself. On Xen a program sends the descriptors of device nodes for that.

// HandOver returns the descriptor of the grant device, which was not used yet, for
// [AdoptGrants] in another process. The descriptor is the caller's; g cannot be used any more.
func (g *Grants) HandOver() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	fd := g.idle[0].fd
	g.idle, g.closed = nil, true
	return fd
}

// proving guards proof.
var proving sync.Mutex

// AdoptGrants makes a grant device of a descriptor of [Grants.HandOver]. Pages are mapped into
// this process from now on. The descriptor belongs to the device.
func AdoptGrants(fd int) (*Grants, error) {
	door := &link{fd: fd, users: 1, buf: make([]byte, 512)}
	fail := func(err error) (*Grants, error) {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("embedded Xen: adopt a grant device: %w", err)
	}
	allowReach(fd)
	proving.Lock()
	defer proving.Unlock()
	proof = rand.Uint32()
	msg := wire.AppendU32(nil, uint32(wire.OpAdopt), uint32(os.Getpid()))
	r, errno, err := door.call(wire.AppendU32(wire.AppendU64(msg, proofAddr()), proof))
	switch {
	case err != nil:
		return fail(err)
	case errno != 0:
		return fail(errno)
	}
	g := &Grants{door: door, number: r.U32()}
	if err := r.Done(); err != nil {
		return fail(err)
	}
	return g, nil
}

// enter returns one more link for an adopted device. The caller holds mu.
func (g *Grants) enter() (*link, error) {
	r, fd, errno, err := g.door.callFile(wire.AppendU32(nil, uint32(wire.OpJoin)))
	switch {
	case err != nil:
		return nil, err
	case errno != 0:
		return nil, errno
	case r.Done() != nil || fd < 0:
		return nil, wire.ErrMessage
	}
	return &link{number: g.number, fd: fd, users: 1, buf: make([]byte, 512)}, nil
}

// HandOver returns the descriptors of an event channel device without channels, for
// [AdoptEvents] in another process. They are the caller's; e cannot be used any more.
func (e *Events) HandOver() [2]int {
	e.mu.Lock()
	defer e.mu.Unlock()
	fds := [2]int{e.link.fd, e.pipe}
	e.pipe, e.link.fd, e.link.closed = -1, -1, true
	return fds
}

// AdoptEvents makes an event channel device of the descriptors of [Events.HandOver]. They
// belong to it.
func AdoptEvents(fds [2]int) *Events {
	return &Events{link: &link{fd: fds[0], users: 1, buf: make([]byte, 512)}, pipe: fds[1]}
}

// HandOver returns the descriptor of a grant allocation device without pages, for
// [AdoptPages] in another process. It is the caller's; p cannot be used any more.
func (p *Pages) HandOver() int {
	fd := p.link.fd
	p.link.fd, p.link.closed = -1, true
	return fd
}

// AdoptPages makes a grant allocation device of a descriptor of [Pages.HandOver], which
// belongs to it.
func AdoptPages(fd int) *Pages {
	return &Pages{link: &link{fd: fd, users: 1, buf: make([]byte, 512)}}
}
