// SPDX-License-Identifier: Apache-2.0

package xenbus_test

import (
	"encoding/json"
	"testing"

	"github.com/netbackd/netbackd/pkg/xenbus"
)

func TestParseState(t *testing.T) {
	for in, want := range map[string]xenbus.State{
		"0": xenbus.Unknown, "1": xenbus.Initialising, "2": xenbus.InitWait, "3": xenbus.Initialised, "4": xenbus.Connected,
		"5": xenbus.Closing, "6": xenbus.Closed, "7": xenbus.Reconfiguring, "8": xenbus.Reconfigured, "04": xenbus.Connected,
	} {
		if got, err := xenbus.ParseState(in); got != want || err != nil {
			t.Errorf("ParseState(%q) = %v, %v; want %v", in, got, err, want)
		}
	}
	for _, in := range []string{"", "9", "-1", "256", "4 ", "four", "4\x00", "+4", "0x4"} {
		if got, err := xenbus.ParseState(in); err == nil {
			t.Errorf("ParseState(%q) = %v, want an error", in, got)
		}
	}
}

func TestStateText(t *testing.T) {
	for s := xenbus.Unknown; s <= xenbus.Reconfigured; s++ {
		b, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		var back xenbus.State
		if err := json.Unmarshal(b, &back); err != nil || back != s {
			t.Errorf("%v came back from %s as %v, %v", s, b, back, err)
		}
	}
	if got := xenbus.Connected.Value(); got != "4" {
		t.Errorf("Connected is %q in a state node", got)
	}
	if got := xenbus.State(99).String(); got != "unknown(99)" {
		t.Errorf("got %q", got)
	}
	var s xenbus.State
	if err := s.UnmarshalText([]byte("half-open")); err == nil {
		t.Error("an unknown name was accepted")
	}
}
