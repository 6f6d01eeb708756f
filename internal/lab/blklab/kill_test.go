// SPDX-License-Identifier: Apache-2.0

package blklab

import (
	"testing"

	"github.com/netbackd/netbackd/internal/blkplane"
)

func TestKillerIsParsed(t *testing.T) {
	for value, want := range map[string]struct{ fails, kills bool }{
		"":          {},
		"rsp:3":     {kills: true},
		"notify:1":  {kills: true},
		"rsp":       {fails: true},
		"rsp:":      {fails: true},
		"rsp:0":     {fails: true},
		"rsp:x":     {fails: true},
		"nothing:1": {fails: true},
	} {
		f, err := killer(value)
		if (err != nil) != want.fails || (f != nil) != want.kills {
			t.Errorf("%q: a function %v, %v", value, f != nil, err)
		}
		if f == nil {
			continue
		}
		for _, step := range blkplane.Steps() {
			if step != "rsp" && step != "notify" {
				f(step) // not that step: the test goes on
			}
		}
	}
}
