// SPDX-License-Identifier: Apache-2.0

package store

import (
	"fmt"
	"strings"
	"syscall"

	"github.com/netbackd/netbackd/pkg/xenstore"
)

// serveControl implements the commands of xenstored that apply here: there is no log
// file, no live update and no allocator report.
func (s *state) serveControl(r *request) error {
	args := allStrings(r.payload)
	if len(args) == 0 {
		return syscall.EINVAL
	}
	switch cmd, args := args[0], args[1:]; {
	case cmd == "help" && len(args) == 0:
		s.answer(r, xenstore.AppendStrings(nil,
			"check\t\nprint\t<string>\nquota\t[set <name> <val>|<domid>]\nhelp\t\n"))
	case cmd == "check" && len(args) == 0, cmd == "print" && len(args) == 1:
		s.ack(r)
	case cmd == "quota":
		return s.controlQuota(r, args)
	default:
		return syscall.EINVAL
	}
	return nil
}

// named lists the quotas by the names CONTROL has for them.
func (q *Quota) named() []namedQuota {
	return []namedQuota{
		{"nodes", &q.Nodes, "nodes of a domain"},
		{"watches", &q.Watches, "watches of a domain"},
		{"transactions", &q.Transactions, "open transactions of a domain"},
		{"outstanding", &q.Outstanding, "unfinished requests of a domain"},
		{"transaction-nodes", &q.TransactionNodes, "nodes touched by a transaction"},
		{"memory", &q.Memory, "bytes kept for a domain"},
		{"node-size", &q.NodeSize, "bytes of a node"},
		{"path-max", &q.Path, "bytes of a path"},
		{"permissions", &q.Perms, "permissions of a node"},
	}
}

type namedQuota struct {
	name  string
	value *int
	about string
}

// controlQuota shows all quotas, sets one, or shows the use of a domain.
func (s *state) controlQuota(r *request, args []string) error {
	var b strings.Builder
	switch {
	case len(args) == 0:
		b.WriteString("Quota settings:\n")
		for _, q := range s.quota.named() {
			fmt.Fprintf(&b, "%-17s: %8d %s\n", q.name, *q.value, q.about)
		}
	case args[0] == "set":
		return s.setQuota(r, args[1:])
	case len(args) == 1:
		d := s.domains[atoi(args[0])]
		if d == nil {
			return syscall.ENOENT
		}
		fmt.Fprintf(&b, "Domain %d:\n", d.id)
		for _, use := range []struct {
			name  string
			value int
		}{
			{"nodes", d.nodes},
			{"watches", d.watches},
			{"transactions", d.transactions},
			{"outstanding", d.outstanding},
			{"memory", d.memory},
		} {
			fmt.Fprintf(&b, "%-16s: %8d\n", use.name, use.value)
		}
	default:
		return syscall.EINVAL
	}
	s.answer(r, xenstore.AppendStrings(nil, b.String()))
	return nil
}

func (s *state) setQuota(r *request, args []string) error {
	if len(args) != 2 || int32(atoi(args[1])) < 1 {
		return syscall.EINVAL
	}
	for _, q := range s.quota.named() {
		if q.name == args[0] {
			*q.value = int(atoi(args[1]))
			s.ack(r)
			return nil
		}
	}
	return syscall.EINVAL
}
