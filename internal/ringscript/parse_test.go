// SPDX-License-Identifier: Apache-2.0

package ringscript

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
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

// What is said shortly can be written down as an expectation.
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

// A frame is the same on both ends of the line.
func TestFrameFromItsWords(t *testing.T) {
	for _, want := range []frameSpec{
		{name: "F", length: 60},
		{name: "Z", length: 0xffff, dst: [6]byte{1, 2, 3, 4, 5, 6}},
		{name: "a b", length: 13},
		{name: "T", length: minTCP, tcp: true, mss: 1448},
	} {
		words, err := split(want.words())
		if err != nil {
			t.Fatal(err)
		}
		got, err := readSpec(words)
		if err != nil || got != want {
			t.Fatalf("got %+v, %v, want %+v", got, err, want)
		}
		if f := want.make(); len(f.octets) != want.length || mark(f.octets) != mark(got.make().octets) {
			t.Errorf("%+v has %d octets", want, len(f.octets))
		}
	}
	for _, bad := range []string{"", "F", "F 60 00 false 0", "F 0 000000000000 false 0", "F 60 000000000000 true 70000", "F 53 000000000000 true 9", "F 60 x false 0"} {
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
	files, err := filepath.Glob("../../test/cross/*.ring")
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
	f.Fuzz(func(t *testing.T, text string) {
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
