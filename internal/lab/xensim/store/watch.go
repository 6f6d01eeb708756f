// SPDX-License-Identifier: Apache-2.0

package store

import (
	"strings"

	"github.com/netbackd/netbackd/pkg/xenstore"
)

// watch is one watch of a connection.
type watch struct {
	path     string // absolute, or special
	token    string
	relative int // length of what an event's path leaves out, 0 if nothing
}

// eventPath returns the name by which the watcher knows path, which lies within the watch.
func (w *watch) eventPath(path string) string {
	if w.relative == 0 {
		return path
	}
	return strings.TrimPrefix(path[w.relative:], "/")
}

// change is one change of the tree, or the occasion of a special path.
type change struct {
	path string

	// node is the node as it is, or as it was if it is gone. nil: the tree
	// is asked, and a node that is gone cannot be seen.
	node *node

	// before is the list of permissions before the change, if it may have
	// been another one. Who loses sight of a node is told so.
	before []perm

	// exact: only for those who watch just this path. Those above are told
	// of the whole, of which this is a part.
	exact bool
}

// fire sends the events of one change, which request r caused (a request
// without connection if the store itself did). Inside a transaction the event
// waits for the commit.
func (s *state) fire(r *request, ch change) {
	if r.tx != nil {
		a := r.tx.accessed[ch.path]
		a.exact = ch.exact && (a.exact || !a.fire)
		a.fire = true
		return
	}
	var cause *request
	if r.conn.unprivileged() {
		cause = r
	}
	for _, c := range s.conns {
		asked, seen := false, false
		for i := range c.watches {
			w := &c.watches[i]
			if ch.path != w.path && (ch.exact || !within(ch.path, w.path)) {
				continue
			}
			if !asked {
				asked, seen = true, s.visible(c, ch)
			}
			if !seen {
				break
			}
			s.sendEvent(cause, c, w.eventPath(ch.path), w.token)
		}
	}
}

// visible reports whether c may know of a change: it may read the node, could
// read it before, or may read the node above, which lists it.
func (s *state) visible(c *conn, ch change) bool {
	if isSpecial(ch.path) {
		perms, ok := s.special[ch.path]
		return ok && c.rights(perms)&mayRead != 0
	}
	if ch.before != nil && c.rights(ch.before)&mayRead != 0 {
		return true
	}
	n := ch.node
	if n == nil {
		var err error
		if n, err = s.read(nil, ch.path); err != nil {
			return false
		}
	}
	if c.rights(n.perms)&mayRead != 0 {
		return true
	}
	parent, err := s.read(nil, parentOf(ch.path))
	return err == nil && c.rights(parent.perms)&mayRead != 0
}

// sendEvent queues a watch event. An event that already waits is not queued
// again: it tells the client to look, and the client has not looked yet. Events
// of the special paths are each sent.
func (s *state) sendEvent(cause *request, c *conn, path, token string) {
	payload := xenstore.AppendStrings(make([]byte, 0, len(path)+len(token)+2), path, token)
	if len(payload) > xenstore.MaxPayload {
		return
	}
	m := &message{
		wire:  xenstore.AppendMessage(nil, xenstore.Header{Type: xenstore.MsgWatchEvent}, payload),
		event: true,
		cause: cause,
	}
	if !isSpecial(path) {
		m.key = string(payload)
		if c.pending[m.key] {
			return
		}
	}
	if !s.charge(c.domid(), len(m.wire), true) {
		return
	}
	if c.unprivileged() && s.quota.EventTimeout > 0 {
		m.deadline = s.now().Add(s.quota.EventTimeout)
	}
	s.enqueue(c, m)
}

// dropWatches removes all watches of c. Events already queued are still sent.
func (s *state) dropWatches(c *conn) {
	for i := range c.watches {
		s.uncountWatch(c, &c.watches[i])
	}
	c.watches = nil
}

func (s *state) countWatch(c *conn, w *watch) bool {
	if !s.charge(c.domid(), len(w.path)+len(w.token), true) {
		return false
	}
	if c.dom != nil {
		c.dom.watches++
	}
	return true
}

func (s *state) uncountWatch(c *conn, w *watch) {
	s.charge(c.domid(), -len(w.path)-len(w.token), false)
	if c.dom != nil {
		c.dom.watches--
	}
}
