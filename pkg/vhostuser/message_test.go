// SPDX-License-Identifier: Apache-2.0

package vhostuser

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/netbackd/netbackd/internal/lab/fuzzloop"
)

var sameMessage = cmp.Options{cmp.AllowUnexported(Message{}), cmpopts.IgnoreFields(Message{}, "Files"), cmpopts.EquateEmpty()}

// samples has a message of each request.
func samples() []Message {
	region := Region{Guest: 1, Size: 2, User: 3, Offset: 4}
	foreign := Region{Guest: 1, Size: 2, User: 3, Flags: RegionForeign, Domid: 7}
	bodies := map[body]Message{
		bodyU64:      {U64: 0x123456789a},
		bodyState:    {State: VringState{1, 2}},
		bodyAddr:     {Addr: VringAddr{1, 1, 3, 4, 5, 6}},
		bodyTable:    {Regions: []Region{region, region}},
		bodyRegion:   {Regions: []Region{foreign}, wide: true},
		bodyLog:      {Log: Area{1, 2}},
		bodyConfig:   {Config: ConfigSpace{3, 2, 1, []byte("ab")}},
		bodyInflight: {Inflight: Inflight{Area{1, 2}, 3, 4}},
		bodyTransfer: {Transfer: Transfer{1, 2}},
	}
	var out []Message
	for r, l := range layouts {
		m := bodies[l.body]
		m.Request, m.Flags = r, flagVersion|flagNeedReply
		out = append(out, m)
	}
	return append(out,
		Message{Header: Header{Request: SetMemTable, Flags: flagVersion}},
		Message{Header: Header{Request: SetMemTable, Flags: flagVersion}, Regions: []Region{region}, wide: true},
		Message{Header: Header{Request: SetMemTable, Flags: flagVersion}, Regions: []Region{region, foreign}, wide: true})
}

func TestMessageRoundTrip(t *testing.T) {
	for _, m := range samples() {
		b := m.Append([]byte("x"))[1:]
		h, err := decodeHeader(b)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Decode(h, b[headerSize:])
		if err != nil {
			t.Errorf("%v: %v", m.Request, err)
		}
		m.Size = uint32(len(b) - headerSize)
		if diff := cmp.Diff(m, got, sameMessage); diff != "" {
			t.Errorf("%v (-want +got):\n%s", m.Request, diff)
		}
	}
}

func TestReplyRoundTrip(t *testing.T) {
	for _, m := range []Message{
		{Header: Header{Request: GetFeatures}, U64: 5},
		{Header: Header{Request: SetVringNum}, U64: 1},
		{Header: Header{Request: GetVringBase}, State: VringState{1, 2}},
		{Header: Header{Request: GetConfig}, Config: ConfigSpace{1, 2, 0, []byte("ab")}},
		{Header: Header{Request: GetConfig}},
		{Header: Header{Request: GetInflightFD}, Inflight: Inflight{Area{8, 0}, 1, 2}},
	} {
		m.Flags = flagVersion | flagReply
		b := m.Append(nil)
		h, err := decodeHeader(b)
		if err != nil {
			t.Fatal(err)
		}
		got, err := DecodeReply(h, b[headerSize:])
		m.Size = h.Size
		if diff := cmp.Diff(m, got, sameMessage); diff != "" || err != nil {
			t.Errorf("%v: %v (-want +got):\n%s", m.Request, err, diff)
		}
	}
}

// TestSizes: what the text and the programs say about the sizes of messages.
func TestSizes(t *testing.T) {
	narrow, wide := make([]Region, 3), []Region{{Flags: 1}, {}}
	for _, tc := range []struct {
		m    Message
		want int
	}{
		{Message{Header: Header{Request: SetMemTable}, Regions: narrow}, 8 + 3*32},
		{Message{Header: Header{Request: SetMemTable}, Regions: wide}, 8 + 2*40},
		{Message{Header: Header{Request: AddMemReg}, Regions: narrow[:1]}, 40},
		{Message{Header: Header{Request: AddMemReg}, Regions: wide[:1]}, 48},
		{Message{Header: Header{Request: SetVringAddr}}, 40},
		{Message{Header: Header{Request: SetLogBase}}, 16},
		{Message{Header: Header{Request: SetVringKick}}, 8},
		{Message{Header: Header{Request: SetOwner}}, 0},
	} {
		if got := len(tc.m.Append(nil)) - headerSize; got != tc.want {
			t.Errorf("%v has %d bytes, want %d", tc.m.Request, got, tc.want)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	table := func(n uint32, size int) []byte {
		b := make([]byte, size)
		native.PutUint32(b, n)
		return b
	}
	config := make([]byte, 12+300)
	native.PutUint32(config[4:], 300)
	for _, tc := range []struct {
		name    string
		request Request
		payload []byte
		want    error
	}{
		{"a request of the future", 44, nil, ErrUnknown},
		{"request 41", 41, make([]byte, 16), ErrUnknown},
		{"request 0", 0, nil, ErrUnknown},
		{"half a number", SetFeatures, make([]byte, 4), ErrSize},
		{"a payload too much", SetOwner, make([]byte, 8), ErrSize},
		{"addresses with a size word", SetVringAddr, make([]byte, 44), ErrSize},
		{"regions of 36 bytes", SetMemTable, table(2, 8+72), ErrSize},
		{"fewer regions than said", SetMemTable, table(3, 8+64), ErrSize},
		{"33 regions", SetMemTable, table(33, 8+33*32), ErrSize},
		{"a number of regions that wraps", SetMemTable, table(1<<27, 8), ErrSize},
		{"no number of regions", SetMemTable, make([]byte, 4), ErrSize},
		{"a region of 56 bytes", AddMemReg, make([]byte, 64), ErrSize},
		{"fewer bytes of configuration than said", GetConfig, []byte{3: 0, 4: 4, 11: 0, 12: 0}, ErrSize},
		{"more configuration than a device has", GetConfig, config, ErrSize},
		{"an inflight region without its size", GetInflightFD, make([]byte, 16), ErrSize},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := Decode(Header{tc.request, flagVersion, uint32(len(tc.payload))}, tc.payload)
			if !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
			var e *MessageError
			if !errors.As(err, &e) || e.Request != tc.request {
				t.Errorf("%v does not name the request", err)
			}
		})
	}
	if _, err := decodeHeader([]byte{0: 1, 4: 2, 11: 0}); !errors.Is(err, ErrVersion) {
		t.Errorf("version 2: %v", err)
	}
}

// FuzzMessage decodes arbitrary bytes. What is understood encodes to the same message.
func FuzzMessage(f *testing.F) {
	for _, m := range samples() {
		f.Add(m.Append(nil))
	}
	fuzzloop.Fuzz(f, func(t *testing.T, b []byte) {
		if len(b) < headerSize {
			return
		}
		h, err := decodeHeader(b)
		if err != nil || len(b) < headerSize+int(h.Size) {
			return
		}
		payload := b[headerSize:][:h.Size]
		_, _ = DecodeReply(h, payload)
		m, err := Decode(h, payload)
		if err != nil {
			return
		}
		m.Flags &^= flagReply // encoded as what it was decoded as
		again := m.Append(nil)
		h, err = decodeHeader(again)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Decode(h, again[headerSize:])
		if err != nil {
			t.Fatal(err)
		}
		m.Size, got.Flags, m.Flags = h.Size, 0, 0
		if m.Request == GetInflightFD || m.Request == SetInflightFD || len(again) == headerSize+int(m.Size) {
			if diff := cmp.Diff(m, got, sameMessage); diff != "" {
				t.Fatalf("(-first +again):\n%s", diff)
			}
		}
	})
}
