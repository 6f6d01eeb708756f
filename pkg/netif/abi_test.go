// SPDX-License-Identifier: Apache-2.0

package netif

import (
	"fmt"
	"reflect"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestSizes repeats what the compiler holds in sizes_unsafe.go, for a reader who
// wants to see the numbers of netif.h side by side.
func TestSizes(t *testing.T) {
	for _, c := range []struct {
		v    any
		want uintptr
	}{
		{TxRequest{}, 12},
		{TxResponse{}, 4},
		{RxRequest{}, 8},
		{RxResponse{}, 8},
		{ExtraInfo{}, 8},
		{CtrlRequest{}, 16},
		{CtrlResponse{}, 12},
		{GrefEntry{}, 8},
	} {
		if got := reflect.TypeOf(c.v).Size(); got != c.want {
			t.Errorf("sizeof(%T) = %d, want %d", c.v, got, c.want)
		}
	}
}

func TestOffsets(t *testing.T) {
	type offsets map[string]uintptr
	for _, c := range []struct {
		v    any
		want offsets
	}{
		{TxRequest{}, offsets{"Gref": 0, "Offset": 4, "Flags": 6, "ID": 8, "Size": 10}},
		{TxResponse{}, offsets{"ID": 0, "Status": 2}},
		{RxRequest{}, offsets{"ID": 0, "Gref": 4}},
		{RxResponse{}, offsets{"ID": 0, "Offset": 2, "Flags": 4, "Status": 6}},
		{ExtraInfo{}, offsets{"Type": 0, "Flags": 1, "Body": 2}},
		{CtrlRequest{}, offsets{"ID": 0, "Type": 2, "Data": 4}},
		{CtrlResponse{}, offsets{"ID": 0, "Type": 2, "Status": 4, "Data": 8}},
		{GrefEntry{}, offsets{"Ref": 0, "Flags": 4, "Status": 6}},
	} {
		typ := reflect.TypeOf(c.v)
		got := offsets{}
		for f := range typ.Fields() {
			if f.Name != "_" {
				got[f.Name] = f.Offset
			}
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("offsets of %T (-want +got):\n%s", c.v, diff)
		}
	}
}

// TestFlagsSwap guards the trap of the header: bits 0 and 1 mean the opposite
// on the two rings.
func TestFlagsSwap(t *testing.T) {
	got := []uint16{
		uint16(TxCsumBlank), uint16(TxDataValidated), uint16(TxMoreData), uint16(TxExtraInfo),
		uint16(RxDataValidated), uint16(RxCsumBlank), uint16(RxMoreData), uint16(RxExtraInfo), uint16(RxGSOPrefix),
	}
	if diff := cmp.Diff([]uint16{1, 2, 4, 8, 1, 2, 4, 8, 16}, got); diff != "" {
		t.Errorf("flags (-want +got):\n%s", diff)
	}
}

func TestNames(t *testing.T) {
	for _, c := range []struct {
		v    fmt.Stringer
		want string
	}{
		{StatusDropped, "dropped"},
		{StatusError, "error"},
		{StatusOkay, "okay"},
		{StatusNull, "null"},
		{Status(1514), "unknown(1514)"},
		{ExtraNone, "none"},
		{ExtraGSO, "gso"},
		{ExtraMcastAdd, "mcast-add"},
		{ExtraMcastDel, "mcast-del"},
		{ExtraHash, "hash"},
		{ExtraXDP, "xdp"},
		{ExtraType(6), "unknown(6)"},
		{GSONone, "none"},
		{GSOTCPv4, "tcpv4"},
		{GSOTCPv6, "tcpv6"},
		{GSOType(3), "unknown(3)"},
		{CtrlInvalid, "invalid"},
		{CtrlSetHashAlgorithm, "set-hash-algorithm"},
		{CtrlDelGrefMapping, "del-gref-mapping"},
		{CtrlType(11), "unknown(11)"},
		{CtrlSuccess, "success"},
		{CtrlNotSupported, "not-supported"},
		{CtrlInvalidParameter, "invalid-parameter"},
		{CtrlBufferOverflow, "buffer-overflow"},
		{CtrlStatus(4), "unknown(4)"},
	} {
		if got := c.v.String(); got != c.want {
			t.Errorf("%T = %q, want %q", c.v, got, c.want)
		}
	}
}

// TestExtraBytes holds the extras to the bytes of netif.h as they stand in a
// little-endian page.
func TestExtraBytes(t *testing.T) {
	mac := [6]byte{0x01, 0x00, 0x5e, 0x7f, 0x12, 0x34}
	for _, c := range []struct {
		name string
		e    ExtraInfo
		want [8]byte
	}{
		{"gso", NewGSO(GSOInfo{Size: 0x05a8, Type: GSOTCPv6, Features: 0x1122}), [8]byte{1, 0, 0xa8, 0x05, 2, 0, 0x22, 0x11}},
		{"mcast add", NewMcast(true, mac), [8]byte{2, 0, 0x01, 0x00, 0x5e, 0x7f, 0x12, 0x34}},
		{"mcast del", NewMcast(false, mac), [8]byte{3, 0, 0x01, 0x00, 0x5e, 0x7f, 0x12, 0x34}},
		{"hash", NewHash(HashInfo{Type: HashIPv6TCP, Algorithm: HashAlgorithmToeplitz, Value: 0x51ccc178}), [8]byte{4, 0, 3, 1, 0x78, 0xc1, 0xcc, 0x51}},
		{"more", ExtraInfo{Type: ExtraHash, Flags: ExtraMore}, [8]byte{4, 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			mem := newMem()
			b, err := AttachRx(mem)
			if err != nil {
				t.Fatal(err)
			}
			b.Commit([]RxSlot{c.e.Slot()})
			if diff := cmp.Diff(c.want[:], mem[64:72]); diff != "" {
				t.Errorf("bytes (-want +got):\n%s", diff)
			}
		})
	}
}

func TestExtraReadsWhatItMade(t *testing.T) {
	gso := GSOInfo{Size: 1448, Type: GSOTCPv4, Features: 7}
	if diff := cmp.Diff(gso, NewGSO(gso).GSO()); diff != "" {
		t.Errorf("gso (-want +got):\n%s", diff)
	}
	hash := HashInfo{Type: HashIPv4, Algorithm: HashAlgorithmToeplitz, Value: 0xdeadbeef}
	if diff := cmp.Diff(hash, NewHash(hash).Hash()); diff != "" {
		t.Errorf("hash (-want +got):\n%s", diff)
	}
	mac := [6]byte{0x33, 0x33, 0, 0, 0, 1}
	if diff := cmp.Diff(mac, NewMcast(true, mac).Addr()); diff != "" {
		t.Errorf("mcast (-want +got):\n%s", diff)
	}
	e := NewGSO(gso)
	if e.More() {
		t.Error("a new extra has MORE set")
	}
	if e.Flags = ExtraMore; !e.More() {
		t.Error("MORE is not seen")
	}
}
