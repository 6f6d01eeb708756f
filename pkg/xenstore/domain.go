// SPDX-License-Identifier: Apache-2.0

package xenstore

import (
	"strconv"
	"strings"

	"github.com/netbackd/netbackd/pkg/xen"
)

// IsIntroduced reports whether xenstored serves a domain: it was introduced and
// has neither been released nor ceased to exist.
func (c *Client) IsIntroduced(domid xen.Domid) (bool, error) {
	s, err := c.text(MsgIsDomainIntroduced, decimal(domid))
	if err != nil {
		return false, err
	}
	switch s {
	case "T":
		return true, nil
	case "F":
		return false, nil
	}
	return false, badReply(MsgIsDomainIntroduced, "", []byte(s))
}

// Introduce makes xenstored serve a domain through its ring, the page gfn of the
// domain, and through port, an unbound event channel of the domain. For
// toolstacks only, like the requests below.
func (c *Client) Introduce(domid xen.Domid, gfn uint64, port uint32) error {
	// The page number is a signed decimal on the wire.
	return c.domain(MsgIntroduce, decimal(domid), strconv.FormatInt(int64(gfn), 10), decimal(port))
}

// Release makes xenstored give up a domain.
func (c *Client) Release(domid xen.Domid) error {
	return c.domain(MsgRelease, decimal(domid))
}

// domain sends a request that is answered with a mere OK.
func (c *Client) domain(typ MessageType, args ...string) error {
	_, err := c.call(typ, 0, "", AppendStrings(nil, args...))
	return err
}

// text sends a request that is answered with one string.
func (c *Client) text(typ MessageType, args ...string) (string, error) {
	b, err := c.call(typ, 0, "", AppendStrings(nil, args...))
	return strings.TrimSuffix(string(b), "\x00"), err
}

func decimal[T xen.Domid | uint32](n T) string {
	return strconv.FormatUint(uint64(n), 10)
}
