// SPDX-License-Identifier: Apache-2.0

package store

import (
	"slices"
	"strconv"
	"syscall"

	"github.com/netbackd/netbackd/pkg/xenstore"
)

// perm is one entry of a permission list. The first entry of a list names the owner. Its
// access applies to every domain without an entry of its own.
type perm struct {
	domid  uint32 // as sent: need not be a domid Xen could ever give
	access xenstore.Access

	// void: the entry is older than the present domain of the number, or there
	// is no such domain. It is listed but grants no access.
	void bool
}

// rights lists the operations that a connection may make on a node.
type rights uint8

const (
	mayRead rights = 1 << iota
	mayWrite
	mayOwn // change the permissions

	mayAll = mayRead | mayWrite | mayOwn
)

func (p perm) rights() rights {
	var r rights
	if p.access&xenstore.AccessRead != 0 {
		r |= mayRead
	}
	if p.access&xenstore.AccessWrite != 0 {
		r |= mayWrite
	}
	return r
}

// rights returns the rights of c by a permission list.
func (c *conn) rights(perms []perm) rights {
	if !c.unprivileged() || c.actsFor(perms[0].domid) {
		return mayAll
	}
	for _, p := range perms[1:] {
		if !p.void && c.actsFor(p.domid) {
			return p.rights()
		}
	}
	return perms[0].rights()
}

// parsePerms reads the strings of a SET_PERMS request.
func parsePerms(ss []string) ([]perm, error) {
	perms := make([]perm, len(ss))
	for i, s := range ss {
		if len(s) < 2 {
			return nil, syscall.EINVAL
		}
		switch s[0] {
		case 'n':
			perms[i].access = xenstore.AccessNone
		case 'r':
			perms[i].access = xenstore.AccessRead
		case 'w':
			perms[i].access = xenstore.AccessWrite
		case 'b':
			perms[i].access = xenstore.AccessBoth
		default:
			return nil, syscall.EINVAL
		}
		domid, rest := strtol(s[1:], 0)
		if rest != "" {
			return nil, syscall.EINVAL
		}
		perms[i].domid = uint32(domid)
	}
	return perms, nil
}

// appendPerms appends the strings of a GET_PERMS reply.
func appendPerms(b []byte, perms []perm) []byte {
	for _, p := range perms {
		b = append(b, p.access.String()...)
		b = strconv.AppendInt(b, int64(int32(p.domid)), 10)
		b = append(b, 0)
	}
	return b
}

// withoutDomain removes a domain that is gone from a list. Domain 0 becomes the owner of
// its nodes.
func withoutDomain(perms []perm, domid uint32) []perm {
	out := slices.Clone(perms)
	if out[0].domid == domid {
		out[0].domid = 0
	}
	return append(out[:1], slices.DeleteFunc(out[1:], func(p perm) bool { return p.domid == domid })...)
}
