// SPDX-License-Identifier: Apache-2.0

package store

import (
	"fmt"
	"slices"
	"strings"

	"github.com/netbackd/netbackd/pkg/xenstore"
)

// local is a client that calls a state directly, without a connection and goroutines.
type local struct {
	s      *state
	c      *conn
	events []string
}

func (s *state) local(domid uint32) *local {
	if domid == 0 {
		return &local{s: s, c: s.newConn(nil)}
	}
	return &local{s: s, c: s.newConn(s.domains[domid])}
}

// call serves one request and returns its reply as client.try does. | is NUL.
func (l *local) call(typ xenstore.MessageType, tx uint32, payload string) string {
	replies := l.serve(xenstore.Header{Type: typ, TxID: tx}, []byte(strings.ReplaceAll(payload, "|", "\x00")))
	if len(replies) != 1 {
		panic(fmt.Sprintf("%v %q: %d replies", typ, payload, len(replies)))
	}
	return replies[0]
}

// drain takes all messages in the queue.
func (l *local) drain() {
	for len(l.c.out) > 0 {
		l.s.written(l.c)
	}
}

// serve serves one request and takes its replies and events.
func (l *local) serve(h xenstore.Header, payload []byte) (replies []string) {
	l.drain()
	l.s.serve(l.c, h, payload)
	for len(l.c.out) > 0 {
		m := l.c.out[0].wire
		reply, err := xenstore.DecodeHeader(m)
		if err != nil {
			panic(err)
		}
		text := strings.ReplaceAll(string(m[xenstore.HeaderSize:]), "\x00", "|")
		switch {
		case int(reply.Len) != len(m)-xenstore.HeaderSize:
			panic(fmt.Sprintf("%+v before %d bytes", reply, len(m)-xenstore.HeaderSize))
		case reply.Type == xenstore.MsgWatchEvent:
			l.events = append(l.events, text)
		case reply.ReqID != h.ReqID || reply.TxID != h.TxID || reply.Type != h.Type && reply.Type != xenstore.MsgError:
			panic(fmt.Sprintf("reply %+v to %+v", reply, h))
		case reply.Type == xenstore.MsgError:
			replies = append(replies, strings.TrimSuffix(text, "|"))
		default:
			replies = append(replies, text)
		}
		l.s.written(l.c)
	}
	return replies
}

// check returns an error if the store is inconsistent: if a parent does not list a node, or
// an account is wrong.
func (s *state) check() error {
	type account struct{ nodes, memory, watches, transactions int }
	want := map[uint32]*account{}
	for id := range s.domains {
		want[id] = &account{}
	}
	for path, n := range s.nodes {
		up := s.nodes[parentOf(path)]
		if up == nil || path != "/" && !slices.Contains(strings.Split(up.children, "\x00"), leafOf(path)) {
			return fmt.Errorf("%s is not listed", path)
		}
		seen := map[string]bool{}
		n.eachChild(func(leaf string) bool {
			if seen[leaf] || s.nodes[join(path, leaf)] == nil {
				panic(fmt.Sprintf("%s lists %q wrongly", path, leaf))
			}
			seen[leaf] = true
			return true
		})
		if n.generation > s.generation {
			return fmt.Errorf("%s is of the future", path)
		}
		a := want[n.owner()]
		if a == nil {
			return fmt.Errorf("%s is owned by %d, which does not exist", path, n.owner())
		}
		a.nodes++
		a.memory += n.recordSize() + len(path)
	}
	open := 0
	for _, c := range s.conns {
		a := want[c.domid()]
		open += len(c.transactions)
		for _, tx := range c.transactions {
			a.memory += tx.memory
			sum := 0
			for _, x := range tx.order {
				sum += tx.recordSize(x)
			}
			if sum != tx.memory {
				return fmt.Errorf("transaction %d has %d bytes, says %d", tx.id, sum, tx.memory)
			}
		}
		queued := 0
		for _, m := range c.out {
			queued += len(m.wire)
		}
		if queued != c.queued {
			return fmt.Errorf("%d bytes queued, says %d", queued, c.queued)
		}
		a.memory += queued
		for _, w := range c.watches {
			a.memory += len(w.path) + len(w.token)
		}
		if c.dom != nil {
			a.watches += len(c.watches)
			a.transactions += len(c.transactions)
		}
	}
	if open != s.transactions {
		return fmt.Errorf("%d transactions are open, says %d", open, s.transactions)
	}
	for id, d := range s.domains {
		got := account{d.nodes, d.memory, d.watches, d.transactions}
		if got != *want[id] {
			return fmt.Errorf("domain %d: has %+v, says %+v", id, *want[id], got)
		}
	}
	return nil
}
