// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"errors"
	"fmt"

	"github.com/netbackd/netbackd/pkg/xenbus"
)

// ErrCtrlRing: the guest has said through its control ring how to spread packets over
// the queues, and which pages stay mapped. It says that once, so that a change of back
// ends loses it.
var ErrCtrlRing = errors.New("its guest has a control ring, and would not tell another back end what it has settled there")

// ctrlRingKey is the frontend's key by which it has a control ring.
const ctrlRingKey = "ctrl-ring-ref"

// CanTakeOver reports what stands against serving the vif in the backend
// directory at path, whose guest may be connected to another back end: nil, or an
// error that says what it is. MaxQueues is as in Config.
func CanTakeOver(s Store, path string, maxQueues int) error {
	n, err := readNodes(s, path)
	if err != nil {
		return err
	}
	switch n.state {
	case xenbus.Initialising, xenbus.InitWait, xenbus.Connected, xenbus.Reconfigured:
	default:
		return fmt.Errorf("%w: it is %v", ErrNotOpen, n.state)
	}
	k := keyReader{r: guestNodes{s}, dir: n.front}
	state, _ := k.get("state")
	if front, err := xenbus.ParseState(state); k.err != nil || err != nil || front != xenbus.Connected && front != xenbus.Reconfiguring {
		return k.err // nothing is settled yet
	}
	if _, has := k.get(ctrlRingKey); has {
		return ErrCtrlRing
	}
	if k.err != nil {
		return k.err
	}
	_, err = readFrontend(s, n.front, max(n.offeredQueues(), maxQueues), 0)
	return err
}
