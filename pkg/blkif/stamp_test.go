// SPDX-License-Identifier: Apache-2.0

package blkif

import (
	"bytes"
	"testing"

	"github.com/netbackd/netbackd/pkg/xen"
)

// A stamp stands in a ring until a frontend makes the ring anew, and it is in none of the
// bytes that the protocol uses: __pad of struct blkif_sring is the bytes 20 to 63.
func TestStampStandsUntilTheRingIsMadeAnew(t *testing.T) {
	for order := range MaxOrder + 1 {
		mem := bytes.Repeat([]byte{0xa5}, PageSize<<order) // pages that were used before
		check := func(want Header) {
			t.Helper()
			if h, err := ReadHeader(mem); err != nil || h != want {
				t.Errorf("order %d: header %+v (%v), want %+v", order, h, err, want)
			}
		}
		start := func() {
			if _, err := InitFront(mem, X8664); err != nil {
				t.Fatal(err)
			}
			check(Header{})
		}
		start()
		before := bytes.Clone(mem)
		s := xen.NewStamp()
		if err := WriteStamp(mem, s); err != nil {
			t.Fatal(err)
		}
		check(Header{Stamp: s})
		if !bytes.Equal(mem[:20], before[:20]) || !bytes.Equal(mem[64:], before[64:]) {
			t.Error("the stamp changed bytes that the protocol uses")
		}
		setWord(mem, wRspProd, 7)
		check(Header{RspProd: 7, Stamp: s})
		start()
	}
	if _, err := ReadHeader(make([]byte, 100)); err == nil {
		t.Error("memory that is no ring has a header")
	}
	if err := WriteStamp(make([]byte, 100), xen.NewStamp()); err == nil {
		t.Error("memory that is no ring has a stamp")
	}
}
