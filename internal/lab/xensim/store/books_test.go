// SPDX-License-Identifier: Apache-2.0

package store

import (
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/netbackd/netbackd/pkg/xenstore"
)

// TestCountsStayRight: guests and tools send any requests, domains are created and
// destroyed, quotas are hit, and clients do not read. Every request is answered, no guest
// exceeds a quota, and the store's counts are correct.
func TestCountsStayRight(t *testing.T) {
	quota := Quota{Nodes: 8, Watches: 3, Transactions: 2, TransactionNodes: 12, NodeSize: 200, Perms: 3, Memory: 4096}
	rapid.Check(t, func(t *rapid.T) {
		s := newState(quota)
		for id := uint32(5); id <= 7; id++ {
			s.created(id)
			s.introduce(s.domains[id])
		}
		tool := s.local(0)
		clients := []*local{tool, s.local(0), s.local(5), s.local(6)}
		home := func(id string) {
			tool.call(xenstore.MsgMkdir, 0, "/local/domain/"+id+"|")
			tool.call(xenstore.MsgSetPerms, 0, "/local/domain/"+id+"|n"+id+"|r6|")
		}
		home("5")
		home("6")

		pick := func(t *rapid.T, what string, from ...string) string {
			return rapid.SampledFrom(from).Draw(t, what)
		}
		path := func(t *rapid.T) string {
			return pick(t, "path", "/", "/a", "/a/b", "/a/b/c", "/tool", "a", "a/b", "a/b/c", "b", "c", "d/e/f/g",
				"/local/domain", "/local/domain/5", "/local/domain/5/a", "/local/domain/6/a/b", "@releaseDomain", "bad/")
		}
		request := func(t *rapid.T) (xenstore.MessageType, string) {
			typ := rapid.SampledFrom([]xenstore.MessageType{
				xenstore.MsgRead, xenstore.MsgDirectory, xenstore.MsgGetPerms, xenstore.MsgDirectoryPart,
				xenstore.MsgWrite, xenstore.MsgWrite, xenstore.MsgWrite, xenstore.MsgMkdir, xenstore.MsgRemove,
				xenstore.MsgSetPerms, xenstore.MsgWatch, xenstore.MsgUnwatch, xenstore.MsgResetWatches,
				xenstore.MsgTransactionStart, xenstore.MsgTransactionStart, xenstore.MsgTransactionEnd, xenstore.MsgTransactionEnd,
				xenstore.MsgIntroduce, xenstore.MsgSetTarget, xenstore.MsgRestrict,
			}).Draw(t, "type")
			switch typ {
			case xenstore.MsgWrite:
				return typ, path(t) + "|" + strings.Repeat("x", rapid.IntRange(0, 220).Draw(t, "size"))
			case xenstore.MsgSetPerms:
				p := path(t) + "|"
				for range rapid.IntRange(1, 4).Draw(t, "perms") {
					p += pick(t, "access", "n", "r", "w", "b") + pick(t, "domid", "0", "5", "6", "7", "9") + "|"
				}
				return typ, p
			case xenstore.MsgWatch, xenstore.MsgUnwatch:
				return typ, path(t) + "|" + pick(t, "token", "t", "u") + "|"
			case xenstore.MsgDirectoryPart:
				return typ, path(t) + "|" + pick(t, "offset", "0", "3", "-1") + "|"
			case xenstore.MsgTransactionStart, xenstore.MsgResetWatches:
				return typ, "|"
			case xenstore.MsgTransactionEnd:
				return typ, pick(t, "verdict", "T", "T", "F", "X") + "|"
			case xenstore.MsgIntroduce:
				return typ, pick(t, "domid", "5", "6", "7", "9") + "|1|1|"
			case xenstore.MsgSetTarget:
				return typ, pick(t, "domid", "5", "6") + "|" + pick(t, "target", "5", "6", "7") + "|"
			}
			return typ, path(t) + "|"
		}
		// txOf is the id of an open transaction of c, or one that may not be.
		txOf := func(t *rapid.T, c *conn) uint32 {
			return uint32(rapid.IntRange(0, int(c.nextTx)).Draw(t, "tx"))
		}

		t.Repeat(map[string]func(*rapid.T){
			"request": func(t *rapid.T) {
				l := rapid.SampledFrom(clients).Draw(t, "client")
				typ, payload := request(t)
				l.call(typ, txOf(t, l.c), payload)
			},
			"request without reading": func(t *rapid.T) {
				l := rapid.SampledFrom(clients).Draw(t, "client")
				typ, payload := request(t)
				before := len(l.c.out)
				h := xenstore.Header{Type: typ, TxID: txOf(t, l.c)}
				if ok, _ := s.mayBeRead(l.c, s.now()); !ok {
					t.Skip("not its turn")
				}
				s.serve(l.c, h, []byte(strings.ReplaceAll(payload, "|", "\x00")))
				if len(l.c.out) == before && typ != xenstore.MsgIntroduce && typ != xenstore.MsgRelease {
					t.Fatalf("%v %q was not answered", typ, payload)
				}
			},
			"read everything": func(t *rapid.T) {
				rapid.SampledFrom(clients).Draw(t, "client").drain()
			},
			"hang up": func(t *rapid.T) {
				i := rapid.IntRange(1, len(clients)-1).Draw(t, "client")
				l := clients[i]
				s.kill(l.c, ErrClosed)
				s.bury()
				clients[i] = &local{s: s, c: s.newConn(l.c.dom)}
			},
			"die": func(t *rapid.T) {
				id := rapid.IntRange(5, 7).Draw(t, "domid")
				s.died(s.domains[uint32(id)], ErrDomainDied)
				s.bury()
				if err := s.check(); err != nil {
					t.Fatal(err)
				}
				s.created(uint32(id))
				s.introduce(s.domains[uint32(id)])
				for i, l := range clients {
					if l.c.dead != nil {
						clients[i] = s.local(uint32(id))
					}
				}
				if id != 7 {
					home(strconv.Itoa(id))
				}
			},
			"": func(t *rapid.T) {
				if err := s.check(); err != nil {
					t.Fatal(err)
				}
				for _, d := range s.domains {
					idle := true
					for _, c := range s.conns {
						idle = idle && len(c.out) == 0
					}
					switch {
					case d.outstanding < 0 || idle && d.outstanding != 0:
						t.Fatalf("domain %d has %d requests outstanding", d.id, d.outstanding)
					case d.id != 0 && (d.watches > quota.Watches+1 || d.transactions > quota.Transactions+1):
						t.Fatalf("domain %d has %d watches and %d transactions", d.id, d.watches, d.transactions)
					}
				}
			},
		})
	})
}
