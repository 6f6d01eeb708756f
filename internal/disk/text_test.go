// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"encoding/json"
	"testing"
)

// TestNamesReadBack: kinds and modes are names in JSON, and are read again from there.
func TestNamesReadBack(t *testing.T) {
	type names struct {
		Kind  Kind
		Cache Cache
	}
	for _, want := range []names{{KindFile, CacheAuto}, {KindBlock, CacheWriteback}, {KindNull, CacheDirect}, {KindBacking, CacheDirect}} {
		b, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		var got names
		if err := json.Unmarshal(b, &got); err != nil || got != want {
			t.Errorf("%s reads back as %v, %v", b, got, err)
		}
	}
	var got names
	if err := json.Unmarshal([]byte(`{"Kind": "tape"}`), &got); err == nil {
		t.Error("a kind that is not known is accepted")
	}
}
