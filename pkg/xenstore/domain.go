// SPDX-License-Identifier: Apache-2.0

package xenstore

import (
	"strconv"
	"strings"

	"github.com/netbackd/netbackd/pkg/xen"
)

// Features of an xenstored, XENSTORE_SERVER_FEATURE_* of xs_wire.h.
const (
	FeatureReconnection = 1 << 0 // a domain can re-attach its ring
	FeatureError        = 1 << 1 // a ring tells why it was given up
	FeatureWatchDepth   = 1 << 2 // WATCH takes a depth, ReleaseDomain a domid
)

// DomainPath asks xenstored for the home of a domain.
func (c *Client) DomainPath(domid xen.Domid) (string, error) {
	return c.text(MsgGetDomainPath, decimal(domid))
}

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

// Resume makes a domain that was shut down once fire ReleaseDomain again.
func (c *Client) Resume(domid xen.Domid) error {
	return c.domain(MsgResume, decimal(domid))
}

// SetTarget gives a domain the rights of another one, its target.
func (c *Client) SetTarget(domid, target xen.Domid) error {
	return c.domain(MsgSetTarget, decimal(domid), decimal(target))
}

// ResetWatches makes xenstored drop all watches and transactions of the
// connection. All Watches of the Client are closed. It must not be called while
// a Watch or a Transaction is being started.
//
// It is refused on Xenbus with ErrNotSupported: there the connection is the
// kernel's, and its drivers would lose their watches.
func (c *Client) ResetWatches() error {
	if c.kind == Xenbus {
		return &Error{Op: MsgResetWatches.String(), Err: ErrNotSupported}
	}
	if err := c.domain(MsgResetWatches, ""); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for token, w := range c.watches {
		delete(c.watches, token)
		close(w.ch)
	}
	return nil
}

// Control sends a command with its arguments to xenstored and returns the
// answer. The commands differ between implementations; "help" lists them.
func (c *Client) Control(command string, args ...string) (string, error) {
	return c.text(MsgControl, append([]string{command}, args...)...)
}

// Features returns what xenstored can do, a union of Feature constants. An
// xenstored that does not know the request is ErrNotSupported.
func (c *Client) Features() (uint32, error) {
	return c.features()
}

// DomainFeatures returns what xenstored offers to a domain.
func (c *Client) DomainFeatures(domid xen.Domid) (uint32, error) {
	return c.features(decimal(domid))
}

// SetDomainFeatures limits what xenstored offers to a domain. The domain must
// not have been introduced yet.
func (c *Client) SetDomainFeatures(domid xen.Domid, features uint32) error {
	return c.domain(MsgSetFeature, decimal(domid), decimal(features))
}

func (c *Client) features(args ...string) (uint32, error) {
	s, err := c.text(MsgGetFeature, args...)
	if err != nil {
		return 0, err
	}
	f, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		return 0, badReply(MsgGetFeature, "", []byte(s))
	}
	return uint32(f), nil
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
