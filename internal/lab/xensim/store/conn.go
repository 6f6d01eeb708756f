// SPDX-License-Identifier: Apache-2.0

package store

import (
	"strconv"
	"time"
)

// Bounds of the queue of replies and events of one connection, in bytes. A
// guest is bound by its quotas long before.
const (
	// readBelow: the store does not read from a client with more bytes queued
	// than this. It allows a client to send many requests before it reads.
	readBelow = 1 << 20

	// queueMax: the store closes a client with more bytes queued than this. Only
	// events can fill the queue so far, some 40000 distinct ones.
	queueMax = 4 << 20
)

// conn is one connection to the store.
type conn struct {
	dom  *domain // nil for the socket: its clients count as domain 0
	home string  // where its relative paths start

	watches      []watch
	transactions map[uint32]*transaction
	nextTx       uint32

	out     []*message
	queued  int             // bytes in out
	pending map[string]bool // keys of the events in out

	// taken: out[0] is being written and can no longer be withdrawn.
	taken bool

	// dead is the reason for the end of the connection. A dead connection has no
	// owner, and nothing is queued any more.
	dead error
}

// message is one message on its way to a client.
type message struct {
	wire     []byte // header and payload
	event    bool
	key      string    // in conn.pending; "" if it is not there
	deadline time.Time // dropped if it was not taken by then; zero: never
	cause    *request  // the request of a domain that caused it
}

// newConn adds a connection. d is nil for the socket.
func (s *state) newConn(d *domain) *conn {
	c := &conn{
		dom:          d,
		transactions: map[uint32]*transaction{},
		pending:      map[string]bool{},
	}
	c.home = homePath(c.domid())
	s.conns = append(s.conns, c)
	return c
}

func homePath(domid uint32) string {
	return "/local/domain/" + strconv.FormatUint(uint64(domid), 10)
}

// domid returns the domain on behalf of which c acts.
func (c *conn) domid() uint32 {
	if c.dom == nil {
		return 0
	}
	return c.dom.id
}

// unprivileged reports whether permissions and quotas apply to c. They do not apply to
// the store itself, a nil c.
func (c *conn) unprivileged() bool {
	return c != nil && c.dom != nil && c.dom.unprivileged()
}

// actsFor reports whether c has the permissions of a domain.
func (c *conn) actsFor(domid uint32) bool {
	return c.domid() == domid || c.dom.target != nil && c.dom.target.id == domid
}

// absolute returns the absolute path. Special paths are not relative to a home.
func (c *conn) absolute(path string) string {
	if len(path) > 0 && (path[0] == '/' || path[0] == '@') {
		return path
	}
	return c.home + "/" + path
}

// enqueue queues a message that has been charged to c's domain.
func (s *state) enqueue(c *conn, m *message) {
	if c.dead == nil && c.queued+len(m.wire) > queueMax {
		s.kill(c, ErrOverrun)
	}
	if m.cause != nil {
		m.cause.waiting++
	}
	if c.dead != nil {
		s.settled(c, m)
		return
	}
	if m.key != "" {
		c.pending[m.key] = true
	}
	c.out = append(c.out, m)
	c.queued += len(m.wire)
}

// take returns the first message for writing. From now on its event counts as sent: the
// client may have it before the store knows, and may read the node before the next
// change, so the next change is an event of its own.
func (c *conn) take() []byte {
	m := c.out[0]
	c.taken = true
	delete(c.pending, m.key)
	m.key = ""
	return m.wire
}

// written removes out[0], which was sent.
func (s *state) written(c *conn) {
	c.taken = false
	if len(c.out) > 0 {
		s.unqueue(c, 0)
	}
}

// unqueue removes a message from the queue, sent or not.
func (s *state) unqueue(c *conn, i int) {
	m := c.out[i]
	if i == 0 {
		c.out[0] = nil
		c.out = c.out[1:]
	} else {
		c.out = append(c.out[:i], c.out[i+1:]...)
	}
	c.queued -= len(m.wire)
	delete(c.pending, m.key)
	s.settled(c, m)
}

// settled closes the accounts of a message that is no longer queued.
func (s *state) settled(c *conn, m *message) {
	s.charge(c.domid(), -len(m.wire), false)
	if m.cause != nil {
		m.cause.done()
	}
}

// withdrawable returns the index of the first message that is not yet being written.
func (c *conn) withdrawable() int {
	if c.taken {
		return 1
	}
	return 0
}

// expire drops the events that have waited too long, and returns the next time to check,
// zero if no event waits.
func (s *state) expire(c *conn, now time.Time) time.Time {
	for i := c.withdrawable(); i < len(c.out); {
		switch m := c.out[i]; {
		case m.deadline.IsZero():
			i++
		case m.deadline.After(now):
			return m.deadline // the later ones expire later
		default:
			s.unqueue(c, i)
		}
	}
	return time.Time{}
}

// mayBeRead reports whether a request of c may be read now. If only the write rate forbids
// it, it returns the time to wait.
func (s *state) mayBeRead(c *conn, now time.Time) (ok bool, wait time.Duration) {
	switch d := c.dom; {
	case d != nil && !d.introduced:
		return false, 0
	case !c.unprivileged():
		return c.queued < readBelow, 0
	case d.outstanding >= s.quota.Outstanding || d.memory >= s.quota.Memory:
		return false, 0
	default:
		wait = s.limiter.wait(&d.allowance, now)
		return wait == 0, wait
	}
}

// reset drops all state of c, but not the connection.
func (s *state) reset(c *conn) {
	s.dropWatches(c)
	s.dropTransactions(c)
	for first := c.withdrawable(); len(c.out) > first; {
		s.unqueue(c, len(c.out)-1)
	}
}

func (s *state) dropTransactions(c *conn) {
	for _, tx := range c.transactions {
		s.end(tx)
	}
}

// kill ends a connection. It stays in s.conns until bury, since a goroutine may be
// walking through them.
func (s *state) kill(c *conn, reason error) {
	if c.dead != nil {
		return
	}
	s.reset(c)
	for len(c.out) > 0 {
		s.unqueue(c, 0)
	}
	c.dead = reason
}

// bury forgets the dead connections.
func (s *state) bury() {
	alive := s.conns[:0]
	for _, c := range s.conns {
		if c.dead == nil {
			alive = append(alive, c)
		}
	}
	clear(s.conns[len(alive):])
	s.conns = alive
}
