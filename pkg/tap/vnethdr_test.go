// SPDX-License-Identifier: Apache-2.0

package tap

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/netbackd/netbackd/internal/lab/netns"
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
					t.Error("took 11 octets")
				}
			}()
			f(make([]byte, VnetHdrLen-1))
		})
	}
}

func FuzzVnetHdr(f *testing.F) {
	f.Add(make([]byte, VnetHdrLen), 60)
	f.Add(withHdr(csumHdr(4), nil), 60)
	f.Add(withHdr(gsoHdr(4, 1448), nil), 4000)
	f.Add(withHdr(gsoHdr(6, 0xffff), nil), 65535)
	f.Add(bytes.Repeat([]byte{0xff}, VnetHdrLen), 1<<31)
	f.Fuzz(func(t *testing.T, wire []byte, frameLen int) {
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
		if h.Check(frameLen) != nil {
			return
		}
		// What passed can be used as an offset without another look.
		if frameLen < ethLen || int(h.HdrLen) > frameLen {
			t.Errorf("%+v passed for a frame of %d", h, frameLen)
		}
		if h.Flags&VnetNeedsCsum != 0 && int(h.CsumStart)+int(h.CsumOffset)+2 > frameLen {
			t.Errorf("%+v passed for a frame of %d", h, frameLen)
		}
		if h.GSOType != VnetGSONone && (h.Flags&VnetNeedsCsum == 0 || h.GSOSize == 0 || int(h.CsumStart)+tcpLen > frameLen) {
			t.Errorf("%+v passed for a frame of %d", h, frameLen)
		}
	})
}

// with changes a header.
func (h VnetHdr) with(f func(*VnetHdr)) VnetHdr { f(&h); return h }

// checkCases are headers before tcpFrame(4, 100), of 154 octets, unless frame
// says otherwise.
var checkCases = []struct {
	name  string
	hdr   VnetHdr
	frame int
	want  error
	// lenient is set where some kernels take what Check refuses.
	lenient bool
}{
	{name: "nothing left undone"},
	{name: "checksum", hdr: csumHdr(4)},
	{name: "segments", hdr: gsoHdr(4, 50)},
	{name: "segments, ECN", hdr: gsoHdr(4, 50).with(func(h *VnetHdr) { h.GSOType |= VnetGSOECN })},
	{name: "segment size of the whole", hdr: gsoHdr(4, 0xfffe)},
	{name: "segments, no hdr_len", hdr: gsoHdr(4, 50).with(func(h *VnetHdr) { h.HdrLen = 0 })},
	{name: "hdr_len alone", hdr: VnetHdr{HdrLen: 54}},
	{name: "hdr_len of the whole frame", hdr: VnetHdr{HdrLen: 154}},
	{name: "garbage without flags", hdr: VnetHdr{GSOSize: 0xffff, CsumStart: 0xffff, CsumOffset: 0xffff}},
	{name: "data valid", hdr: VnetHdr{Flags: VnetDataValid}},
	{name: "checksum in the last octets", hdr: VnetHdr{Flags: VnetNeedsCsum, CsumStart: 34, CsumOffset: 118}},
	{name: "just an Ethernet header", frame: 14},

	{name: "short frame", frame: 13, want: VnetBadFrame},
	{name: "hdr_len beyond the frame", hdr: VnetHdr{HdrLen: 155}, want: VnetBadHdrLen, lenient: true},
	{name: "hdr_len far beyond the frame", hdr: VnetHdr{HdrLen: 157}, want: VnetBadHdrLen},
	{name: "hdr_len within Ethernet", hdr: VnetHdr{HdrLen: 13}, want: VnetBadHdrLen},
	{name: "checksum one beyond", hdr: VnetHdr{Flags: VnetNeedsCsum, CsumStart: 34, CsumOffset: 119}, want: VnetBadCsum},
	{name: "checksum wraps around", hdr: VnetHdr{Flags: VnetNeedsCsum, CsumStart: 0xffff, CsumOffset: 0xffff}, want: VnetBadCsum},
	{name: "checksum start wraps around", hdr: VnetHdr{Flags: VnetNeedsCsum, CsumStart: 34, CsumOffset: 0xffff}, want: VnetBadCsum},
	{name: "checksum start in Ethernet", hdr: VnetHdr{Flags: VnetNeedsCsum, CsumStart: 6, CsumOffset: 6}, want: VnetBadCsum},
	{name: "checksum start in IP", hdr: VnetHdr{Flags: VnetNeedsCsum, CsumStart: 33, CsumOffset: 6}, want: VnetBadCsum, lenient: true},
	{name: "TCP header beyond the frame", hdr: gsoHdr(4, 50).with(func(h *VnetHdr) { h.CsumStart, h.HdrLen = 135, 0 }), want: VnetBadCsum},
	{name: "segments of nothing", hdr: gsoHdr(4, 0), want: VnetBadGSOSize},
	{name: "segments by fragments", hdr: gsoHdr(4, 0xffff), want: VnetBadGSOSize},
	{name: "segments with UDP's checksum", hdr: gsoHdr(4, 50).with(func(h *VnetHdr) { h.CsumOffset = 6 }), want: VnetBadGSOCsum},
	{name: "segments without checksum", hdr: gsoHdr(4, 50).with(func(h *VnetHdr) { h.Flags = 0 }), want: VnetBadGSOCsum, lenient: true},
	{name: "segments of UDP fragments", hdr: gsoHdr(4, 50).with(func(h *VnetHdr) { h.GSOType = 3 }), want: VnetBadGSOType, lenient: true},
	{name: "segments of UDP", hdr: gsoHdr(4, 50).with(func(h *VnetHdr) { h.GSOType, h.CsumOffset = 5, 6 }), want: VnetBadGSOType, lenient: true},
	{name: "segments of type 2", hdr: gsoHdr(4, 50).with(func(h *VnetHdr) { h.GSOType = 2 }), want: VnetBadGSOType},
	{name: "segments of nothing with ECN", hdr: gsoHdr(4, 50).with(func(h *VnetHdr) { h.GSOType = VnetGSOECN }), want: VnetBadGSOType},
}

func checkFrame(n int) []byte {
	frame := tcpFrame(4, 100)
	if n != 0 {
		frame = frame[:n]
	}
	return frame
}

func TestVnetHdrCheck(t *testing.T) {
	for _, tc := range checkCases {
		t.Run(tc.name, func(t *testing.T) {
			if err := tc.hdr.Check(len(checkFrame(tc.frame))); err != tc.want {
				t.Errorf("got %v, want %v", err, tc.want)
			}
		})
	}
	t.Run("IPv6 needs a longer header", func(t *testing.T) {
		h := gsoHdr(6, 50)
		if err := h.Check(200); err != nil {
			t.Error(err)
		}
		h.CsumStart = tcp6At - 1
		if err := h.Check(200); err != VnetBadCsum {
			t.Errorf("got %v", err)
		}
	})
	for e := VnetBadFrame; e <= VnetBadHdrLen; e++ {
		if e.Error() == fmt.Sprintf("unknown(%d)", e) {
			t.Errorf("reason %d has no text", e)
		}
	}
	if got := VnetHdrError(200).Error(); got != "unknown(200)" {
		t.Error(got)
	}
}

func TestVnetHdrCheckAgreesWithTheKernel(t *testing.T) {
	netns.NeedTUN(t)
	d := newTAPUp(t, Config{Name: "vif1.0", VnetHdr: true})
	for _, tc := range checkCases {
		t.Run(tc.name, func(t *testing.T) {
			_, err := d.Queue(0).Write(withHdr(tc.hdr, checkFrame(tc.frame)))
			if refused := err == unix.EINVAL; refused != (tc.want != nil) && !tc.lenient {
				t.Errorf("Check says %v, the kernel %v", tc.want, err)
			}
		})
	}
}

func TestAnyVnetHdrThatPassesTheKernelTakes(t *testing.T) {
	netns.NeedTUN(t)
	d := newTAPUp(t, Config{Name: "vif1.0", VnetHdr: true})
	frame := tcpFrame(4, 1000)
	small := rapid.OneOf(rapid.Uint16Range(0, 80), rapid.Uint16Range(1000, 1100), rapid.Uint16())
	rapid.Check(t, func(t *rapid.T) {
		h := VnetHdr{
			Flags:      rapid.SampledFrom([]uint8{0, 1, 1, 1, 2, 3, 0xff}).Draw(t, "flags"),
			GSOType:    rapid.SampledFrom([]uint8{0, 0, 1, 1, 4, 0x81, 2, 0x80, 0xff}).Draw(t, "gso type"),
			HdrLen:     small.Draw(t, "hdr len"),
			GSOSize:    small.Draw(t, "gso size"),
			CsumStart:  small.Draw(t, "csum start"),
			CsumOffset: rapid.OneOf(rapid.Just(uint16(tcpCsum)), small).Draw(t, "csum offset"),
		}
		b := frame[:rapid.OneOf(rapid.IntRange(0, 80), rapid.Just(len(frame))).Draw(t, "frame")]
		check := h.Check(len(b))
		_, err := d.Queue(0).Write(withHdr(h, b))
		switch {
		case check == nil && err != nil:
			t.Errorf("Check passes, the kernel says %v", err)
		case check != nil && err == nil:
			// The known ways of being stricter than some kernels.
			csum, gso := h.Flags&VnetNeedsCsum != 0, h.GSOType != VnetGSONone
			over := int(h.HdrLen) - len(b)
			if !(gso && !csum) && !(csum && h.CsumStart < tcp6At) && !(over == 1 || over == 2) {
				t.Errorf("Check says %v, the kernel takes it", check)
			}
		}
	})
}
