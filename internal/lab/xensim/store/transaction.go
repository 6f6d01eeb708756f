// SPDX-License-Identifier: Apache-2.0

package store

import (
	"strconv"
	"syscall"
)

// transaction is a private view of the tree, taken path by path: the first time
// a path is read, what is there then becomes the transaction's own and stays
// so. The commit goes through if each of these paths is still, for everybody,
// as it was when it was read. A change always reads first, so what was only
// written conflicts as well; and a parent changes when a child comes or goes.
type transaction struct {
	conn       *conn
	id         uint32 // on the wire; unique in its connection
	generation uint64 // unique in the store
	accessed   map[string]*access
	order      []*access      // accessed, in the order of the first access
	nodes      map[uint32]int // owner: how many more nodes it will have
	memory     int            // bytes charged for the private copies
	created    bool           // at least one node
	failed     bool           // ran into a quota: can only be dropped
}

// access is one path a transaction knows.
type access struct {
	path string

	// What everybody saw at the first access: noGeneration and nil perms if
	// there was no node.
	generation uint64
	perms      []perm

	node     *node // as the transaction sees it now, nil if there is none
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

// end forgets a transaction, if it is not forgotten yet.
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

// access returns what tx knows about a path, which it learns now if it did not
// know it yet.
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

// putPrivate stores n as what tx sees at path. A change that fails cannot be
// taken back, so with it the whole transaction fails.
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

// deletePrivate deletes a node that tx sees.
func (s *state) deletePrivate(tx *transaction, path string) {
	a := tx.accessed[path]
	s.chargePrivate(tx, -tx.recordSize(a), false)
	a.node, a.modified = nil, true
}

// commit makes the changes of r's transaction everybody's, or returns why not:
// ENOMEM if an earlier request in it failed, ENOSPC if a domain would own too
// many nodes, EAGAIN if a path it read has changed since.
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
