// SPDX-License-Identifier: Apache-2.0

package ctrlserver

import (
	"bytes"
	"testing"

	"github.com/netbackd/netbackd/internal/lab/fuzzloop"
	"github.com/netbackd/netbackd/pkg/ctrlring"
	"github.com/netbackd/netbackd/pkg/netif"
)

// TestRecord encodes a record and decodes it. A part of the file is not accepted.
func TestRecord(t *testing.T) {
	var ring ctrlring.State
	r := record{
		connection: Connection{
			Queues:  []Rings{{1, 2, 3, 4}, {5, 6, 7, 8}},
			Control: ControlRing{9, 10},
		},
		algorithm: 1, types: 15, key: []byte("key"), table: []uint32{1, 0, 1}, ring: ring,
		grefs: [][]netif.GrefEntry{nil, {{Ref: 11, Flags: 1}, {Ref: 12}}},
	}
	b, err := r.marshal()
	if err != nil {
		t.Fatal(err)
	}
	var got record
	if err := got.unmarshal(b); err != nil {
		t.Fatal(err)
	}
	again, err := got.marshal()
	if err != nil || !bytes.Equal(b, again) {
		t.Errorf("encoded again it differs (%v)", err)
	}
	if !got.connection.is(&r.connection) || len(got.grefs[1]) != 2 || got.grefs[1][0] != r.grefs[1][0] {
		t.Errorf("decoded: %+v", got)
	}
	for i := range b {
		if err := got.unmarshal(b[:i]); err == nil {
			t.Errorf("%d of %d bytes are accepted", i, len(b))
		}
	}
	if err := got.unmarshal(append(b, 0)); err == nil {
		t.Error("one byte too many is accepted")
	}
}

// FuzzRecord decodes any file. The encoding of an accepted record is accepted, too.
func FuzzRecord(f *testing.F) {
	r := record{
		connection: Connection{Queues: []Rings{{1, 2, 3, 4}}, Control: ControlRing{9, 10}},
		algorithm:  1, types: 15, key: []byte("key"), table: []uint32{1, 0, 1},
		grefs: [][]netif.GrefEntry{{{Ref: 11, Flags: 1}, {Ref: 12}}},
	}
	b, err := r.marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:20])
	fuzzloop.Fuzz(f, func(t *testing.T, b []byte) {
		var r record
		if r.unmarshal(b) != nil {
			return
		}
		again, err := r.marshal()
		if err != nil {
			t.Fatal(err)
		}
		var s record
		if err := s.unmarshal(again); err != nil {
			t.Fatalf("an accepted record is not accepted again: %v", err)
		}
	})
}
