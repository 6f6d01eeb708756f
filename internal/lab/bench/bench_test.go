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
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/pkg/tap"
)

func TestMain(m *testing.M) {
	if code, done := netns.Enter(); done {
		os.Exit(code)
	}
	if err := netns.NoIPv6(); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	goleak.VerifyTestMain(m)
}

// script returns a peer whose runs take the times of a list, repeatedly.
func script(name string, took ...time.Duration) Peer {
	i := 0
	return Peer{Name: name, Run: func() (time.Duration, error) {
		d := took[i%len(took)]
		i++
		return d, nil
	}}
}

func TestMeasure(t *testing.T) {
	l := Limits{Rounds: 20, Tries: 3, Spread: 0.1}
	steady := Group{Name: "g", Packets: 10, Peers: []Peer{script("a", 1000), script("b", 500)}}
	got, err := steady.Measure(l)
	if err != nil {
		t.Fatal(err)
	}
	want := Result{
		Name: "g", Packets: 10, Rounds: 20, Tries: 1,
		Figures: []Figure{
			{Peer: "a", Median: 100, Low: 100, High: 100, Ratio: 1, P: 1},
			{Peer: "b", Median: 50, Low: 50, High: 50, Ratio: 2},
		},
	}
	if p := got.Figure("b").P; p >= 0.001 {
		t.Errorf("twice as fast in all rounds, p = %v", p)
	}
	got.Figures[1].P = 0
	if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(Result{})); diff != "" {
		t.Errorf("steady (-want +got):\n%s", diff)
	}
	if got.Figure("b").Ratio != 2 || got.Figure("c") != (Figure{}) {
		t.Error("figures are not found by name")
	}
}

// TestMeasureRepeatsWhatIsVoid: Measure repeats tries with a wide confidence interval.
func TestMeasureRepeatsWhatIsVoid(t *testing.T) {
	l := Limits{Rounds: 20, Tries: 3, Spread: 0.1}
	// try returns the times of a try: half of the rounds take low, half high.
	try := func(low, high time.Duration) []time.Duration {
		return append(slices.Repeat([]time.Duration{low}, 10), slices.Repeat([]time.Duration{high}, 10)...)
	}
	wild := Group{Packets: 1, Peers: []Peer{script("a", slices.Concat(try(10, 100), try(10, 20), try(10, 90))...)}}
	got, err := wild.Measure(l)
	if err != nil || !got.Void || got.Tries != 3 || got.Figures[0].High != 20 {
		t.Errorf("the second try is the best one, and void: %+v, %v", got, err)
	}
	l.Until = time.Now().Add(-time.Second)
	if got, _ = wild.Measure(l); got.Tries != 1 {
		t.Errorf("%d tries after the time was up", got.Tries)
	}
	calms := Group{Packets: 1, Peers: []Peer{script("a", slices.Concat(try(10, 100), try(10, 10), try(1, 100))...)}}
	l.Until = time.Time{}
	if got, _ = calms.Measure(l); got.Void || got.Tries != 2 {
		t.Errorf("calm at the second try: %+v", got)
	}
}

// TestShare: a machine that becomes slower changes the times and not the share.
func TestShare(t *testing.T) {
	times := func(each time.Duration) (d []time.Duration) {
		for i := range 20 {
			d = append(d, each*time.Duration(1+i/10))
		}
		return d
	}
	g := Group{Packets: 1, Peers: []Peer{script("room", times(950)...), script("lane", times(1000)...)}}
	r, err := g.Measure(Limits{Rounds: 20, Tries: 1, Spread: 10})
	if err != nil {
		t.Fatal(err)
	}
	if got := r.Share("room", "lane"); got != (Bounded{0.95, 0.95, 0.95}) || got.Spread() != 0 {
		t.Errorf("the share is %+v", got)
	}
	if got := r.Share("room", "another"); got != (Bounded{}) {
		t.Errorf("without the peer: %+v", got)
	}
}

func TestMeasureStopsAtAnError(t *testing.T) {
	bad := errors.New("bad")
	fails := Group{Packets: 1, Peers: []Peer{{"a", func() (time.Duration, error) { return 0, bad }}}}
	if _, err := fails.Measure(Limits{Rounds: 4, Tries: 1}); !errors.Is(err, bad) {
		t.Errorf("got error %v", err)
	}
}

func TestReport(t *testing.T) {
	var r Report
	r.Host = "somewhere"
	r.Results = []Result{{Name: "one way", Rounds: 5, Tries: 3, Void: true, Spread: 0.2, Figures: []Figure{{Peer: "write", Median: 300, Low: 290, High: 310, Ratio: 1, P: 1}}}}
	r.AtLeast("P1", "rate", 1.2, 1.1, false)
	r.AtMost("P2", "calls", 0.5, 0.25, true)
	r.Share("P3", "surely enough", Bounded{0.98, 0.975, 0.985}, 0.97, 1375)
	r.Share("P3", "perhaps enough", Bounded{0.969, 0.966, 0.972}, 0.97, 1375)
	r.Share("P3", "too little", Bounded{0.95, 0.94, 0.96}, 0.97, 1375)
	r.Share("P3", "void", Bounded{0.98, 0.96, 1}, 0.97, 1375)
	r.Share("P5", "bar met", Bounded{0.95, 0.94, 0.96}, 0.93, 1375)
	r.Aim(0.97)
	if n := r.Missed(); n != 2 {
		t.Errorf("%d missed", n)
	}
	var out bytes.Buffer
	if err := r.Print(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"VOID: spread 20 %", "write", "P1  rate", ">= 1.1", "pass", "MISSED (void)", "pass (void)", "1375 ns", "0.975..0.985", "below the goal of 0.97"} {
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
	if diff := cmp.Diff(r, back, cmpopts.IgnoreUnexported(Result{})); diff != "" {
		t.Errorf("from JSON (-want +got):\n%s", diff)
	}
}

// TestChild runs all operations of test/benchpeer.
func TestChild(t *testing.T) {
	netns.NeedTUN(t)
	path := filepath.Join(t.TempDir(), "peer")
	cc, err := exec.LookPath("cc")
	if err != nil {
		t.Skip(err)
	}
	if out, err := exec.Command(cc, "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", "-o", path, "../../../test/benchpeer/peer.c").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	d, err := tap.Create(tap.Config{Name: "peer0", VnetHdr: true})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := netns.Up("peer0"); err != nil {
		t.Fatal(err)
	}
	c, err := StartChild(d.Queue(0).FD(), path)
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
	const hdrLen = 12 // of the vnet header
	frame := make([]byte, hdrLen+1000)
	for _, size := range []int{60, 1000, 9000} {
		frame = append(frame[:0], make([]byte, hdrLen+size)...)
		frame[hdrLen] = 2
		frame[hdrLen+12] = 0x88 // an EtherType that the host ignores
		if err := c.Load(frame); err != nil {
			t.Fatal(err)
		}
		for _, op := range []Op{OpWrite, OpWritev, OpForwardTx} {
			before := stats()
			took, err := c.Run(op, 5)
			after := stats()
			if err != nil || took <= 0 || after.RxPackets-before.RxPackets != 5 || after.RxBytes-before.RxBytes != uint64(5*size) {
				t.Errorf("operation %d, %d bytes: %v, %v; %+v, before %+v", op, size, took, err, after, before)
			}
		}
	}
	if _, err := c.Run(OpRead, 1); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("read of nothing: %v", err)
	}
	if _, err := c.Run(OpReadv, 1); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("readv of nothing: %v", err)
	}
	if _, err := c.Run(OpForwardRx, 0); err != nil {
		t.Errorf("forwarding of nothing: %v", err)
	}
	if _, err := c.Run(OpVhost, 1); err != nil {
		t.Log("vhost-net:", err)
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

func TestStartChildWithoutAProgram(t *testing.T) {
	if _, err := StartChild(0, "/nonexistent"); err == nil {
		t.Error("started")
	}
}
