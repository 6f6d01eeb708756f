// SPDX-License-Identifier: Apache-2.0

package xen

import "testing"

func TestStampText(t *testing.T) {
	s := NewStamp()
	text, err := s.MarshalText()
	if err != nil || len(text) != 32 {
		t.Fatalf("%q, %v", text, err)
	}
	var back Stamp
	if err := back.UnmarshalText(text); err != nil || back != s {
		t.Errorf("%v back as %v, %v", s, back, err)
	}
	for _, bad := range []string{"", "00", string(text) + "00", string(text[:30]) + "xy"} {
		if back.UnmarshalText([]byte(bad)) == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	if s.IsZero() || !(Stamp{}).IsZero() || NewStamp() == s {
		t.Error("a new stamp is not one of its own")
	}
}
