// SPDX-License-Identifier: Apache-2.0

package store

import (
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/netbackd/netbackd/pkg/xenstore"
)

// onePath returns the path that is the whole payload of a request.
func onePath(r *request) (string, error) {
	p, ok := oneString(r.payload)
	if !ok {
		return "", syscall.EINVAL
	}
	return r.conn.absolute(p), nil
}

// getOne returns the node that the whole payload of a request names.
func (s *state) getOne(r *request, want rights) (path string, n *node, err error) {
	path, err = onePath(r)
	if err != nil {
		return path, nil, err
	}
	n, err = s.get(r.conn, r.tx, path, want)
	return path, n, err
}

func (s *state) serveRead(r *request) error {
	_, n, err := s.getOne(r, mayRead)
	if err != nil {
		return err
	}
	s.answer(r, []byte(n.value))
	return nil
}

func (s *state) serveDirectory(r *request) error {
	_, n, err := s.getOne(r, mayRead)
	if err != nil {
		return err
	}
	s.answer(r, []byte(n.children))
	return nil
}

// serveDirectoryPart sends the node's generation and as many names, from a byte offset of
// the list on, as fit one message. Parts of different generations do not belong together.
// An empty name ends the list.
func (s *state) serveDirectoryPart(r *request) error {
	args := allStrings(r.payload)
	if len(args) != 2 {
		return syscall.EINVAL
	}
	n, err := s.get(r.conn, r.tx, r.conn.absolute(args[0]), mayRead)
	if err != nil {
		return err
	}
	reply := append(strconv.AppendUint(nil, n.generation, 10), 0)
	offset := uint64(atoi(args[1]))
	if offset >= uint64(len(n.children)) {
		s.answer(r, append(reply, 0))
		return nil
	}
	rest := n.children[offset:]
	for room := xenstore.MaxPayload - len(reply) - 1; rest != ""; {
		i := strings.IndexByte(rest, 0)
		if i >= room {
			s.answer(r, reply)
			return nil
		}
		reply = append(reply, rest[:i+1]...)
		rest = rest[i+1:]
		room -= i + 1
	}
	s.answer(r, append(reply, 0))
	return nil
}

func (s *state) serveWrite(r *request) error {
	p, value, ok := xenstore.CutString(r.payload)
	if !ok {
		return syscall.EINVAL
	}
	path := r.conn.absolute(p)
	n, err := s.get(r.conn, r.tx, path, mayWrite)
	switch err {
	case nil:
		m := *n
		m.value = string(value)
		n = &m
		err = s.put(r.conn, r.tx, path, n, true)
	case syscall.ENOENT:
		n, err = s.create(r.conn, r.tx, path, string(value))
	}
	if err != nil {
		return err
	}
	s.fire(r, change{path: path, node: n})
	s.ack(r)
	return nil
}

func (s *state) serveMkdir(r *request) error {
	path, _, err := s.getOne(r, mayWrite)
	if err == syscall.ENOENT {
		var n *node
		if n, err = s.create(r.conn, r.tx, path, ""); err == nil {
			s.fire(r, change{path: path, node: n})
		}
	}
	if err != nil {
		return err
	}
	s.ack(r)
	return nil
}

// serveRemove removes a node. A missing node is no error, unless its parent is missing,
// too.
func (s *state) serveRemove(r *request) error {
	path, _, err := s.getOne(r, mayWrite)
	switch {
	case err == syscall.ENOENT:
		_, err = s.read(r.tx, parentOf(path))
	case err == nil && path == "/":
		err = syscall.EINVAL
	case err == nil:
		err = s.remove(r, path)
	}
	if err != nil {
		return err
	}
	s.ack(r)
	return nil
}

func (s *state) serveGetPerms(r *request) error {
	_, n, err := s.getOne(r, mayRead)
	if err != nil {
		return err
	}
	s.answer(r, appendPerms(nil, n.perms))
	return nil
}

func (s *state) serveSetPerms(r *request) error {
	args := allStrings(r.payload)
	if len(args) < 2 {
		return syscall.EINVAL
	}
	if r.conn.unprivileged() && len(args)-1 > s.quota.Perms {
		return syscall.ENOSPC
	}
	perms, err := parsePerms(args[1:])
	if err != nil {
		return err
	}
	s.voidUnknown(perms)
	if perms[0].void {
		return syscall.ENOENT // the node would have no owner
	}
	if isSpecial(args[0]) {
		err = s.setSpecialPerms(r, args[0], perms)
	} else {
		err = s.setPerms(r, r.conn.absolute(args[0]), perms)
	}
	if err != nil {
		return err
	}
	s.ack(r)
	return nil
}

func (s *state) setPerms(r *request, path string, perms []perm) error {
	n, err := s.get(r.conn, r.tx, path, mayWrite|mayOwn)
	if err != nil {
		return err
	}
	if r.conn.unprivileged() && perms[0].domid != n.owner() {
		return syscall.EPERM // to give nodes away would give quota away
	}
	m := *n
	m.perms = perms
	if err := s.put(r.conn, r.tx, path, &m, true); err != nil {
		return err
	}
	s.countNode(r.tx, n.owner(), -1)
	s.countNode(r.tx, m.owner(), 1)
	s.fire(r, change{path: path, node: &m, before: n.perms})
	return nil
}

// setSpecialPerms sets the permissions to watch a special path. It ignores transactions.
func (s *state) setSpecialPerms(r *request, path string, perms []perm) error {
	old, ok := s.special[path]
	if !ok {
		return syscall.EINVAL
	}
	if r.conn.rights(old)&(mayWrite|mayOwn) != mayWrite|mayOwn {
		return syscall.EACCES
	}
	s.special[path] = slices.Clone(perms)
	return nil
}

func (s *state) serveTransactionStart(r *request) error {
	if r.tx != nil {
		return syscall.EBUSY // no transaction in a transaction
	}
	c := r.conn
	if c.unprivileged() && c.dom.transactions > s.quota.Transactions {
		return syscall.ENOSPC
	}
	tx := s.begin(c)
	s.answer(r, append(strconv.AppendUint(nil, uint64(tx.id), 10), 0))
	return nil
}

// serveTransactionEnd ends the transaction in any case, unless the request itself is
// malformed.
func (s *state) serveTransactionEnd(r *request) error {
	verdict, ok := oneString(r.payload)
	if !ok || verdict != "T" && verdict != "F" {
		return syscall.EINVAL
	}
	tx := r.tx
	if tx == nil {
		return syscall.ENOENT
	}
	r.tx = nil // the commit's events are sent at once
	defer s.end(tx)
	if verdict == "T" {
		if err := s.commit(r, tx); err != nil {
			return err
		}
	}
	s.ack(r)
	return nil
}

// serveWatch adds a watch. It sends the watch's first event after the reply, even if the
// path does not exist or may not be read.
func (s *state) serveWatch(r *request) error {
	args := allStrings(r.payload)
	if len(args) != 2 {
		return syscall.EINVAL
	}
	c := r.conn
	w := watch{path: c.absolute(args[0]), token: args[1]}
	switch {
	case isSpecial(w.path):
		if len(w.path) > xenstore.MaxRelPath {
			return syscall.EINVAL
		}
	case !validPath(w.path, s.quota.Path):
		return syscall.EINVAL
	case w.path != args[0]:
		w.relative = len(c.home)
	}
	for i := range c.watches {
		if c.watches[i].path == w.path && c.watches[i].token == w.token {
			return syscall.EEXIST
		}
	}
	if c.unprivileged() && c.dom.watches > s.quota.Watches {
		return syscall.E2BIG
	}
	if !s.countWatch(c, &w) {
		return syscall.ENOMEM
	}
	c.watches = append(c.watches, w)
	s.ack(r)
	s.sendEvent(nil, c, w.eventPath(w.path), w.token)
	return nil
}

func (s *state) serveUnwatch(r *request) error {
	args := allStrings(r.payload)
	if len(args) != 2 {
		return syscall.EINVAL
	}
	c := r.conn
	path := c.absolute(args[0])
	for i := range c.watches {
		if w := &c.watches[i]; w.path == path && w.token == args[1] {
			s.uncountWatch(c, w)
			c.watches = slices.Delete(c.watches, i, i+1)
			s.ack(r)
			return nil
		}
	}
	return syscall.ENOENT
}

// serveResetWatches drops watches and transactions: a guest sends it for a clean start
// after a crash kernel or kexec.
func (s *state) serveResetWatches(r *request) error {
	s.dropWatches(r.conn)
	s.dropTransactions(r.conn)
	r.tx = nil
	s.ack(r)
	return nil
}
