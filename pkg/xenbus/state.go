// SPDX-License-Identifier: Apache-2.0

package xenbus

import (
	"fmt"
	"strconv"
)

// State is the state of one end of a device: enum xenbus_state of Xen's
// io/xenbus.h.
type State int

// States of a device. Unknown stands for a state node that does not exist.
const (
	Unknown       State = 0
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

// String returns the state's name in lower case, such as "init-wait".
func (s State) String() string {
	if s >= 0 && int(s) < len(stateNames) {
		return stateNames[s]
	}
	return fmt.Sprintf("unknown(%d)", int(s))
}

// Value returns what a state node holds for s: its number, in decimal.
func (s State) Value() string { return strconv.Itoa(int(s)) }

// ParseState parses the value of a state node. Numbers outside of enum
// xenbus_state are an error.
func ParseState(value string) (State, error) {
	n, err := strconv.ParseUint(value, 10, 64)
	if err != nil || n > uint64(Reconfigured) {
		return Unknown, &KeyError{Key: "state", Value: value, Want: "a number from 0 to 8"}
	}
	return State(n), nil
}

// MarshalText returns the state's name, for JSON.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText parses what MarshalText returned.
func (s *State) UnmarshalText(b []byte) error {
	for i, n := range stateNames {
		if n == string(b) {
			*s = State(i)
			return nil
		}
	}
	return fmt.Errorf("unknown device state %q", b)
}
