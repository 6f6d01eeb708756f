// SPDX-License-Identifier: Apache-2.0

package ctrlserver

import (
	"fmt"

	"github.com/netbackd/netbackd/pkg/ctrlring"
)

// Protocols is the set of control ring protocols that a vif offers. A frontend uses the
// same xenstore keys for both and does not say which one it uses. If both are offered, the
// backend finds out from the ring page.
type Protocols uint8

// Members of the set.
const (
	Slot   Protocols = 1 << iota // feature-ctrl-ring: the ring of slots in Xen's netif.h
	Stream                       // feature-control-ring: the byte streams proposed before it
)

// Words are the values that [ParseProtocols] accepts, for messages.
const Words = "slot, stream, both or none"

// ParseProtocols parses a set, in the form that String returns.
func ParseProtocols(s string) (Protocols, error) {
	for p := range Slot | Stream + 1 {
		if p.String() == s {
			return p, nil
		}
	}
	return 0, fmt.Errorf("control ring %q: want %s", s, Words)
}

func (p Protocols) String() string {
	switch p {
	case 0:
		return "none"
	case Slot:
		return ctrlring.Slot.String()
	case Stream:
		return ctrlring.Stream.String()
	case Slot | Stream:
		return "both"
	}
	return fmt.Sprintf("unknown(%d)", uint8(p))
}

// only returns the protocol of a set that has just one.
func (p Protocols) only() (_ ctrlring.Protocol, ok bool) {
	switch p {
	case Slot:
		return ctrlring.Slot, true
	case Stream:
		return ctrlring.Stream, true
	}
	return 0, false
}
