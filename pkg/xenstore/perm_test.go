// SPDX-License-Identifier: Apache-2.0

package xenstore

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/netbackd/netbackd/internal/lab/fuzzloop"
	"github.com/netbackd/netbackd/pkg/xen"
)

func TestPermForms(t *testing.T) {
	for s, want := range map[string]Perm{
		"n0":     {AccessNone, 0},
		"r1":     {AccessRead, 1},
		"w32751": {AccessWrite, 32751},
		"b65535": {AccessBoth, 65535},
	} {
		got, err := ParsePerm(s)
		if err != nil || got != want {
			t.Errorf("%q: %+v, %v", s, got, err)
		}
		if got.String() != s {
			t.Errorf("%q comes back as %q", s, got)
		}
	}
	for _, s := range []string{"", "n", "x1", "1", "r-1", "r+1", "r65536", "r1 ", " r1", "r0x1", "rw1", "r1_0", "R1"} {
		if p, err := ParsePerm(s); err == nil {
			t.Errorf("%q is accepted as %v", s, p)
		}
	}
}

func TestPermRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := Perm{
			Access: Access(rapid.IntRange(0, int(AccessBoth)).Draw(t, "access")),
			Domid:  xen.Domid(rapid.Uint16().Draw(t, "domid")),
		}
		if got, err := ParsePerm(want.String()); err != nil || got != want {
			t.Fatalf("%v comes back as %v, %v", want, got, err)
		}
	})
}

// FuzzPerm says that what ParsePerm accepts means the same after a round trip.
func FuzzPerm(f *testing.F) {
	for _, s := range []string{"n0", "r1", "w", "b65535", "r007", "r65536", "x1", ""} {
		f.Add(s)
	}
	fuzzloop.Fuzz(f, func(t *testing.T, s string) {
		p, err := ParsePerm(s)
		if err != nil {
			return
		}
		if again, err := ParsePerm(p.String()); err != nil || again != p {
			t.Fatalf("%q: %+v becomes %+v, %v", s, p, again, err)
		}
	})
}
