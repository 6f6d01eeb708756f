// SPDX-License-Identifier: Apache-2.0

package ringscript

import (
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/netbackd/netbackd/internal/lab/fuzzloop"
)

func TestScriptThatMakesNoSense(t *testing.T) {
	const before = "frame F 300\n"
	tests := []struct{ line, want string }{
		{"dance", `no such directive: "dance"`},
		{`case "open`, "does not end"},
		{`case "a"b`, "must be followed by a blank"},
		{"case", "its name is missing"},
		{"frame", "name is missing"},
		{"frame F 60", `there is a frame "F" already`},
		{"frame same 60", "cannot be a name"},
		{"frame a+b 60", "cannot be a name"},
		{"frame G 0", `length is "0"`},
		{"frame G 65536", `length is "65536"`},
		{"frame G tcp 53", `length is "53"`},
		{"frame G 60 dst=1:2:3", "no Ethernet address"},
		{"frame G 60 mss=9", `what is "mss=9" for?`},
		{"rings 0", "number of queues"},
		{"rings 2 double", `what is "double" for?`},
		{"key tx-ring-ref", "value is missing"},
		{"key tx-ring-ref @moon", `nothing is called "@moon"`},
		{"backend 9", "state is"},
		{"connect now", `what is "now" for?`},
		{"tx", "id is missing"},
		{"tx 65536 F", "id is"},
		{"tx 2..1 F", "id is"},
		{"tx 1..2000 F", "2000 ids in a row"},
		{"tx 1", "what to send is missing"},
		{"tx 1 G", `no frame "G" was defined above`},
		{"tx 1 F[1", "no part of a frame"},
		{"tx 1 F[200:100]", "end of the part"},
		{"tx 1 F[0:301]", "end of the part"},
		{"tx 1 F/0", "step is"},
		{"tx 1 F off=4000", "do not fit into a page"},
		{"tx 1 F size=70000", "size is"},
		{"tx 1 F loud", `no such flag: "loud"`},
		{"tx 1 gref=x", "gref is"},
		{"extra", "type is missing"},
		{"extra warp", "type is"},
		{"extra gso tcpv9 1", "type of segmentation"},
		{"extra mcast-add 1:2", "no Ethernet address"},
		{"rx 1 F", "is no buffer"},
		{"req-prod up 1", "ring is"},
		{"answers 1", "is no answer"},
		{"answers 1=null", "is no answer"},
		{"answers 1..9999=okay", "ids in a row"},
		{"content", "frame is missing"},
		{"content G 1", "no frame"},
		{"armed tx 0", "number of slots"},
		{"event both", "event is"},
		{"out G", "no frame"},
		{"out F*0", "how often"},
		{"inject F 0", "how often"},
		{"drops a=1 a=2", "there twice"},
		{"drops a", "is no count"},
		{"counters", "a counter is missing"},
		{"error", "the text is missing"},
		{"carrier gone", "carrier is"},
		{"mcast 1:2", "no Ethernet address"},

		{"frame G tcp 60 from=1.2.3.4:5", "two addresses of one family"},
		{"frame G tcp 90 from=1.2.3.4:5 to=[::1]:5", "two addresses of one family"},
		{"frame G udp 60 mss=9", `what is "mss=9" for?`},
		{"frame G udp 41", `length is "41"`},
		{"frame G tcp 60 from=[::2]:5 to=[::1]:5", "want 74"},
		{"frame G tcp 60 to=1.2.3.4", "not an ip:port"},
		{"control ring", "control ring is"},
		{"page u16=65536", "not in the range of u16"},
		{"page u32=1,x", "not in the range of u32"},
		{"page hex=123", "hex"},
		{"page zeros=0", "zeros is"},
		{"page u8=1", "is not bytes"},
		{"page zeros=100000*2", "more than"},
		{"page grefs=page", "is no page"},
		{"page grefs=tx[1..560]", "has pages 0 to"},
		{"page grefs=rx[2..1]", "has pages 0 to"},
		{"page grefs=freed:65536", "flags is"},
		{"call", "type is missing"},
		{"call set-hash-key page 40", "-> and a status are missing"},
		{"call set-hash-key page 40 -> fine", "is no status"},
		{"call set-hash-key moon 40 -> success", "is no page"},
		{"call 65536 -> success", "type is"},
		{"call 1 2 3 4 5 -> success", "-> and a status are missing"},
		{"call set-key page -> success", "is not bytes"},
		{"send bytes -> success", `what is "->" for?`},
		{"send id=1..2000 get-hash-flags", "2000 ids in a row"},
		{"replies 1=fine", "is no status"},
		{"replies success:0", "data is"},
		{"statuses 1=success", "from the first on"},
		{"statuses 0=fine", "is no status"},
		{"rsp-cons x", "by how much is"},
		{"turn ctrl 1", "pool is"},
		{"turn tx 560", "page is"},
		{"served", "the text is missing"},
		{"steered maybe", "steered is"},
	}
	for _, tt := range tests {
		t.Run(tt.line, func(t *testing.T) {
			_, err := Parse("x.ring", before+tt.line+"\n")
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.HasPrefix(err.Error(), "x.ring:2: ") {
				t.Errorf("got %v, want x.ring:2: ...%s...", err, tt.want)
			}
		})
	}
}

func TestWordsOfALine(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := rapid.SliceOf(rapid.String()).Draw(t, "words")
		var line strings.Builder
		for _, w := range want {
			line.WriteString(strconv.Quote(w))
			line.WriteString(rapid.SampledFrom([]string{" ", "\t", "  "}).Draw(t, "blank"))
		}
		got, err := split(line.String() + "# and " + strconv.Quote("no more"))
		if err != nil || len(got) != len(want) || len(want) > 0 && !cmp.Equal(got, want) {
			t.Fatalf("%q: got %q, %v, want %q", line.String(), got, err, want)
		}
	})
}

// TestRowsSaidShortly: the short form of rows is valid as an expectation.
func TestRowsSaidShortly(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) string {
			if rapid.IntRange(0, 5).Draw(t, "null") == 0 {
				return "null"
			}
			return strconv.Itoa(rapid.IntRange(0, 6).Draw(t, "id")) + "=" + rapid.SampledFrom([]string{"okay", "error"}).Draw(t, "status")
		}), 0, 20).Draw(t, "rows")
		short := shortly(want)
		a := &args{}
		if got := a.rows(strings.Fields(short)); a.err != nil || len(got) != len(want) || len(want) > 0 && !cmp.Equal(got, want) {
			t.Fatalf("%q: got %q, %v, want %q", short, got, a.err, want)
		}
	})
}

func TestRepeats(t *testing.T) {
	for want, words := range map[string][]string{
		"":        nil,
		"A":       {"A"},
		"A*2 B":   {"A", "A", "B"},
		"A B*3 A": {"A", "B", "B", "B", "A"},
	} {
		if got := repeats(words); got != want {
			t.Errorf("%q: got %q, want %q", words, got, want)
		}
	}
}

// TestFrameFromItsWords: player and umpire make the same frame from its words.
func TestFrameFromItsWords(t *testing.T) {
	for _, want := range []frameSpec{
		{name: "F", length: 60},
		{name: "Z", length: 0xffff, dst: [6]byte{1, 2, 3, 4, 5, 6}},
		{name: "a b", length: 13},
		{name: "T", length: 54, proto: "tcp", mss: 1448},
		{name: "T6", length: 74, proto: "tcp", mss: 1448, from: netip.MustParseAddrPort("[2001:db8::9]:1"), to: netip.MustParseAddrPort("[2001:db8::8]:65535")},
		{name: "U", length: 60, proto: "udp", vlan: 5, fragment: true, from: netip.MustParseAddrPort("192.0.2.9:7"), to: netip.MustParseAddrPort("192.0.2.8:9")},
	} {
		words, err := split(want.words())
		if err != nil {
			t.Fatal(err)
		}
		got, err := readSpec(words)
		if err != nil || got != want {
			t.Fatalf("got %+v, %v, want %+v", got, err, want)
		}
		if f := want.make(); len(f.bytes) != want.length || mark(f.bytes) != mark(got.make().bytes) {
			t.Errorf("%+v has %d bytes", want, len(f.bytes))
		}
	}
	const rest = ` "" "" 0 0 false`
	for _, bad := range []string{
		"", "F", `F 60 00 ""` + rest, `F 0 000000000000 ""` + rest, `F 53 000000000000 tcp` + rest, `F 60 x ""` + rest, `F 60 000000000000 sctp` + rest,
		`F 60 000000000000 tcp "" "" 70000 0 false`, `F 60 000000000000 tcp "1.2.3.4:5" "" 0 0 false`, `F 90 000000000000 tcp "1.2.3.4:5" "[::1]:5" 0 0 false`,
		`F 90 000000000000 udp "[::2]:5" "[::1]:5" 0 0 true`, `F 90 000000000000 tcp "" "" 9 1 false`,
	} {
		words, err := split(bad)
		if err != nil {
			t.Fatal(err)
		}
		if s, err := readSpec(words); err == nil {
			t.Errorf("%q is %+v", bad, s)
		}
	}
}

func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("../../../test/cross/*.ring")
	if err != nil || len(files) == 0 {
		f.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text))
	}
	f.Add("frame F 65535\ntx 0..1023 F/4096\nrx 1..3 gref=1\nextra gso 255 65535 more\nout F*4096\nanswers 1..1024=okay null")
	f.Add("page grefs=tx[0..9]:ro,gref=1 zeros=9*9 u64=1\ncall stream=9 size=1 zeros=131072 -> success 1\nsend id=0..9 7 page freed control\nreplies 0..9=success:7\nstatuses 0..1023=untouched")
	fuzzloop.Fuzz(f, func(t *testing.T, text string) {
		s, err := Parse("fuzz", text)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "fuzz:") {
				t.Errorf("%v does not name the script", err)
			}
			return
		}
		if n := strings.Count(text, "\n") + 1; len(s.lines) > n || len(s.frames) > maxFrames {
			t.Errorf("%d directives and %d frames of %d lines", len(s.lines), len(s.frames), n)
		}
	})
}
