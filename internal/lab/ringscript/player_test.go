// SPDX-License-Identifier: Apache-2.0

package ringscript

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/netbackd/netbackd/internal/lab/netfront"
	"github.com/netbackd/netbackd/internal/lab/netfront/fronttest"
	"github.com/netbackd/netbackd/internal/lab/xensim/simclient"
	"github.com/netbackd/netbackd/internal/vif"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeUmpire has the answer to each question.
type fakeUmpire map[string]string

func (u fakeUmpire) Ask(_ context.Context, question string) (string, error) {
	verb, _, _ := strings.Cut(question, " ")
	answer, ok := u[verb]
	if !ok {
		return "", fmt.Errorf("no answer to %q was given", question)
	}
	return answer, nil
}

// nothing returns the answers of a host without any drops or grants.
func nothing() fakeUmpire { return fakeUmpire{"begin": "", "drops": "", "grants": "0"} }

// newGuest returns a guest with a vif whose backend sends back all packets.
func newGuest(t *testing.T) (*fronttest.Xen, xen.Domid, netfront.Host) {
	t.Helper()
	x := fronttest.NewXen(t)
	domid := x.NewGuest()
	x.Start(domid, fronttest.Options{})
	conn, err := simclient.Dial(x.Dir, domid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	store, err := conn.Xenstore()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	pages, err := conn.Pages()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pages.Close() })
	return x, domid, netfront.Host{
		Pages: pages, Store: store,
		Events: func() (netfront.Events, error) { return conn.Events() },
	}
}

// little limits the waits of a test for an event that does not happen.
const little = 2 * time.Second

// playAll plays a script.
func playAll(t *testing.T, host netfront.Host, umpire Asker, patience time.Duration, text string) (said string, err error) {
	t.Helper()
	s, err := Parse("test.ring", text)
	if err != nil {
		t.Fatal(err)
	}
	p := &player{ctx: t.Context(), host: host, dir: netfront.DefaultDir, umpire: umpire, patience: patience}
	if err := p.open(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := p.shut(); err != nil {
			t.Error(err)
		}
	}()
	var out strings.Builder
	err = p.play(s, &out)
	return out.String(), err
}

const loop = `
frame F 60
frame G 60
rings
connect
case there and back
tx 7 F
rx 3 page
push
answers 7=okay
filled 3=60
`

func TestPlayerObserves(t *testing.T) {
	_, _, host := newGuest(t)
	u := nothing()
	u["out"] = mark(frameSpec{name: "F", length: 60}.make().bytes) + "*2 9/ab+csum"
	u["error"] = `22 queue 0: domid 17 gref 4000 and gref 5000`
	u["counters"] = "tx_slots=1"
	u["carrier"] = "up"
	got, err := playAll(t, host, u, patience, loop+`
content F 3
backend 4
error gref 4000
counters tx_slots=1
carrier up
`)
	if err != nil {
		t.Fatal(err)
	}
	want := `
# there and back
answers 7=okay
filled 3=60
content F
backend connected
error 22 queue 0: domid N gref 4000 and gref 5000
counters tx_slots=1
carrier up
`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("transcript (-want +got):\n%s", diff)
	}
}

// TestRefusedMessagesChangeNothing: the player asks for the settings in force once before
// a series of refused messages, and once after it.
func TestRefusedMessagesChangeNothing(t *testing.T) {
	u := nothing()
	p := &player{ctx: t.Context(), umpire: u, patience: time.Second}
	if err := p.refused(); err != nil {
		t.Errorf("no message was refused: %v", err)
	}
	u["in-force"] = "one"
	for range 2 {
		if err := p.refusing(); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.refused(); err != nil {
		t.Errorf("nothing has changed: %v", err)
	}
	if err := p.refusing(); err != nil {
		t.Fatal(err)
	}
	u["in-force"] = "another"
	if err := p.refused(); err == nil || !strings.Contains(err.Error(), `got "another", want "one"`) {
		t.Errorf("it has changed: %v", err)
	}
}

// TestExpectationThatDoesNotHold: each expectation can fail, and its error has the actual
// value.
func TestExpectationThatDoesNotHold(t *testing.T) {
	_, _, host := newGuest(t)
	begin := strings.ReplaceAll(loop, "answers 7=okay\nfilled 3=60\n", "")
	tests := []struct{ lines, want string }{
		{"answers 7=error\n", `got "7=okay", want "7=error"`},
		{"answers 8=okay\n", `got "7=okay", want "8=okay"`},
		{"answers 7=okay\nfilled 3=60\nanswers 7=okay\n", `got "", want "7=okay"`},
		{"answers 7=okay null\n", `want "7=okay null"`},
		{"answers 7=okay\nfilled\n", `want ""`},
		{"answers 7=okay\nfilled 3=61\n", `got "3=60", want "3=61"`},
		{"answers 7=okay\nfilled 3=60:more\n", `got "3=60"`},
		{"answers 7=okay\nfilled 3=60\ncontent G 3\n", "content: got 60 bytes"},
		{"answers 7=okay\nfilled 3=60\ncontent F 4\n", "buffer 4 was not filled"},
		{"answers 7=okay\nfilled 3=60\nbackend 6\n", "the backend is in state 4"},
		{"answers 7=okay\nfilled 3=60\narmed tx 9\n", `want "9"`},
		{"answers 7=okay\nfilled 3=60\nevent none\n", `want "none"`},
		{"answers 7=okay\nfilled 3=60\nout G\n", `got "F", want "G"`},
		{"answers 7=okay\nfilled 3=60\nout F F\n", `got "F", want "F*2"`},
		{"answers 7=okay\nfilled 3=60\nout\n", `got "F", want ""`},
		{"answers 7=okay\nfilled 3=60\ndrops a=2\n", `got "", want "a=2"`},
		{"answers 7=okay\nfilled 3=60\ncounters a=2\n", `got "a=1", want "a=2"`},
		{"answers 7=okay\nfilled 3=60\ncarrier down\n", `got "up", want "down"`},
		{"answers 7=okay\nfilled 3=60\nquarantined no\n", `got "broken", want "no"`},
		{"answers 7=okay\nfilled 3=60\nquarantined whole\n", `got "broken", want "whole"`},
		{"answers 7=okay\ncase next\n", "0 tx and 1 rx responses were not looked at"},
		{"answers 7=okay\n", "0 tx and 1 rx responses were not looked at"},
		{"queue 1\n", "there are 1 queues"},
		{"answers 7=okay\nfilled 3=60\nreset\n", "no answer to"},

		{"answers 7=okay\nfilled 3=60\ncall get-hash-flags -> success\n", "there is no control ring"},
		{"answers 7=okay\nfilled 3=60\nkick control\n", "there is no control ring"},
		{"answers 7=okay\nfilled 3=60\nreplies 1=success\n", "there is no control ring"},
		{"answers 7=okay\nfilled 3=60\ncontrol neither\nsend get-hash-flags\n", "of no protocol"},
		{"answers 7=okay\nfilled 3=60\ncontrol slot\nrsp-cons 1\n", "there is no control ring"},
		{"answers 7=okay\nfilled 3=60\ncontrol slot\ncall get-hash-flags -> success\n", `got "[]", want "success"`},
		{"answers 7=okay\nfilled 3=60\ncontrol stream\ncall get-flags -> success\n", `got "[]", want "success"`},
		{"answers 7=okay\nfilled 3=60\ncontrol slot\ncall get-hash-flags -> not-supported\n", "no answer to"},
		{"answers 7=okay\nfilled 3=60\npage grefs=tx[3]\nstatuses 0=success\n", `got "0=untouched", want "0=success"`},
		{"answers 7=okay\nfilled 3=60\nserved slot\n", `got "stream", want "slot"`},
		{"answers 7=okay\nfilled 3=60\nhashing none - - -\n", `want "none - - -"`},
	}
	for _, tt := range tests {
		t.Run(tt.lines, func(t *testing.T) {
			u := nothing()
			u["out"] = mark(frameSpec{name: "F", length: 60}.make().bytes)
			u["counters"] = "a=1"
			u["carrier"] = "up"
			u["quarantined"] = "broken"
			u["served"] = "stream"
			u["hashing"] = "no"
			said, err := playAll(t, host, u, little, begin+tt.lines)
			var f *Failure
			if !errors.As(err, &f) || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got %v, want %s", err, tt.want)
			}
			if !strings.Contains(said, "FAILED") {
				t.Errorf("the transcript does not tell:\n%s", said)
			}
		})
	}
	// Drops and grants that the script did not check fail it at its end.
	for verb, answer := range map[string]string{"drops": "rx_grant=1", "grants": "2"} {
		u := nothing()
		u[verb] = answer
		if _, err := playAll(t, host, u, patience, loop); err == nil || !strings.Contains(err.Error(), answer) {
			t.Errorf("%s: got %v", verb, err)
		}
	}
	// After the failures the device still works.
	if _, err := playAll(t, host, nothing(), patience, loop); err != nil {
		t.Error(err)
	}
}

func TestRingsThatAreNotThereOrFull(t *testing.T) {
	_, _, host := newGuest(t)
	for text, want := range map[string]string{
		"offer\n":                             "there are no rings",
		"frame F 60\ntx 1 F\n":                "there are no rings",
		"extra hash\n":                        "there are no rings",
		"rx 1 page\n":                         "there are no rings",
		"push\n":                              "there are no rings",
		"answers\n":                           "there are no rings",
		"rings\ntx 1..257 same\n":             "no free slot",
		"rings\ntx 1..256 same\nextra hash\n": "no free slot",
		"rings\nrx 1..257 page\n":             "no free slot",
	} {
		if _, err := playAll(t, host, nothing(), patience, text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %s", text, err, want)
		}
	}
}

// fakeDaemon is a daemon with one vif.
type fakeDaemon struct {
	vif.Status
	resets int
}

func (d *fakeDaemon) Vifs(context.Context) ([]vif.Status, error) { return []vif.Status{d.Status}, nil }

func (d *fakeDaemon) Reset(_ context.Context, name string) error {
	if name != d.Name {
		return errors.New("no such vif")
	}
	d.resets++
	return nil
}

// TestPlayerAsksTheUmpire exchanges questions and answers over a xenstore.
func TestPlayerAsksTheUmpire(t *testing.T) {
	x, domid, host := newGuest(t)
	// The guest owns the node, as libxl makes it.
	data := fmt.Sprintf("/local/domain/%d/data", domid)
	if err := errors.Join(x.Store.Mkdir(t.Context(), data), x.Store.SetPermissions(t.Context(), data, []xenstore.Perm{{Domid: domid}})); err != nil {
		t.Fatal(err)
	}
	d := &fakeDaemon{Status: vif.Status{
		Name: fmt.Sprintf("vif%d.0", domid), Carrier: true, Grants: 2, Quarantine: "broken", Mcast: []string{"a", "b"},
		Counters: map[string]uint64{"tx_slots": 7, "tx_grant": 2, "rx_grant": 1},
	}}
	u := NewUmpire(UmpireConfig{Domid: domid, Store: x.Store, Daemon: d})
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- u.Serve(ctx) }()
	defer func() {
		stop()
		if err := u.Close(); err != nil {
			t.Error(err)
		}
	}()
	line, err := Call(ctx, host.Store)
	if err != nil {
		t.Fatal(err)
	}
	defer line.Close()
	for _, q := range []struct{ question, want string }{
		{`carrier "up"`, "up"},
		{`grants "2"`, "2"},
		{`stalled "no"`, "no"},
		{`held "no"`, "no"},
		{`quarantined "brok"`, "broken"},
		{`mcast "a b"`, "a b"},
		{`error "no"`, "no"},
		{`drops rx_grant=1 tx_grant=2`, "rx_grant=1 tx_grant=2"},
		{`drops `, ""},
		{`counters rx_slots=0 tx_slots=7`, "rx_slots=0 tx_slots=7"},
		{`counters tx_slots=0`, "tx_slots=0"},
		{`reset`, ""},
	} {
		got, err := line.Ask(t.Context(), q.question)
		if err != nil || got != q.want {
			t.Errorf("%s: got %q, %v, want %q", q.question, got, err, q.want)
		}
	}
	if d.resets != 1 {
		t.Errorf("the daemon was told to reset %d times", d.resets)
	}
	for _, bad := range []string{"", `"`, "dance", "drops x", "out 1", "inject 1 F 60 000000000000 false 0"} {
		if got, err := line.Ask(t.Context(), bad); err == nil {
			t.Errorf("%q was answered: %q", bad, got)
		}
	}
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
	if _, err := line.Ask(short, "reset"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("an umpire that has gone: %v", err)
	}
}
