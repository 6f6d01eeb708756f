// SPDX-License-Identifier: Apache-2.0

package xenstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/netbackd/netbackd/internal/lab/fuzzloop"
)

func TestMessageTypeNames(t *testing.T) {
	seen := map[string]bool{}
	for typ := MsgControl; typ <= MsgSetQuota; typ++ {
		name := typ.String()
		if name == "" || strings.HasPrefix(name, "unknown") || seen[name] {
			t.Errorf("type %d is named %q", uint32(typ), name)
		}
		seen[name] = true
	}
	for typ, want := range map[MessageType]string{
		MsgControl:       "CONTROL",
		MsgWatchEvent:    "WATCH_EVENT",
		MsgDirectoryPart: "DIRECTORY_PART",
		MsgSetQuota:      "SET_QUOTA",
		27:               "unknown(27)",
		MsgInvalid:       "unknown(65535)",
		1 << 31:          "unknown(2147483648)",
	} {
		if got := typ.String(); got != want {
			t.Errorf("%d: got %q, want %q", uint32(typ), got, want)
		}
	}
}

func TestHeaderLayout(t *testing.T) {
	h := Header{Type: 0x01020304, ReqID: 0x11121314, TxID: 0x21222324, Len: 0x0810}
	var want []byte
	for _, w := range []uint32{0x01020304, 0x11121314, 0x21222324, 0x0810} {
		want = binary.NativeEndian.AppendUint32(want, w)
	}
	got := h.AppendTo(nil)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("bytes (-want +got):\n%s", diff)
	}
	back, err := DecodeHeader(got)
	if err != nil {
		t.Fatal(err)
	}
	if back != h {
		t.Errorf("decoded %+v, want %+v", back, h)
	}
}

func TestDecodeHeaderRefuses(t *testing.T) {
	if _, err := DecodeHeader(make([]byte, HeaderSize-1)); !errors.Is(err, io.ErrShortBuffer) {
		t.Errorf("15 bytes: %v", err)
	}
	for n, ok := range map[uint32]bool{0: true, MaxPayload: true, MaxPayload + 1: false, 1 << 31: false, 1<<32 - 1: false} {
		_, err := DecodeHeader(Header{Type: MsgRead, Len: n}.AppendTo(nil))
		if ok != (err == nil) || (err != nil && !errors.Is(err, ErrProtocol)) {
			t.Errorf("len %d: %v", n, err)
		}
	}
}

func FuzzDecodeHeader(f *testing.F) {
	f.Add(Header{Type: MsgRead, ReqID: 1, Len: 5}.AppendTo(nil))
	f.Add(Header{Type: MsgInvalid, TxID: 7, Len: MaxPayload}.AppendTo(nil))
	f.Add(Header{Len: MaxPayload + 1}.AppendTo(nil))
	f.Add([]byte{})
	fuzzloop.Fuzz(f, func(t *testing.T, b []byte) {
		h, err := DecodeHeader(b)
		if err != nil {
			return
		}
		if h.Len > MaxPayload {
			t.Fatalf("accepted a length of %d", h.Len)
		}
		if got := h.AppendTo(nil); !bytes.Equal(got, b[:HeaderSize]) {
			t.Fatalf("% x decodes to %+v, which encodes to % x", b[:HeaderSize], h, got)
		}
	})
}

// message is a received message whose payload was copied.
type message struct {
	Header  Header
	Payload string
}

func readMessages(r io.Reader) ([]message, error) {
	var ms []message
	mr := NewMessageReader(r)
	for {
		h, p, err := mr.Next()
		if err != nil {
			return ms, err
		}
		ms = append(ms, message{h, string(p)})
	}
}

func TestMessageReaderEndOfStream(t *testing.T) {
	one := AppendMessage(nil, Header{Type: MsgRead, ReqID: 9}, []byte("abc"))
	for name, c := range map[string]struct {
		in   []byte
		n    int
		want error
	}{
		"nothing":                  {nil, 0, io.EOF},
		"between messages":         {one, 1, io.EOF},
		"inside a header":          {append(bytes.Clone(one), 1, 2, 3), 1, io.ErrUnexpectedEOF},
		"between header and rest":  {one[:HeaderSize], 0, io.ErrUnexpectedEOF},
		"inside a payload":         {one[:len(one)-1], 0, io.ErrUnexpectedEOF},
		"length out of bounds":     {Header{Len: MaxPayload + 1}.AppendTo(nil), 0, ErrProtocol},
		"garbage after a message":  {append(bytes.Clone(one), bytes.Repeat([]byte{0xff}, 64)...), 1, ErrProtocol},
		"empty payloads are valid": {Header{}.AppendTo(Header{}.AppendTo(nil)), 2, io.EOF},
	} {
		ms, err := readMessages(bytes.NewReader(c.in))
		if len(ms) != c.n || !errors.Is(err, c.want) {
			t.Errorf("%s: %d messages, %v; want %d, %v", name, len(ms), err, c.n, c.want)
		}
	}
}

// chunks returns at most the given numbers of bytes per Read, in turn.
type chunks struct {
	data []byte
	size []byte
	i    int
}

func (c *chunks) Read(p []byte) (int, error) {
	if len(c.data) == 0 {
		return 0, io.EOF
	}
	n := len(c.data)
	if len(c.size) > 0 {
		n = min(n, 1+int(c.size[c.i%len(c.size)]))
		c.i++
	}
	n = copy(p, c.data[:n])
	c.data = c.data[n:]
	return n, nil
}

// FuzzReadMessages says that the way a stream is cut into reads does not
// matter: the messages and the error are those of the stream in one piece.
func FuzzReadMessages(f *testing.F) {
	two := AppendMessage(nil, Header{Type: MsgRead, ReqID: 1}, []byte("value"))
	two = AppendMessage(two, Header{Type: MsgWatchEvent, ReqID: 0xdeadbeef}, []byte("/a\x00t\x00"))
	f.Add(two, []byte{0})
	f.Add(two, []byte{6, 15, 16, 17})
	f.Add(two[:len(two)-2], []byte{255, 0})
	f.Add(AppendMessage(nil, Header{}, make([]byte, MaxPayload)), []byte{99})
	f.Add(append(bytes.Clone(two), bytes.Repeat([]byte{0xee}, 40)...), []byte{3})
	fuzzloop.Fuzz(f, func(t *testing.T, stream, sizes []byte) {
		want, wantErr := readMessages(bytes.NewReader(stream))
		got, gotErr := readMessages(&chunks{data: stream, size: sizes})
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("messages (-whole +chunked):\n%s", diff)
		}
		if wantErr.Error() != gotErr.Error() {
			t.Fatalf("whole: %v, chunked: %v", wantErr, gotErr)
		}
	})
}

func TestMessagesRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) message {
			p := rapid.SliceOfN(rapid.Byte(), 0, 64).Draw(t, "payload")
			return message{Header{
				Type:  MessageType(rapid.Uint32().Draw(t, "type")),
				ReqID: rapid.Uint32().Draw(t, "req"),
				TxID:  rapid.Uint32().Draw(t, "tx"),
				Len:   uint32(len(p)),
			}, string(p)}
		}), 0, 20).Draw(t, "messages")
		var stream []byte
		for _, m := range want {
			stream = AppendMessage(stream, m.Header, []byte(m.Payload))
		}
		got, err := readMessages(iotest.HalfReader(bytes.NewReader(stream)))
		if err != io.EOF {
			t.Fatal(err)
		}
		if len(want) == 0 {
			want = nil
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("messages (-want +got):\n%s", diff)
		}
	})
}

func TestSplitStrings(t *testing.T) {
	for _, c := range []struct {
		in   string
		want []string
		ok   bool
	}{
		{"", nil, true},
		{"\x00", []string{""}, true},
		{"a\x00", []string{"a"}, true},
		{"a\x00\x00bc\x00", []string{"a", "", "bc"}, true},
		{"a", nil, false},
		{"a\x00b", nil, false},
	} {
		got, ok := SplitStrings([]byte(c.in))
		if ok != c.ok {
			t.Errorf("%q: ok is %t", c.in, ok)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%q (-want +got):\n%s", c.in, diff)
		}
		if ok && string(AppendStrings(nil, got...)) != c.in {
			t.Errorf("%q does not survive the round trip", c.in)
		}
	}
}

func TestCutString(t *testing.T) {
	for _, c := range []struct {
		in, head, rest string
		ok             bool
	}{
		{"/p\x00value", "/p", "value", true},
		{"/p\x00", "/p", "", true},
		{"/p\x00a\x00b\x00", "/p", "a\x00b\x00", true},
		{"\x00x", "", "x", true},
		{"/p", "", "", false},
		{"", "", "", false},
	} {
		head, rest, ok := CutString([]byte(c.in))
		if head != c.head || string(rest) != c.rest || ok != c.ok {
			t.Errorf("%q: %q %q %t", c.in, head, rest, ok)
		}
	}
}
