// SPDX-License-Identifier: Apache-2.0

package blkif

import (
	"errors"
	"fmt"
	"regexp"
	"testing"
)

// TestReasons: each reason has a status, a counter and a text of its own.
func TestReasons(t *testing.T) {
	name := regexp.MustCompile(`^[a-z]+(_[a-z]+)*$`)
	seen := map[string]Reason{}
	for i := range Reasons {
		r := Reason(i)
		for _, s := range []string{r.String(), r.Error()} {
			if other, ok := seen[s]; ok || s == "" {
				t.Errorf("reason %d says %q, as does %d", r, s, other)
			}
			seen[s] = r
		}
		if !name.MatchString(r.String()) {
			t.Errorf("%q is no name of a counter", r)
		}
		want := StatusError
		switch r {
		case ReasonNone:
			want = StatusOkay
		case ReasonUnknownOp, ReasonNotOffered:
			want = StatusNotSupported
		}
		if r.Status() != want {
			t.Errorf("%v: status %v, want %v", r, r.Status(), want)
		}
		if r.Fatal() != (r == ReasonOverrun) {
			t.Errorf("%v: fatal is %v", r, r.Fatal())
		}
	}
	odd := Reason(200)
	if odd.Status() != StatusError || odd.String() != "reason_200" || odd.Error() != "reason_200" {
		t.Errorf("a number without a reason: %v, %v, %v", odd.Status(), odd.String(), odd.Error())
	}
	if !errors.Is(fmt.Errorf("ring: %w", ErrOverrun), ReasonOverrun) {
		t.Error("ErrOverrun is not its reason")
	}
}

func TestNames(t *testing.T) {
	for _, c := range []struct {
		v    fmt.Stringer
		want string
	}{
		{OpRead, "read"}, {OpWrite, "write"}, {OpBarrier, "barrier"}, {OpFlush, "flush"},
		{OpReserved, "reserved"}, {OpDiscard, "discard"}, {OpIndirect, "indirect"}, {Op(7), "unknown(7)"},
		{StatusOkay, "okay"}, {StatusError, "error"}, {StatusNotSupported, "not-supported"}, {Status(-3), "unknown(-3)"},
		{X8664, "x86_64-abi"}, {X8632, "x86_32-abi"}, {ARM, "arm-abi"}, {Protocol(0), "unknown(0)"}, {Protocol(4), "unknown(4)"},
	} {
		if got := c.v.String(); got != c.want {
			t.Errorf("%#v is %q, want %q", c.v, got, c.want)
		}
	}
}

func TestParseProtocol(t *testing.T) {
	for _, p := range Protocols() {
		if got, err := ParseProtocol(p.String(), true); err != nil || got != p {
			t.Errorf("%v is parsed as %v, %v", p, got, err)
		}
	}
	for _, key := range []string{"", "x86_64", "X86_64-ABI", "x86_64-abi ", "arm64-abi", "powerpc64-abi"} {
		if got, err := ParseProtocol(key, true); err == nil {
			t.Errorf("%q is parsed as %v", key, got)
		}
	}
	// The default of Linux's blkback is not the native protocol of x86_64.
	want := map[Protocol]Protocol{X8664: X8632, X8632: X8632, ARM: ARM}[NativeProtocol()]
	if got, err := ParseProtocol("", false); err != nil || got != want {
		t.Errorf("no protocol is taken as %v, %v, want %v", got, err, want)
	}
}
