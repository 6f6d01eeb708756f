// SPDX-License-Identifier: Apache-2.0

package store

import (
	"math"
	"strings"
	"syscall"
)

// node is one node of the tree. A stored node is immutable: a change stores a new one. So
// a transaction's private copy is a pointer, and a caller may keep a node.
type node struct {
	generation uint64 // of the write that stored it
	perms      []perm // at least one
	value      string
	children   string // their leaf names, each followed by NUL, oldest first
}

// noGeneration is the generation of a missing node.
const noGeneration = math.MaxUint64

// recordSize returns the size in bytes of xenstored's record of a node, which its quotas
// count: a header of 24 bytes, 8 bytes for each permission, the value, and the names of the
// children.
func (n *node) recordSize() int {
	return 24 + 8*len(n.perms) + len(n.value) + len(n.children)
}

func (n *node) owner() uint32 { return n.perms[0].domid }

// eachChild calls f with the leaf names in order until f returns false.
func (n *node) eachChild(f func(leaf string) bool) {
	for rest := n.children; rest != ""; {
		var leaf string
		leaf, rest, _ = strings.Cut(rest, "\x00")
		if !f(leaf) {
			return
		}
	}
}

// withChild returns a copy of n with one more child.
func (n *node) withChild(leaf string) *node {
	m := *n
	m.children += leaf + "\x00"
	return &m
}

// withoutChild returns a copy of n with one child less. It reports false if n has no such
// child, which happens in a transaction that copied n before the child was made.
func (n *node) withoutChild(leaf string) (*node, bool) {
	m := *n
	if rest, ok := strings.CutPrefix(n.children, leaf+"\x00"); ok {
		m.children = rest
		return &m, true
	}
	i := strings.Index(n.children, "\x00"+leaf+"\x00")
	if i < 0 {
		return nil, false
	}
	m.children = n.children[:i+1] + n.children[i+1+len(leaf)+1:]
	return &m, true
}

// read returns the node at path in the view of tx, or in the shared tree if tx is nil.
// Within a transaction the first read of a path, existing or not, makes the private copy,
// and the commit is checked against its generation.
func (s *state) read(tx *transaction, path string) (*node, error) {
	if tx != nil {
		a, err := s.access(tx, path)
		if err != nil {
			return nil, err
		}
		if a.node == nil {
			return nil, syscall.ENOENT
		}
		return s.voidStale(a.node), nil
	}
	n := s.nodes[path]
	if n == nil {
		return nil, syscall.ENOENT
	}
	return s.voidStale(n), nil
}

// voidStale returns n with the permissions of earlier domains of the same number marked as
// void.
func (s *state) voidStale(n *node) *node {
	for i, p := range n.perms {
		if i == 0 || p.void || s.isOlder(p.domid, n.generation) {
			continue
		}
		m := *n
		m.perms = append([]perm(nil), n.perms...)
		for j := i; j < len(m.perms); j++ {
			p := &m.perms[j]
			p.void = p.void || !s.isOlder(p.domid, n.generation)
		}
		return &m
	}
	return n
}

// isOlder reports whether a domain exists and did so before a node of the given
// generation was written.
func (s *state) isOlder(domid uint32, generation uint64) bool {
	d := s.domains[domid]
	return d != nil && d.generation <= generation
}

// get returns the node at path if c has all of the wanted rights to it.
//
// A domain may have access to a node and not to its parents. But the errno must not tell a
// domain without access which nodes exist: unless the closest existing ancestor grants one
// of the wanted rights, the answer is EACCES.
func (s *state) get(c *conn, tx *transaction, path string, want rights) (*node, error) {
	if !validPath(path, s.quota.Path) {
		return nil, syscall.EINVAL
	}
	n, err := s.read(tx, path)
	if err == nil {
		if c.rights(n.perms)&want == want {
			return n, nil
		}
		err = syscall.EACCES
	}
	if outOfQuota(err) {
		return nil, err
	}
	for up := path; ; {
		up = parentOf(up)
		switch n, upErr := s.read(tx, up); {
		case upErr == nil && c.rights(n.perms)&want != 0:
			return nil, err
		case upErr == nil:
			return nil, syscall.EACCES
		case outOfQuota(upErr):
			return nil, upErr
		}
	}
}

// outOfQuota reports whether err is about a quota. Such an error tells nothing about a
// node, so it need not be hidden.
func outOfQuota(err error) bool {
	return err == syscall.ENOSPC || err == syscall.ENOMEM
}

// put stores n at path, with a new generation, for a request of c (nil if the
// store itself does it). With check, the quotas of an unprivileged c hold.
func (s *state) put(c *conn, tx *transaction, path string, n *node, check bool) error {
	m := *n
	m.generation = s.nextGeneration(c, tx)
	fits := !check || !c.unprivileged() || m.recordSize() < s.quota.NodeSize
	if tx != nil {
		return s.putPrivate(tx, path, &m, fits, check)
	}
	if !fits {
		return syscall.ENOSPC
	}
	if !s.store(path, &m, check) {
		return syscall.EIO
	}
	return nil
}

// nextGeneration returns the generation of one change by c. A change outside of any
// transaction is paid for now, one inside at the commit.
func (s *state) nextGeneration(c *conn, tx *transaction) uint64 {
	if tx == nil && s.transactions > 0 {
		s.pay(c)
	}
	s.generation++
	return s.generation
}

// store replaces the node at path in the shared tree by n, or removes it if n is nil, and
// updates the account of memory.
func (s *state) store(path string, n *node, check bool) bool {
	old := s.nodes[path]
	if old != nil {
		s.charge(old.owner(), -old.recordSize()-len(path), false)
	}
	if n == nil {
		delete(s.nodes, path)
		return true
	}
	if !s.charge(n.owner(), n.recordSize()+len(path), check) {
		if old != nil {
			s.charge(old.owner(), old.recordSize()+len(path), false)
		}
		return false
	}
	s.nodes[path] = n
	return true
}

// create makes a node and the missing ones above it. New nodes inherit the
// permissions of their parent; an unprivileged domain owns what it creates.
func (s *state) create(c *conn, tx *transaction, path, value string) (*node, error) {
	missing := []string{path}
	up := parentOf(path)
	above, err := s.read(tx, up)
	for err != nil {
		if err != syscall.ENOENT || up == "/" {
			return nil, err
		}
		missing = append(missing, up)
		up = parentOf(up)
		above, err = s.read(tx, up)
	}

	made := make([]*node, len(missing))
	parent := above
	for i := len(missing) - 1; i >= 0; i-- {
		n := &node{perms: parent.perms}
		if c.unprivileged() {
			n.perms = append([]perm(nil), parent.perms...)
			n.perms[0].domid = c.domid()
		}
		if i > 0 {
			n.children = leafOf(missing[i-1]) + "\x00"
		} else {
			n.value = value
		}
		made[i], parent = n, n
	}

	if tx != nil {
		tx.created = true
	}
	// From the bottom up, so that no list of children names a missing node when a
	// quota stops it halfway.
	for i, n := range made {
		err := s.roomForNode(c)
		if err == nil {
			err = s.put(c, tx, missing[i], n, true)
		}
		if err != nil {
			s.uncreate(tx, missing[:i], made[:i])
			return nil, err
		}
		s.countNode(tx, n.owner(), 1)
	}
	if err := s.put(c, tx, up, above.withChild(leafOf(missing[len(missing)-1])), true); err != nil {
		s.uncreate(tx, missing, made)
		return nil, err
	}
	return made[0], nil
}

// uncreate undoes an incomplete create. In a transaction it has nothing to undo: the
// transaction has failed and its nodes are dropped with it.
func (s *state) uncreate(tx *transaction, paths []string, made []*node) {
	if tx != nil {
		return
	}
	for i, path := range paths {
		s.store(path, nil, false)
		s.countNode(nil, made[i].owner(), -1)
	}
}

// roomForNode returns ENOSPC if c owns the largest allowed number of nodes. Nodes created
// in a transaction count at the commit.
func (s *state) roomForNode(c *conn) error {
	if c.unprivileged() && c.dom.nodes >= s.quota.Nodes {
		return syscall.ENOSPC
	}
	return nil
}

// countNode counts nodes of an owner: in the transaction until it commits.
func (s *state) countNode(tx *transaction, owner uint32, n int) {
	if tx != nil {
		tx.nodes[owner] += n
	} else if d := s.domains[owner]; d != nil {
		d.nodes += n
	}
}

// remove deletes path, which exists and is not the root, and all below it.
// Events: one for the node as for any change, and one for each node below, to clients that
// watch exactly that node, children before parents. They are sent while the nodes'
// permissions can still be read.
func (s *state) remove(r *request, path string) error {
	up := parentOf(path)
	parent, err := s.read(r.tx, up)
	if err != nil {
		if outOfQuota(err) {
			return err
		}
		return syscall.EINVAL
	}
	if err := s.removeTree(r, path, path); err != nil {
		return syscall.EIO
	}
	parent, ok := parent.withoutChild(leafOf(path))
	if !ok || s.put(r.conn, r.tx, up, parent, false) != nil {
		return syscall.EIO
	}
	return nil
}

func (s *state) removeTree(r *request, path, root string) (err error) {
	n, err := s.read(r.tx, path)
	if err != nil {
		return err
	}
	n.eachChild(func(leaf string) bool {
		err = s.removeTree(r, join(path, leaf), root)
		return err == nil
	})
	if err != nil {
		return err
	}
	s.nextGeneration(r.conn, r.tx)
	if r.tx != nil {
		s.deletePrivate(r.tx, path)
	} else {
		s.store(path, nil, false)
	}
	s.fire(r, change{path: path, node: n, exact: path != root})
	s.countNode(r.tx, n.owner(), -1)
	if path != root {
		// The parent will be removed as well, but xenstored shrinks its list of
		// children first, and that change has a price.
		s.nextGeneration(r.conn, r.tx)
	}
	return nil
}
