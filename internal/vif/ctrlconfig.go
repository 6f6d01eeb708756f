// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"fmt"

	"github.com/netbackd/netbackd/pkg/ctrlring"
	"github.com/netbackd/netbackd/pkg/staticgrant"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// ControlRings is which control ring protocols a vif offers. A frontend uses the
// same keys for both and does not say which it means; if both are offered the
// backend finds out from its page.
type ControlRings uint8

// Protocols a vif can offer.
const (
	ControlSlot   ControlRings = 1 << iota // feature-ctrl-ring: the ring of slots in Xen's netif.h
	ControlStream                          // feature-control-ring: the byte streams proposed before it
)

// ParseControlRings is the inverse of String.
func ParseControlRings(s string) (c ControlRings, err error) {
	switch s {
	case "none":
		return 0, nil
	case "both":
		return ControlSlot | ControlStream, nil
	case ctrlring.Slot.String():
		return ControlSlot, nil
	case ctrlring.Stream.String():
		return ControlStream, nil
	}
	return 0, fmt.Errorf("control ring %q: want slot, stream, both or none", s)
}

func (c ControlRings) String() string {
	switch c {
	case 0:
		return "none"
	case ControlSlot:
		return ctrlring.Slot.String()
	case ControlStream:
		return ctrlring.Stream.String()
	case ControlSlot | ControlStream:
		return "both"
	}
	return fmt.Sprintf("unknown(%d)", uint8(c))
}

// only is the protocol that was offered, if it was one.
func (c ControlRings) only() (p ctrlring.Protocol, ok bool) {
	switch c {
	case ControlSlot:
		return ctrlring.Slot, true
	case ControlStream:
		return ctrlring.Stream, true
	}
	return 0, false
}

// controlKey is a key of the backend's directory by which the toolstack chooses
// what one vif offers, in the words of [ParseControlRings].
const controlKey = "control-ring"

// controlRings is what the vif is to offer.
func (v *Vif) controlRings() ControlRings {
	if text := v.nodes.control; text != "" {
		c, err := ParseControlRings(text)
		if err == nil {
			return c
		}
		v.fail(&xenbus.KeyError{Key: controlKey, Value: text, Want: "slot, stream, both or none"})
	}
	return v.cfg.ControlRings
}

// offered is what a directory says that the backend, perhaps a predecessor,
// offered.
func (n *nodes) offered() (c ControlRings) {
	if n.slotRing == "1" {
		c |= ControlSlot
	}
	if n.streamRing == "1" {
		c |= ControlStream
	}
	return c
}

// StaticGrants bounds the pages that guests have us keep mapped.
type StaticGrants struct {
	PerQueue int                 // 0: static grants are not supported
	Budget   *staticgrant.Budget // of all vifs of the guest; nil: without bounds
}

// typeNames lists the hash types of a mask, for people.
func typeNames(types uint32) []string {
	names := []string{}
	for i, name := range [...]string{"ipv4", "ipv4-tcp", "ipv6", "ipv6-tcp"} {
		if types&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return names
}
