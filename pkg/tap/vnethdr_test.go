// SPDX-License-Identifier: Apache-2.0

package tap

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/internal/lab/fuzzloop"
)

func TestVnetHdrLayout(t *testing.T) {
	h := VnetHdr{Flags: 0x01, GSOType: 0x02, HdrLen: 0x1111, GSOSize: 0x2222, CsumStart: 0x3333, CsumOffset: 0x4444}
	got := bytes.Repeat([]byte{0xff}, VnetHdrLen+2)
	h.Encode(got)
	want := []byte{0x01, 0x02, 0x11, 0x11, 0x22, 0x22, 0x33, 0x33, 0x44, 0x44, 0, 0, 0xff, 0xff}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("encoded (-want +got):\n%s", diff)
	}
	// The byte order is the machine's.
	VnetHdr{HdrLen: 0x0102}.Encode(got)
	if v := binary.NativeEndian.Uint16(got[2:]); v != 0x0102 {
		t.Errorf("hdr_len is %#x", v)
	}
}

func TestVnetHdrNeedsItsRoom(t *testing.T) {
	for name, f := range map[string]func([]byte){
		"Encode": VnetHdr{}.Encode,
		"Decode": new(VnetHdr).Decode,
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("took 11 bytes")
				}
			}()
			f(make([]byte, VnetHdrLen-1))
		})
	}
}

func FuzzVnetHdr(f *testing.F) {
	f.Add(make([]byte, VnetHdrLen))
	f.Add(withHdr(csumHdr(4), nil))
	f.Add(withHdr(gsoHdr(4, 1448), nil))
	f.Add(withHdr(gsoHdr(6, 0xffff), nil))
	f.Add(bytes.Repeat([]byte{0xff}, VnetHdrLen))
	fuzzloop.Fuzz(f, func(t *testing.T, wire []byte) {
		if len(wire) < VnetHdrLen {
			return
		}
		var h, back VnetHdr
		h.Decode(wire)
		out := bytes.Clone(wire)
		h.Encode(out)
		if !bytes.Equal(out[:10], wire[:10]) || out[10] != 0 || out[11] != 0 || !bytes.Equal(out[VnetHdrLen:], wire[VnetHdrLen:]) {
			t.Errorf("% x became % x", wire, out)
		}
		if back.Decode(out); back != h {
			t.Errorf("%+v became %+v", h, back)
		}
	})
}
