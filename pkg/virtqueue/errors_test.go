// SPDX-License-Identifier: Apache-2.0

package virtqueue

import (
	"fmt"
	"regexp"
	"testing"
)

// TestReasons: each has a name that can be that of a counter, and a text.
func TestReasons(t *testing.T) {
	name := regexp.MustCompile(`^[a-z]+(_[a-z]+)*$`)
	seen := map[string]bool{}
	for r := range Reason(Reasons) {
		if s := r.String(); !name.MatchString(s) || seen[s] {
			t.Errorf("reason %d has the name %q", r, s)
		}
		text := (&Error{Reason: r}).Error()
		if seen[text] || reasonTexts[r] == "" {
			t.Errorf("reason %d has the text %q", r, text)
		}
		seen[r.String()], seen[text] = true, true
	}
	if got, want := Reason(Reasons).String(), fmt.Sprint("reason_", Reasons); got != want {
		t.Errorf("a reason of the future is %q", got)
	}
	e := &Error{Reason: ReasonAddress, ID: 3, Addr: 0x10, Len: 4}
	if got, want := e.Error(), "virtqueue: a descriptor is outside of guest memory (chain 3, address 0x10, 4 bytes)"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
