// SPDX-License-Identifier: Apache-2.0

package netif

import (
	"bytes"
	"testing"
)

// A stamp stands in a ring until a frontend makes the ring anew, with any
// use of the ring in between, and it is in none of the words that the protocol uses.
func TestStampStandsUntilTheRingIsMadeAnew(t *testing.T) {
	for name, init := range map[string]func([]byte) error{
		"tx":   func(b []byte) error { _, err := InitTx(b); return err },
		"rx":   func(b []byte) error { _, err := InitRx(b); return err },
		"ctrl": func(b []byte) error { _, err := InitCtrl(b); return err },
	} {
		t.Run(name, func(t *testing.T) {
			mem := make([]byte, PageSize)
			for i := range mem {
				mem[i] = 0xa5 // as a page from a pool that was used before
			}
			check := func(want Header) {
				t.Helper()
				if h, err := ReadHeader(mem); err != nil || h != want {
					t.Errorf("header %+v (%v), want %+v", h, err, want)
				}
			}
			if err := init(mem); err != nil {
				t.Fatal(err)
			}
			check(Header{})
			before := bytes.Clone(mem)
			s := NewStamp()
			if err := WriteStamp(mem, s); err != nil {
				t.Fatal(err)
			}
			check(Header{Stamp: s})
			// __pad of struct *_sring is the bytes 20 to 63 (ring.h).
			if !bytes.Equal(mem[:20], before[:20]) || !bytes.Equal(mem[64:], before[64:]) {
				t.Error("the stamp changed bytes that the protocol uses")
			}
			page{mustPage(t, mem)}.publish(wRspProd, 7)
			check(Header{RspProd: 7, Stamp: s})
			if err := init(mem); err != nil {
				t.Fatal(err)
			}
			check(Header{})
		})
	}
}

func mustPage(t *testing.T, mem []byte) *[pageWords]uint32 {
	t.Helper()
	p, err := newPage(mem)
	if err != nil {
		t.Fatal(err)
	}
	return p.w
}

// A page that is no ring has no header.
func TestStampOfNoPage(t *testing.T) {
	if _, err := ReadHeader(make([]byte, 100)); err == nil {
		t.Error("read")
	}
	if err := WriteStamp(make([]byte, 100), NewStamp()); err == nil {
		t.Error("written")
	}
}
