// SPDX-License-Identifier: Apache-2.0

package xenstore

import (
	"context"
	"strconv"
	"strings"

	"github.com/netbackd/netbackd/pkg/xen"
)

// IsIntroduced reports whether xenstored serves a domain: it was introduced, it was
// not released, and it exists.
func (c *Client) IsIntroduced(ctx context.Context, domid xen.Domid) (bool, error) {
	b, err := c.call(ctx, MsgIsDomainIntroduced, 0, "", AppendStrings(nil, decimal(domid)))
	if err != nil {
		return false, err
	}
	switch strings.TrimSuffix(string(b), "\x00") {
	case "T":
		return true, nil
	case "F":
		return false, nil
	}
	return false, badReply(MsgIsDomainIntroduced, "", b)
}

// Introduce makes xenstored serve a domain through its ring, which is the page gfn of
// the domain, and through port, an unbound event channel of the domain. It is for
// toolstacks only, like Release.
func (c *Client) Introduce(ctx context.Context, domid xen.Domid, gfn uint64, port uint32) error {
	// The page number is a signed decimal on the wire.
	return c.domain(ctx, MsgIntroduce, decimal(domid), strconv.FormatInt(int64(gfn), 10), decimal(port))
}

// Release makes xenstored stop serving a domain.
func (c *Client) Release(ctx context.Context, domid xen.Domid) error {
	return c.domain(ctx, MsgRelease, decimal(domid))
}

// domain sends a request whose answer is OK.
func (c *Client) domain(ctx context.Context, typ MessageType, args ...string) error {
	_, err := c.call(ctx, typ, 0, "", AppendStrings(nil, args...))
	return err
}

func decimal[T xen.Domid | uint32](n T) string {
	return strconv.FormatUint(uint64(n), 10)
}
