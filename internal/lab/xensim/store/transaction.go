// SPDX-License-Identifier: Apache-2.0

package store

import (
	"strconv"
	"syscall"
)

// transaction is a private view of the tree, copied path by path: the first read of a path
// copies its node into the transaction. The commit succeeds if the shared tree still has
// the same node at each of these paths. A change always reads first, so a path that was
// only written conflicts as well; and a parent changes when a child is made or removed.
type transaction struct {
	conn       *conn
	id         uint32 // on the wire; unique in its connection
	generation uint64 // unique in the store
	accessed   map[string]*access
	order      []*access      // accessed, in the order of the first access
	nodes      map[uint32]int // number of additional nodes, by owner
	memory     int            // bytes charged for the private copies
	created    bool           // at least one node
	failed     bool           // exceeded a quota: can only be dropped
}

// access is one path in a transaction.
type access struct {
	path string

	// The node in the shared tree at the first access: noGeneration and nil perms
	// if there was none.
	generation uint64
	perms      []perm

	node     *node // in the transaction's view, nil if there is none
	modified bool

	// The event to send at the commit.
	fire, exact bool
}

// begin starts a transaction of c.
func (s *state) begin(c *conn) *transaction {
	s.generation++
	tx := &transaction{
		conn:       c,
		generation: s.generation,
		accessed:   map[string]*access{},
		nodes:      map[uint32]int{},
	}
	// 0 on the wire stands for no transaction.
	for c.transactions[c.nextTx] != nil || c.nextTx == 0 {
		c.nextTx++
	}
	tx.id = c.nextTx
	c.nextTx++
	c.transactions[tx.id] = tx
	s.transactions++
	if c.dom != nil {
		c.dom.transactions++
	}
	return tx
}

// end removes a transaction. It may be called again.
func (s *state) end(tx *transaction) {
	c := tx.conn
	if c.transactions[tx.id] != tx {
		return
	}
	delete(c.transactions, tx.id)
	s.transactions--
	if c.dom != nil {
		c.dom.transactions--
	}
	s.charge(c.domid(), -tx.memory, false)
}

// access returns the access of tx to a path. The first call for a path makes it.
func (s *state) access(tx *transaction, path string) (*access, error) {
	if a := tx.accessed[path]; a != nil {
		return a, nil
	}
	if tx.conn.unprivileged() && len(tx.order) >= s.quota.TransactionNodes {
		tx.failed = true
		return nil, syscall.ENOSPC
	}
	a := &access{path: path, generation: noGeneration}
	if n := s.nodes[path]; n != nil {
		a.node = s.voidStale(n)
		a.generation, a.perms = n.generation, a.node.perms
		s.chargePrivate(tx, tx.recordSize(a), false)
	}
	tx.accessed[path] = a
	tx.order = append(tx.order, a)
	return a, nil
}

// recordSize returns the memory the private copy of a node takes in xenstored: its
// record, under its path with the transaction's generation before it.
func (tx *transaction) recordSize(a *access) int {
	if a.node == nil {
		return 0
	}
	key := len(strconv.FormatUint(tx.generation, 10)) + 1 + len(a.path)
	return key + a.node.recordSize()
}

// chargePrivate charges the domain that runs a transaction for its copies.
func (s *state) chargePrivate(tx *transaction, bytes int, check bool) bool {
	if !s.charge(tx.conn.domid(), bytes, check) {
		return false
	}
	tx.memory += bytes
	return true
}

// putPrivate stores n in the view of tx at path. A failed change cannot be undone, so the
// whole transaction fails with it.
func (s *state) putPrivate(tx *transaction, path string, n *node, fits, check bool) error {
	a, err := s.access(tx, path)
	if err != nil {
		return err
	}
	a.modified = true
	if !fits {
		tx.failed = true
		return syscall.ENOSPC
	}
	old, size := a.node, tx.recordSize(a)
	a.node = n
	if !s.chargePrivate(tx, tx.recordSize(a)-size, check) {
		a.node = old
		tx.failed = true
		return syscall.EIO
	}
	return nil
}

// deletePrivate deletes a node in the view of tx.
func (s *state) deletePrivate(tx *transaction, path string) {
	a := tx.accessed[path]
	s.chargePrivate(tx, -tx.recordSize(a), false)
	a.node, a.modified = nil, true
}

// commit applies the changes of r's transaction to the shared tree. It returns ENOMEM if
// an earlier request in it failed, ENOSPC if a domain would own too many nodes, EAGAIN if
// a path that it read has changed since.
func (s *state) commit(r *request, tx *transaction) error {
	if tx.failed {
		return syscall.ENOMEM
	}
	if err := s.roomForCommit(tx); err != nil {
		return err
	}
	for _, a := range tx.order {
		now := uint64(noGeneration)
		if n := s.nodes[a.path]; n != nil {
			now = n.generation
		}
		if now != a.generation {
			return syscall.EAGAIN
		}
	}
	for _, a := range tx.order {
		if !a.modified {
			continue
		}
		if a.node != nil {
			n := *a.node
			s.generation++
			n.generation = s.generation
			s.store(a.path, &n, false)
		} else if a.generation != noGeneration {
			s.store(a.path, nil, false)
		}
		if a.fire {
			s.fire(r, change{path: a.path, exact: a.exact, before: a.perms})
		}
	}
	if s.transactions > 1 {
		s.pay(tx.conn)
	}
	for owner, n := range tx.nodes {
		s.domains[owner].nodes += n
	}
	return nil
}

// roomForCommit checks the node quota of every domain that owns nodes which tx changes.
func (s *state) roomForCommit(tx *transaction) error {
	for owner, n := range tx.nodes {
		d := s.domains[owner]
		if d == nil {
			return syscall.ENOMEM
		}
		check := tx.created && tx.conn.unprivileged() && d.unprivileged()
		if check && d.nodes+n >= s.quota.Nodes {
			return syscall.ENOSPC
		}
	}
	return nil
}
