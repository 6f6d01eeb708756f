// SPDX-License-Identifier: Apache-2.0

package vhostnet

import (
	"strings"
	"testing"

	"github.com/netbackd/netbackd/internal/steer"
	"github.com/netbackd/netbackd/pkg/tap"
)

func TestParseHashKey(t *testing.T) {
	for text, want := range map[string]int{
		"": 0, "6d5a": 2, strings.Repeat("0F", 40): 40, "random": 40,
		"6d5": -1, "key": -1, "Random": -1, strings.Repeat("00", 41): -1,
	} {
		key, err := ParseHashKey(text)
		if (err != nil) != (want < 0) || err == nil && len(key) != want {
			t.Errorf("%q: %d bytes, %v, want %d", text, len(key), err, want)
		}
	}
	a, _ := ParseHashKey("random")
	b, _ := ParseHashKey("random")
	if string(a) == string(b) {
		t.Error("two random keys are the same")
	}
}

// TestSteering: a TAP gets a program when there is a choice, and loses it at the end, even if
// the TAP is gone by then.
func TestSteering(t *testing.T) {
	if s, err := newSteering(nil, nil); s != nil || err != nil || s.follow(4) != nil || s.close() != nil {
		t.Errorf("without a key: %v, %v", s, err)
	}
	if err := steer.Probe(); err != nil {
		t.Skip("this kernel accepts no steering programs:", err)
	}
	var programs []int
	gone := false
	s, err := newSteering([]byte{1, 2, 3}, func(program int) error {
		programs = append(programs, program)
		if gone {
			return tap.ErrGone
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{0, 1, 2, 2, 0, 4, 3} {
		if err := s.follow(n); err != nil {
			t.Fatalf("%d pairs: %v", n, err)
		}
		if s.pairs == 0 && len(programs) != 0 {
			t.Errorf("%d pairs: programs %v", n, programs)
		}
	}
	if len(programs) != 1 || programs[0] < 0 || s.pairs != 3 {
		t.Errorf("programs %v, %d pairs", programs, s.pairs)
	}
	gone = true
	if err := s.close(); err != nil || programs[len(programs)-1] != -1 {
		t.Errorf("close: %v, programs %v", err, programs)
	}
}
