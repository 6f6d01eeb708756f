// SPDX-License-Identifier: Apache-2.0

package simclient

import (
	"encoding/json"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/xensim/wire"
	"github.com/netbackd/netbackd/pkg/xen"
)

// The toolstack's types.
type (
	DomainConfig = wire.DomainConfig
	DomainInfo   = wire.DomainInfo
	Counters     = wire.Counters
	Fault        = wire.Fault
)

// Control is a toolstack's access to the hypervisor. Its methods may be called
// from several goroutines at once.
type Control struct{ link *link }

// Control opens the hypervisor's control interface, which only dom0 may (EPERM).
func (c *Conn) Control() (*Control, error) {
	l, _, err := open(c.dir, c.domid, wire.KindControl)
	if err != nil {
		return nil, err
	}
	l.buf = make([]byte, wire.MaxMessage)
	return &Control{link: l}, nil
}

// Close ends the access. It does not change any domain.
func (c *Control) Close() error { return c.link.close() }

// CreateDomain makes a domain and returns its id, which no domain had before.
// xenstored knows of the domain but talks to it only once it is introduced.
func (c *Control) CreateDomain(cfg DomainConfig) (xen.Domid, error) {
	arg, err := json.Marshal(cfg)
	if err != nil {
		return 0, err
	}
	c.link.mu.Lock()
	defer c.link.mu.Unlock()
	r, errno, err := c.link.call(append(wire.AppendU32(nil, uint32(wire.OpCreateDomain)), arg...))
	if err == nil && errno != 0 {
		err = fmt.Errorf("%s: %w", r.Rest(), errno)
	}
	if err != nil {
		return 0, fmt.Errorf("embedded Xen: create domain: %w", err)
	}
	domid := r.U32()
	return xen.Domid(domid), r.Done()
}

// Destroy ends a domain at once: it ends the connections of its processes, closes its
// event channels, releases its mappings, and @releaseDomain fires. While others hold
// pages of the domain, it stays in the list as dying, and its id is not free. Destroy of a
// dying domain has no effect.
func (c *Control) Destroy(domid xen.Domid) error {
	return c.domctl("destroy", wire.OpDestroy, domid, nil)
}

// Pause stops a domain: no event reaches it, and its hypercalls wait.
func (c *Control) Pause(domid xen.Domid) error { return c.domctl("pause", wire.OpPause, domid, nil) }

// Unpause lets a domain run.
func (c *Control) Unpause(domid xen.Domid) error {
	return c.domctl("unpause", wire.OpUnpause, domid, nil)
}

// Shutdown stops a domain as if it had shut down or crashed: it runs no more,
// but exists until it is destroyed. @releaseDomain fires.
func (c *Control) Shutdown(domid xen.Domid) error {
	return c.domctl("shutdown", wire.OpShutdown, domid, nil)
}

// AddFault makes operations on the domain's grants fail from now on.
func (c *Control) AddFault(domid xen.Domid, f Fault) error {
	arg, err := json.Marshal(f)
	if err != nil {
		return err
	}
	return c.domctl("fault", wire.OpAddFault, domid, arg)
}

// ClearFaults ends all faults of the domain's grants.
func (c *Control) ClearFaults(domid xen.Domid) error {
	return c.domctl("clear faults", wire.OpClearFaults, domid, nil)
}

// OverflowEvents makes the queues of all open event channel files of the domain overflow,
// as they do when ports are bound and unbound without a read.
func (c *Control) OverflowEvents(domid xen.Domid) error {
	return c.domctl("overflow", wire.OpOverflow, domid, nil)
}

func (c *Control) domctl(what string, op wire.Op, domid xen.Domid, arg []byte) error {
	c.link.mu.Lock()
	defer c.link.mu.Unlock()
	msg := append(wire.AppendU32(nil, uint32(op), uint32(domid)), arg...)
	if err := c.link.simple(msg); err != nil {
		return fmt.Errorf("embedded Xen: %s domain %d: %w", what, domid, err)
	}
	return nil
}

// Domains lists all domains by id, dom0 and dying ones included.
func (c *Control) Domains() ([]DomainInfo, error) {
	c.link.mu.Lock()
	defer c.link.mu.Unlock()
	var all []DomainInfo
	for first := uint32(0); ; {
		part, err := c.list(first)
		if err != nil {
			return nil, fmt.Errorf("embedded Xen: list domains: %w", err)
		}
		all = append(all, part...)
		if len(part) < wire.MaxListed {
			return all, nil
		}
		first = uint32(part[len(part)-1].Domid) + 1
	}
}

// Domain describes one domain. The error is ENOENT when there is none.
func (c *Control) Domain(domid xen.Domid) (DomainInfo, error) {
	c.link.mu.Lock()
	defer c.link.mu.Unlock()
	part, err := c.list(uint32(domid))
	if err == nil && (len(part) == 0 || part[0].Domid != domid) {
		err = unix.ENOENT
	}
	if err != nil {
		return DomainInfo{}, fmt.Errorf("embedded Xen: domain %d: %w", domid, err)
	}
	return part[0], nil
}

// list returns one OpList. The caller holds link.mu.
func (c *Control) list(first uint32) ([]DomainInfo, error) {
	r, errno, err := c.link.call(wire.AppendU32(nil, uint32(wire.OpList), first))
	if err != nil {
		return nil, err
	}
	if errno != 0 {
		return nil, errno
	}
	var part []DomainInfo
	return part, json.Unmarshal(r.Rest(), &part)
}
