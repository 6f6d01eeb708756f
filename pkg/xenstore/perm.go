// SPDX-License-Identifier: Apache-2.0

package xenstore

import (
	"fmt"
	"strconv"

	"github.com/netbackd/netbackd/pkg/xen"
)

// Access is the access that a Perm grants: enum xs_perm_type. The zero value is none.
type Access uint8

// The kinds of access. AccessBoth is the union of the other two.
const (
	AccessNone  Access = 0
	AccessRead  Access = 1
	AccessWrite Access = 2
	AccessBoth  Access = AccessRead | AccessWrite
)

// String returns the letter on the wire: n, r, w or b.
func (a Access) String() string {
	return "nrwb"[a&AccessBoth : a&AccessBoth+1]
}

// Perm is one entry of a node's permission list.
//
// The first entry of a list is special. Its domain owns the node and may do anything.
// Its access is that of every domain that the list does not name. So a node with
// [n0 r5] is owned by domain 0, domain 5 may read it, and others may not.
type Perm struct {
	Access Access
	Domid  xen.Domid
}

// String returns the form on the wire, for example "r5".
func (p Perm) String() string {
	return p.Access.String() + strconv.FormatUint(uint64(p.Domid), 10)
}

// ParsePerm parses a text that Perm.String has returned.
func ParsePerm(s string) (Perm, error) {
	if s == "" {
		return Perm{}, fmt.Errorf("permission %q: empty", s)
	}
	var p Perm
	switch s[0] {
	case 'n':
		p.Access = AccessNone
	case 'r':
		p.Access = AccessRead
	case 'w':
		p.Access = AccessWrite
	case 'b':
		p.Access = AccessBoth
	default:
		return Perm{}, fmt.Errorf("permission %q: starts with none of n, r, w, b", s)
	}
	domid, err := strconv.ParseUint(s[1:], 10, 16)
	if err != nil {
		return Perm{}, fmt.Errorf("permission %q: no domain id behind the letter", s)
	}
	p.Domid = xen.Domid(domid)
	return p, nil
}
