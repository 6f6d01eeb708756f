// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/pkg/tap"
)

// envServe makes this binary a peer.
const envServe = "BENCH_TEST_SERVE"

func TestMain(m *testing.M) {
	if code, done := netns.Enter(); done {
		os.Exit(code)
	}
	if os.Getenv(envServe) != "" {
		if err := Serve(); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	if err := netns.NoIPv6(); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	goleak.VerifyTestMain(m)
}

func TestQuantile(t *testing.T) {
	d := []time.Duration{10, 20, 30, 40}
	for _, tt := range []struct{ q, want float64 }{{0, 10}, {0.5, 25}, {0.25, 17.5}, {1, 40}} {
		if got := quantile(d, tt.q); got != tt.want {
			t.Errorf("quantile %v is %v, want %v", tt.q, got, tt.want)
		}
	}
	if got := quantile(nil, 0.5); got != 0 {
		t.Errorf("of nothing: %v", got)
	}
}

// script is a peer whose runs take what a list says.
func script(name string, took ...time.Duration) Peer {
	i := 0
	return Peer{Name: name, Run: func() (time.Duration, error) {
		d := took[i%len(took)]
		i++
		return d, nil
	}}
}

func TestMeasure(t *testing.T) {
	l := Limits{Rounds: 4, Tries: 3, Spread: 0.1}
	steady := Group{Name: "g", Packets: 10, Peers: []Peer{script("a", 1000), script("b", 500)}}
	got, err := steady.Measure(l)
	if err != nil {
		t.Fatal(err)
	}
	want := Result{
		Name: "g", Packets: 10, Rounds: 4, Tries: 1,
		Figures: []Figure{{"a", 100, 100, 100, 1}, {"b", 50, 50, 50, 2}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("steady (-want +got):\n%s", diff)
	}
	if got.Figure("b").Ratio != 2 || got.Figure("c") != (Figure{}) {
		t.Error("figures are not found by name")
	}

	// The second try is the best one, and still too wide.
	wild := Group{Packets: 1, Peers: []Peer{script("a", 10, 100, 10, 100, 10, 20, 10, 20, 10, 90, 10, 90)}}
	got, err = wild.Measure(l)
	if err != nil || !got.Void || got.Tries != 3 || got.Figures[0].P75 != 20 {
		t.Errorf("wild: %+v, %v", got, err)
	}
	l.Until = time.Now().Add(-time.Second)
	if got, _ = wild.Measure(l); got.Tries != 1 {
		t.Errorf("%d tries after the time was up", got.Tries)
	}
	calms := Group{Packets: 1, Peers: []Peer{script("a", 10, 100, 10, 100, 10, 10, 10, 10, 1, 100, 1, 100)}}
	l.Until = time.Time{}
	if got, _ = calms.Measure(l); got.Void || got.Tries != 2 {
		t.Errorf("calm at the second try: %+v", got)
	}

	bad := errors.New("bad")
	fails := Group{Packets: 1, Peers: []Peer{{"a", func() (time.Duration, error) { return 0, bad }}}}
	if _, err := fails.Measure(l); !errors.Is(err, bad) {
		t.Errorf("got error %v", err)
	}
}

func TestReport(t *testing.T) {
	var r Report
	r.Host = "somewhere"
	r.Results = []Result{{Name: "one way", Rounds: 5, Tries: 3, Void: true, Spread: 0.2, Figures: []Figure{{"write", 300, 290, 310, 1}}}}
	r.AtLeast("P1", "rate", 1.2, 1.1, false)
	r.AtMost("P2", "calls", 0.5, 0.25, true)
	r.Within("P3", "with a limit", 1.2, 1.1, 1.375, false)
	if n := r.Missed(); n != 1 {
		t.Errorf("%d missed", n)
	}
	var out bytes.Buffer
	if err := r.Print(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"VOID: spread 20 %", "write", "P1  rate", ">= 1.1", "pass", "MISSED (void)", "1.375"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	path := filepath.Join(t.TempDir(), "figures")
	if err := r.WriteJSON(path); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var back Report
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(r, back); diff != "" {
		t.Errorf("from JSON (-want +got):\n%s", diff)
	}
}

// TestChildren has both peers do all operations, over the same TAP.
func TestChildren(t *testing.T) {
	netns.NeedTUN(t)
	c := filepath.Join(t.TempDir(), "peer")
	cc, err := exec.LookPath("cc")
	if err != nil {
		t.Log("no C compiler")
	} else if out, err := exec.Command(cc, "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", "-o", c, "../../../test/benchpeer/peer.c").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, p := range []struct {
		name, path string
		env        []string
	}{{"C", c, nil}, {"Go", "/proc/self/exe", []string{envServe + "=1"}}} {
		t.Run(p.name, func(t *testing.T) {
			if _, err := os.Stat(p.path); err != nil {
				t.Skip(err)
			}
			testChild(t, p.path, p.env)
		})
	}
}

func testChild(t *testing.T, path string, env []string) {
	d, err := tap.Create(tap.Config{Name: "peer0", VnetHdr: true})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := netns.Up("peer0"); err != nil {
		t.Fatal(err)
	}
	c, err := StartChild(d.Queue(0).FD(), path, env)
	if err != nil {
		t.Fatal(err)
	}
	stats := func() tap.Stats {
		t.Helper()
		info, err := d.Info()
		if err != nil {
			t.Fatal(err)
		}
		return info.Stats
	}
	frame := make([]byte, hdrLen+1000)
	for _, size := range []int{60, 1000, 9000} {
		frame = append(frame[:0], make([]byte, hdrLen+size)...)
		frame[hdrLen] = 2
		frame[hdrLen+12] = 0x88 // nobody's
		if err := c.Load(frame); err != nil {
			t.Fatal(err)
		}
		for _, op := range []Op{OpWrite, OpWritev} {
			before := stats()
			took, err := c.Run(op, 5)
			after := stats()
			if err != nil || took <= 0 || after.RxPackets-before.RxPackets != 5 || after.RxBytes-before.RxBytes != uint64(5*size) {
				t.Errorf("operation %d, %d octets: %v, %v; %+v, before %+v", op, size, took, err, after, before)
			}
		}
	}
	if _, err := c.Run(OpRead, 1); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("read of nothing: %v", err)
	}
	if _, err := c.Run(OpReadv, 1); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("readv of nothing: %v", err)
	}
	if _, err := c.Run(OpWrite, MaxBatch+1); !errors.Is(err, unix.EINVAL) {
		t.Errorf("too many: %v", err)
	}
	if _, err := c.Run(99, 1); !errors.Is(err, unix.ENOSYS) {
		t.Errorf("no such operation: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

func TestStartChildThatIsNot(t *testing.T) {
	if _, err := StartChild(0, "/nonexistent", nil); err == nil {
		t.Error("started")
	}
}
