// SPDX-License-Identifier: Apache-2.0

package store

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/netbackd/netbackd/pkg/xenstore"
)

// model is the tree by its documentation: values by path, children in the order of their
// creation.
type model struct {
	value    map[string]string
	children map[string][]string
}

func newModel() *model {
	return &model{
		value: map[string]string{"/": "", "/tool": "", "/tool/xenstored": ""},
		children: map[string][]string{
			"/": {"tool"}, "/tool": {"xenstored"}, "/tool/xenstored": nil,
		},
	}
}

func (m *model) make(path string) {
	if _, ok := m.value[path]; ok {
		return
	}
	up := parentOf(path)
	m.make(up)
	m.value[path], m.children[path] = "", nil
	m.children[up] = append(slices.Clone(m.children[up]), leafOf(path))
}

func (m *model) remove(path string) {
	for p := range maps.Clone(m.value) {
		if within(p, path) {
			delete(m.value, p)
			delete(m.children, p)
		}
	}
	up := parentOf(path)
	m.children[up] = slices.DeleteFunc(slices.Clone(m.children[up]), func(c string) bool { return c == leafOf(path) })
}

// do returns the expected reply of the store.
func (m *model) do(op modelOp) string {
	v, exists := m.value[op.path]
	switch op.typ {
	case xenstore.MsgWrite:
		m.make(op.path)
		m.value[op.path] = op.value
		return "OK|"
	case xenstore.MsgMkdir:
		m.make(op.path)
		return "OK|"
	case xenstore.MsgRemove:
		_, above := m.value[parentOf(op.path)]
		switch {
		case op.path == "/":
			return "EINVAL"
		case exists:
			m.remove(op.path)
		case !above:
			return "ENOENT"
		}
		return "OK|"
	case xenstore.MsgDirectory:
		if !exists {
			return "ENOENT"
		}
		return strings.Join(append(slices.Clone(m.children[op.path]), ""), "|")
	default:
		if !exists {
			return "ENOENT"
		}
		return v
	}
}

type modelOp struct {
	typ         xenstore.MessageType
	path, value string
}

func (op modelOp) payload() string {
	if op.typ == xenstore.MsgWrite {
		return op.path + "|" + op.value
	}
	return op.path + "|"
}

// reads reports whether the operation changes nothing.
func (op modelOp) reads() bool {
	return op.typ == xenstore.MsgRead || op.typ == xenstore.MsgDirectory
}

// modelTx records the operations of a transaction and their replies.
type modelTx struct {
	client  *local
	id      uint32
	ops     []modelOp
	replies []string
	since   int // number of changes to the shared tree when it began
}

// TestTransactionsAreAtomic: requests outside transactions behave as the model. A
// transaction that commits got the same replies as if it had run as a whole at the moment
// of its commit. One that does not commit, for EAGAIN or by choice, changes nothing.
// Without changes by others a commit never fails.
func TestTransactionsAreAtomic(t *testing.T) {
	paths := []string{"/", "/a", "/b", "/a/b", "/a/c", "/a/b/c", "/a/b/d", "/b/a", "/tool/xenstored", "/tool/xenstored/x"}
	drawOp := rapid.Custom(func(t *rapid.T) modelOp {
		return modelOp{
			typ: rapid.SampledFrom([]xenstore.MessageType{
				xenstore.MsgRead, xenstore.MsgRead, xenstore.MsgDirectory,
				xenstore.MsgWrite, xenstore.MsgWrite, xenstore.MsgMkdir, xenstore.MsgRemove,
			}).Draw(t, "type"),
			path:  rapid.SampledFrom(paths).Draw(t, "path"),
			value: rapid.SampledFrom([]string{"", "1", "2"}).Draw(t, "value"),
		}
	})
	rapid.Check(t, func(t *rapid.T) {
		s := newState(Quota{})
		clients := []*local{s.local(0), s.local(0)}
		watcher := s.local(0)
		watcher.call(xenstore.MsgWatch, 0, "/|w|")
		m := newModel()
		changes := 0
		var open []*modelTx

		apply := func(t *rapid.T, ops []modelOp, replies []string) {
			for i, op := range ops {
				if want := m.do(op); replies[i] != want {
					t.Fatalf("%v %q: got %q, want %q", op.typ, op.payload(), replies[i], want)
				}
				if !op.reads() {
					changes++
				}
			}
		}
		// noEvents checks that no change was made to the shared tree.
		noEvents := func(t *rapid.T) {
			if len(watcher.c.out) > 0 {
				t.Fatalf("event %q without a change", watcher.c.out[0].key)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"request": func(t *rapid.T) {
				op := drawOp.Draw(t, "op")
				c := rapid.SampledFrom(clients).Draw(t, "client")
				apply(t, []modelOp{op}, []string{c.call(op.typ, 0, op.payload())})
				if op.reads() {
					noEvents(t)
				}
			},
			"begin": func(t *rapid.T) {
				c := rapid.SampledFrom(clients).Draw(t, "client")
				id := strings.TrimSuffix(c.call(xenstore.MsgTransactionStart, 0, "|"), "|")
				open = append(open, &modelTx{client: c, id: atoi(id), since: changes})
			},
			"within": func(t *rapid.T) {
				if len(open) == 0 {
					t.Skip("none open")
				}
				tx := rapid.SampledFrom(open).Draw(t, "tx")
				op := drawOp.Draw(t, "op")
				tx.ops = append(tx.ops, op)
				tx.replies = append(tx.replies, tx.client.call(op.typ, tx.id, op.payload()))
				noEvents(t)
			},
			"end": func(t *rapid.T) {
				if len(open) == 0 {
					t.Skip("none open")
				}
				i := rapid.IntRange(0, len(open)-1).Draw(t, "tx")
				tx := open[i]
				open = slices.Delete(open, i, i+1)
				verdict := rapid.SampledFrom([]string{"T|", "T|", "F|"}).Draw(t, "verdict")
				reply := tx.client.call(xenstore.MsgTransactionEnd, tx.id, verdict)
				switch {
				case reply == "OK|" && verdict == "T|":
					apply(t, tx.ops, tx.replies)
				case reply == "OK|", reply == "EAGAIN" && changes > tx.since:
					noEvents(t)
				default:
					t.Fatalf("end %s: %s after %d changes by others", verdict, reply, changes-tx.since)
				}
			},
			"": func(t *rapid.T) {
				if err := s.check(); err != nil {
					t.Fatal(err)
				}
				watcher.drain()
				for path, n := range s.nodes {
					if v, ok := m.value[path]; !ok || v != n.value {
						t.Fatalf("%s is %q, want %q (%v)", path, n.value, v, ok)
					}
				}
				if len(s.nodes) != len(m.value) {
					t.Fatalf("%d nodes, want %d", len(s.nodes), len(m.value))
				}
			},
		})
	})
}
