// SPDX-License-Identifier: Apache-2.0

package store

import (
	"slices"

	"github.com/netbackd/netbackd/pkg/xenstore"
)

// domain is a domain that exists, introduced or not.
type domain struct {
	id         uint32
	generation uint64 // of the store when the domain came into being
	introduced bool
	shutdown   bool    // is shut down or crashed, and @releaseDomain said so
	target     *domain // it may act for this one: set for a device model's domain

	// What it uses of its quotas.
	nodes, memory, watches, transactions, outstanding int

	allowance allowance
}

func (d *domain) unprivileged() bool { return d.id != 0 }

// created makes a domain known. Permissions granted to its number before are
// not its own.
func (s *state) created(domid uint32) {
	if s.domains[domid] == nil {
		s.domains[domid] = &domain{id: domid, generation: s.generation}
	}
}

// introduce opens the store to a domain: from now on its requests are read. A
// domain that is introduced already starts afresh, as after a change of its
// event channel.
func (s *state) introduce(d *domain) {
	if !d.introduced {
		d.introduced = true
		d.shutdown = false
		s.limiter.join(&d.allowance, s.now())
		s.fire(&request{}, change{path: xenstore.IntroduceDomain, exact: true})
	}
	for _, c := range s.connsOf(d) {
		s.reset(c)
	}
}

// wentDown notes that a domain shut down or crashed. Told again it says
// nothing, until the toolstack resumes the domain.
func (s *state) wentDown(domid uint32) {
	if d := s.domains[domid]; d != nil && d.introduced && !d.shutdown {
		d.shutdown = true
		s.fire(&request{}, change{path: xenstore.ReleaseDomain, exact: true})
	}
}

// died forgets a domain: its connections, watches and transactions, every node
// it owned with all below, and its rights to the special paths.
func (s *state) died(d *domain, reason error) {
	for _, c := range s.connsOf(d) {
		s.kill(c, reason)
	}
	if d.nodes > 0 {
		s.removeOwned(d, "/")
	}
	for path, perms := range s.special {
		s.special[path] = withoutDomain(perms, d.id)
	}
	delete(s.domains, d.id)
	for _, other := range s.domains {
		if other.target == d {
			other.target = nil
		}
	}
	if d.introduced {
		s.fire(&request{}, change{path: xenstore.ReleaseDomain, exact: true})
		s.limiter.leave(&d.allowance)
	}
}

// removeOwned removes what d owns at path and below. The root stays, with
// domain 0: a tree without it is none.
func (s *state) removeOwned(d *domain, path string) {
	n := s.nodes[path]
	if n.owner() == d.id {
		if path != "/" {
			// Nothing can fail outside of a transaction.
			_ = s.remove(&request{}, path)
			return
		}
		m := *n
		m.perms = slices.Clone(n.perms)
		m.perms[0].domid = 0
		s.store(path, &m, false)
		s.countNode(nil, d.id, -1)
		s.countNode(nil, 0, 1)
		n = &m
	}
	n.eachChild(func(leaf string) bool {
		s.removeOwned(d, join(path, leaf))
		return d.nodes > 0
	})
}

// voidUnknown marks entries void if their domain does not exist.
func (s *state) voidUnknown(perms []perm) {
	for i := range perms {
		perms[i].void = s.domains[perms[i].domid] == nil
	}
}

func (s *state) connsOf(d *domain) []*conn {
	var conns []*conn
	for _, c := range s.conns {
		if c.dom == d {
			conns = append(conns, c)
		}
	}
	return conns
}

// pay takes the price of one change from an unprivileged domain.
func (s *state) pay(c *conn) {
	if c.unprivileged() {
		s.limiter.spend(&c.dom.allowance, s.now())
	}
}
