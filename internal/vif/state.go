// SPDX-License-Identifier: Apache-2.0

package vif

import "fmt"

// State is the state of one end of a device, enum xenbus_state of io/xenbus.h.
// In xenstore it is the number, in decimal.
type State int

// States.
const (
	Unknown       State = 0 // the node is not there
	Initialising  State = 1
	InitWait      State = 2
	Initialised   State = 3
	Connected     State = 4
	Closing       State = 5
	Closed        State = 6
	Reconfiguring State = 7
	Reconfigured  State = 8
)

var stateNames = [...]string{
	"unknown", "initialising", "init-wait", "initialised", "connected",
	"closing", "closed", "reconfiguring", "reconfigured",
}

func (s State) String() string {
	if s >= 0 && int(s) < len(stateNames) {
		return stateNames[s]
	}
	return fmt.Sprintf("unknown(%d)", int(s))
}

// MarshalText gives the state its name in JSON.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText is the inverse of MarshalText.
func (s *State) UnmarshalText(b []byte) error {
	for i, n := range stateNames {
		if n == string(b) {
			*s = State(i)
			return nil
		}
	}
	return fmt.Errorf("unknown device state %q", b)
}
