// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"errors"
	"fmt"
)

// What a guest may have settled with another back end that would be lost.
var (
	// ErrCtrlRing: the guest has told the other back end through its control ring
	// how to spread packets over the queues. It would not say so again.
	ErrCtrlRing = errors.New("its guest has a control ring with the other back end")
	// ErrXDP: the guest has had the other back end leave room before each packet.
	ErrXDP = errors.New("its guest runs an XDP program on the interface and needs room before each packet")
)

// CanTakeOver reports what stands against serving the vif in the backend
// directory at path, whose guest may be connected to another back end: nil, or an
// error that says what it is. MaxQueues is as in Config.
func CanTakeOver(s Store, path string, maxQueues int) error {
	n, err := readNodes(s, path)
	if err != nil {
		return err
	}
	switch n.state {
	case Initialising, InitWait, Connected:
	default:
		return fmt.Errorf("%w: it is %v", ErrNotOpen, n.state)
	}
	k := keyReader{r: s, dir: n.front}
	state, _ := k.get("state")
	if front, err := parseState(state); k.err != nil || err != nil || front != Connected {
		return k.err // nothing is settled yet
	}
	if _, has := k.get("ctrl-ring-ref"); has {
		return ErrCtrlRing
	}
	if room, has := k.get("xdp-headroom"); has && room != "0" {
		return ErrXDP
	}
	if k.err != nil {
		return k.err
	}
	_, err = readFrontend(s, n.front, max(n.offeredQueues(), maxQueues))
	return err
}
