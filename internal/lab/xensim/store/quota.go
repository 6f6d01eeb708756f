// SPDX-License-Identifier: Apache-2.0

package store

import (
	"cmp"
	"math"
	"time"
)

// Quota holds the limits of an unprivileged domain. Domain 0 and the socket
// are exempt. A field that is 0 stands for xenstored's default, a negative one
// for no limit.
//
// The comparisons are those of xenstored, which differ from each other: a domain
// gets Watches+1 watches and Transactions+1 transactions, and a record
// must be shorter than NodeSize.
type Quota struct {
	Nodes            int // nodes a domain owns; 1000
	Watches          int // watches a domain has; 128
	Transactions     int // transactions a domain has open; 10
	Outstanding      int // requests whose reply or events are not yet taken; 20
	TransactionNodes int // nodes touched in one transaction; 1024
	Memory           int // bytes kept for a domain; 2.5 MiB
	NodeSize         int // bytes of a node's record: value, children and permissions; 2048
	Path             int // bytes of a path below /local/domain/<domid>/; 2048, and no more
	Perms            int // entries of a permission list; 5

	// WriteRate is the rate, in writes per second over all domains, at which
	// domains may write while any transaction is open; 200. It keeps guests
	// from making the transactions of all others fail forever.
	WriteRate int

	// EventTimeout is the time a watch event waits for a domain that does not
	// read; 20 s.
	EventTimeout time.Duration
}

// withDefaults fills in the defaults of xenstored_core.c.
func (q Quota) withDefaults() Quota {
	for _, f := range []struct {
		v   *int
		def int
	}{
		{&q.Nodes, 1000},
		{&q.Watches, 128},
		{&q.Transactions, 10},
		{&q.Outstanding, 20},
		{&q.TransactionNodes, 1024},
		{&q.Memory, 2*1024*1024 + 512*1024},
		{&q.NodeSize, 2048},
		{&q.Path, maxPath},
		{&q.Perms, 5},
		{&q.WriteRate, 200},
	} {
		if *f.v = cmp.Or(*f.v, f.def); *f.v < 0 {
			*f.v = math.MaxInt
		}
	}
	// A longer path is refused in any case, as by option -M.
	q.Path = min(q.Path, maxPath)
	if q.EventTimeout == 0 {
		q.EventTimeout = 20 * time.Second
	}
	return q
}

// charge adds bytes to the memory kept for a domain. With check it returns false if that
// exceeds the quota of an unprivileged domain.
func (s *state) charge(domid uint32, bytes int, check bool) bool {
	d := s.domains[domid]
	if d == nil {
		return true
	}
	if check && d.unprivileged() && d.memory+bytes >= s.quota.Memory {
		return false
	}
	d.memory += bytes
	return true
}
