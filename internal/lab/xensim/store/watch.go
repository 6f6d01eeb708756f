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
	relative int // length of the prefix that an event's path leaves out, or 0
}

// eventPath returns path, which lies within the watch, as the watcher names it.
func (w *watch) eventPath(path string) string {
	if w.relative == 0 {
		return path
	}
	return strings.TrimPrefix(path[w.relative:], "/")
}

// change is one change of the tree, or an event of a special path.
type change struct {
	path string

	// node is the present node, or the last one if it was removed. nil: the tree
	// has the node, and a removed node is not visible.
	node *node

	// before is the list of permissions before the change, if the change may have
	// changed it. A client that loses read access gets an event.
	before []perm

	// exact: the event is only for watches of exactly this path. Watches above
	// get an event for the removal of the parent.
	exact bool
}

// fire sends the events of one change by request r (a request without a connection for
// changes by the store itself). Inside a transaction the event waits for the commit.
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

// visible reports whether c may see a change: it may read the node, could read it before,
// or may read the parent, which lists it.
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

// sendEvent queues a watch event. It does not queue an equal event again while the first
// one waits, since the client has not read the node yet. Events of special paths are
// always queued.
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
