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
	target     *domain // the domain that it may act for; set for a device model's domain

	// Its use of the quotas.
	nodes, memory, watches, transactions, outstanding int

	allowance allowance
}

func (d *domain) unprivileged() bool { return d.id != 0 }

// created adds a domain. Permissions granted to its number before do not apply to it.
func (s *state) created(domid uint32) {
	if s.domains[domid] == nil {
		s.domains[domid] = &domain{id: domid, generation: s.generation}
	}
}

// introduce opens the store to a domain: from now on it reads the domain's requests. It
// resets the connection of a domain that is introduced already, as after a change of its
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

// wentDown records that a domain shut down or crashed, and fires @releaseDomain. Further
// calls have no effect until the toolstack resumes the domain.
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

// removeOwned removes the nodes that d owns at path and below. The root stays, and domain
// 0 gets it: a tree must have a root.
func (s *state) removeOwned(d *domain, path string) {
	n := s.nodes[path]
	if n.owner() == d.id {
		if path != "/" {
			// It cannot fail outside a transaction.
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
