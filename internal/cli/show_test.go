// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/internal/command"
	"github.com/netbackd/netbackd/internal/control"
	"github.com/netbackd/netbackd/internal/ctrlserver"
	"github.com/netbackd/netbackd/internal/netcontrol"
	"github.com/netbackd/netbackd/internal/vif"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

var update = flag.Bool("update", false, "write what is printed to testdata/*.golden")

// golden compares got with a file in testdata.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("unexpected output, see %s; go test -update takes it (-want +got):\n%s", path, diff)
	}
}

// testNow is the time at which the tests print.
var testNow = time.Date(2026, 8, 1, 12, 0, 0, 0, time.UTC)

func counters(pairs ...any) map[string]uint64 {
	m := map[string]uint64{}
	for i := 0; i < len(pairs); i += 2 {
		m[pairs[i].(string)] = uint64(pairs[i+1].(int))
	}
	return m
}

// table makes a mapping table of n entries over 4 queues.
func table(n int) (entries []uint16) {
	for i := range n {
		entries = append(entries, uint16(i%4))
	}
	return entries
}

// testVifs returns vifs as a host may have them.
func testVifs() []vif.Status {
	busy := vif.Status{
		Name: "vif1.0", Domid: 1, State: xenbus.Connected, Frontend: xenbus.Connected, Online: true, Hotplug: "connected",
		MAC: "00:16:3e:01:02:03", Bridge: "xenbr0", Script: "/etc/xen/scripts/vif-bridge",
		Interface: "webserver", Up: true, Carrier: true, MTU: 1500, GuestMTU: 1500, Rate: "1250000 B/50ms", Weight: 4,
		Features: []string{"rx-copy", "rx-notify", "sg", "gso-tcpv4", "gso-tcpv6", "csum-ipv4", "csum-ipv6", "multicast-control"},
		Mcast:    []string{"01:00:5e:00:00:01", "33:33:00:00:00:01"},
		Since:    testNow.Add(-26*time.Hour - 3*time.Second), Grants: 4, Ports: 2,
		Control: &ctrlserver.Status{
			Protocol: "slot", Messages: 9, Refused: 1, Algorithm: "toeplitz", Types: []string{"ipv4", "ipv4-tcp"},
			KeyBytes: 3, Key: "6b6579", Steering: "hash, in the kernel", Mapping: []uint16{0, 1, 1},
		},
		Queues: []vif.QueueStatus{
			{Worker: 0, Uring: true, OwnPages: 704, Static: 512, StaticMax: 512, StaticInUse: 256, Tx: vif.RingStatus{ReqProd: 1000, ReqCons: 1000, RspProd: 1000}, Rx: vif.RingStatus{ReqProd: 700, ReqCons: 444, RspProd: 444},
				Counters: counters("tx_packets", 1000, "rx_packets", 444, "syscalls", 90, "grant_ops", 1600, "notifies", 80, "static_hits", 4000, "static_misses", 3)},
			{Worker: 1, Uring: true, RateWaiting: true, Tx: vif.RingStatus{ReqProd: 2, ReqCons: 0xfffffffe, RspProd: 0xfffffffe}, Rx: vif.RingStatus{ReqProd: 256},
				Counters: counters("tx_packets", 500, "rx_packets", 0, "syscalls", 60, "grant_ops", 500, "notifies", 10)},
		},
		Counters: counters("tx_packets", 1500, "tx_bytes", 2_100_000, "rx_packets", 444, "rx_bytes", 29_304, "syscalls", 150, "tx_grant", 2, "rx_backlog", 40),
	}
	stalled := vif.Status{
		Name: "vif2.0", Domid: 2, State: xenbus.Connected, Frontend: xenbus.Connected, Online: true, Hotplug: "connected",
		MAC: "00:16:3e:01:02:04", Interface: "vif2.0", Up: true, MTU: 9000, ConfigMTU: 9000, GuestMTU: 1500, Rate: "unlimited", Weight: 1,
		Features: []string{"rx-copy", "sg", "csum-ipv4"}, Mcast: []string{}, Stalled: true, Waits: "the guest to post rx slots",
		Since: testNow.Add(-90 * time.Second), Grants: 2, Ports: 1,
		Control: &ctrlserver.Status{
			Protocol: "stream", Messages: 3, Error: "control ring: indices are out of bounds", Algorithm: "toeplitz", Types: []string{},
			KeyBytes: 40, Steering: "host", Mapping: table(40),
		},
		Queues:   []vif.QueueStatus{{Stalled: true, StaticMax: 100, Held: 12, HeldBytes: 49152, Counters: counters()}},
		Counters: counters("tx_packets", 7, "tx_bytes", 999, "rx_stalled", 100),
	}
	quarantined := vif.Status{
		Name: "vif3.0", Domid: 3, State: xenbus.Connected, Frontend: xenbus.Connected, Online: true, Hotplug: "connected",
		Interface: "vif3.0", Up: true, MTU: 1500, GuestMTU: 1500, Rate: "unlimited", Weight: 1,
		Features: []string{}, Mcast: []string{}, Queues: []vif.QueueStatus{}, Counters: counters(),
		Quarantine: "queue 0: tx ring: req_prod is out of bounds", Error: "22 quarantined: queue 0: tx ring: req_prod is out of bounds",
		Waits: "the guest to reconnect, or netbackd reset",
	}
	waiting := vif.Status{
		Name: "vif4.1", Domid: 4, Devid: 1, State: xenbus.InitWait, Frontend: xenbus.Initialising, Online: true, Waits: "the guest",
		Interface: "vif4.1", MTU: 1500, GuestMTU: 1500, Rate: "unlimited", Weight: 1,
		Features: []string{}, Mcast: []string{}, Queues: []vif.QueueStatus{}, Counters: counters(),
	}
	failed := vif.Status{
		Name: "vif32751.0", Domid: 32751, State: xenbus.Closed, Frontend: xenbus.Connected, Online: true, Hotplug: "error",
		Error: `2 frontend key "event-channel" is missing, want a number from 1 to 131071`, Waits: "the guest to try something else, or netbackd reset",
		Rate: "unlimited", Weight: 1, Features: []string{}, Mcast: []string{}, Queues: []vif.QueueStatus{}, Counters: counters(),
	}
	return []vif.Status{busy, stalled, quarantined, waiting, failed}
}

// lines returns the lines of vifs.
func lines(vifs []vif.Status) (list []vif.Line) {
	for i := range vifs {
		list = append(list, vifs[i].Line())
	}
	return list
}

func TestWriteList(t *testing.T) {
	var b bytes.Buffer
	if err := writeList(&b, lines(testVifs()), nil); err != nil {
		t.Fatal(err)
	}
	golden(t, "list", b.Bytes())
	b.Reset()
	if err := writeList(&b, nil, nil); err != nil || b.String() != "no vifs\n" {
		t.Errorf("got %q, %v", b.String(), err)
	}
}

func TestWriteShow(t *testing.T) {
	for _, s := range testVifs() {
		var b bytes.Buffer
		if err := writeShow(&b, &s, testNow); err != nil {
			t.Fatal(err)
		}
		golden(t, "show-"+s.Name, b.Bytes())
	}
}

var errNoVif = errors.New("no such vif")

// fakeDaemon serves the test's vifs, and records resets.
type fakeDaemon struct {
	vifs   []vif.Status
	resets []string
}

func (d *fakeDaemon) List() []vif.Status { return d.vifs }
func (d *fakeDaemon) Lines() []vif.Line  { return lines(d.vifs) }

func (d *fakeDaemon) Reset(name string) error {
	d.resets = append(d.resets, name)
	if name == "vif2.0" {
		return errors.New("vif2.0 does not answer; is xenstored alive?")
	}
	return nil
}

func (d *fakeDaemon) Names() (names []string) {
	for i := range d.vifs {
		names = append(names, d.vifs[i].Name)
	}
	return names
}

func (d *fakeDaemon) Status(_ context.Context, name string, _ uint64) (vif.Status, error) {
	for _, s := range d.vifs {
		if s.Name == name || s.Interface == name {
			return s, nil
		}
	}
	return vif.Status{}, fmt.Errorf("%s: %w; there are others", name, errNoVif)
}

func (d *fakeDaemon) CanAdopt(string) error { return errors.New("not asked for") }

func (d *fakeDaemon) Adopt(string) error { return errors.New("not asked for") }

func (d *fakeDaemon) Release(string) (int, error) { return 0, errors.New("not asked for") }

var testDaemon = netcontrol.Daemon{
	Version: "v1.2", PID: 4711, Since: time.Now().Add(-time.Hour), Workers: 2, Uring: "in use", Offload: true, Threads: 20,
	Priority: "nice -10 while rates are high", Classes: []string{"normal, nice 0", "batch, nice -10", "normal, nice 0"},
	MaxThreads: 103, LogLost: 12,
}

// serve runs a daemon's control socket and returns its run directory.
func serve(t *testing.T, d *fakeDaemon) string {
	t.Helper()
	dir := t.TempDir()
	l, err := control.Listen(netcontrol.Program, filepath.Join(dir, "control.sock"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() {
		served <- control.Serve(ctx, l, netcontrol.Handler(func() netcontrol.Daemon { return testDaemon }, d, errNoVif), nil)
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return dir
}

// command runs netbackd with these arguments.
func runCommand(args ...string) (stdout string, err error) {
	root := New(nil, nil)
	var b bytes.Buffer
	root.SetOut(&b)
	root.SetErr(&b)
	root.SetArgs(args)
	err = root.ExecuteContext(context.Background())
	return b.String(), err
}

func TestCommands(t *testing.T) {
	d := &fakeDaemon{vifs: testVifs()}
	dir := serve(t, d)
	for _, tt := range []struct {
		name string
		args []string
	}{
		{"list", []string{"list"}},
		{"list", []string{"ls"}},
		{"list-json", []string{"list", "--json"}},
		{"show-json", []string{"show", "vif1.0", "--json"}},
		{"show-json", []string{"show", "webserver", "--json"}},
		{"show-json-key", []string{"show", "vif1.0", "--json", "--key"}},
		{"show-vif4.1", []string{"show", "vif4.1"}},
	} {
		got, err := runCommand(append([]string{"--run-dir", dir}, tt.args...)...)
		if err != nil {
			t.Errorf("%v: %v", tt.args, err)
			continue
		}
		golden(t, tt.name, []byte(got))
	}

	got, err := runCommand("--run-dir", dir, "show")
	if err != nil || !strings.HasPrefix(got, "netbackd  v1.2, process 4711, started 1h0m") || !strings.HasSuffix(got, "threads   20, at most 103\nlog       12 lines lost\n") {
		t.Errorf("show prints %q, %v", got, err)
	}

	// The key is the guest's secret.
	for _, tt := range []struct {
		args []string
		key  string
	}{
		{[]string{"show", "vif1.0"}, "of 3 bytes (--key shows it)"},
		{[]string{"show", "vif1.0", "--key"}, "6b6579"},
	} {
		got, err := runCommand(append([]string{"--run-dir", dir}, tt.args...)...)
		if err != nil || !strings.Contains(got, "toeplitz of ipv4 ipv4-tcp, key "+tt.key+", queues chosen by hash, in the kernel") {
			t.Errorf("%v prints %q, %v", tt.args, got, err)
		}
	}

	if out, err := runCommand("--run-dir", dir, "reset", "webserver"); err != nil || out != "" {
		t.Errorf("reset: %q, %v", out, err)
	}
	if _, err := runCommand("--run-dir", dir, "reset", "vif2.0"); err == nil || err.Error() != "vif2.0 does not answer; is xenstored alive?" || command.ExitCode(err) != 1 {
		t.Errorf("reset of one that does not answer: %v", err)
	}
	if diff := cmp.Diff([]string{"vif1.0", "vif2.0"}, d.resets); diff != "" {
		t.Errorf("unexpected resets (-want +got):\n%s", diff)
	}
}

func TestCommandErrors(t *testing.T) {
	few, none := serve(t, &fakeDaemon{vifs: testVifs()[:2]}), t.TempDir()
	for _, tt := range []struct {
		dir  string
		args string
		code int
		want string
	}{
		{few, "show vif9.0", 4, "vif9.0: no such vif; there are others"},
		{few, "reset vif9.0", 4, "vif9.0: no such vif; there are others"},
		{none, "list", 3, "netbackd is not running: no process listens at " + none + "/control.sock; start it with `systemctl start netbackd`, or `netbackd run` by hand"},
		{none, "show vif1.0", 3, "netbackd is not running"},
		{none, "reset vif1.0", 3, "netbackd is not running"},
		{few, "show vif1.0 vif2.0", 2, "accepts at most 1 arg(s), received 2; see `netbackd show --help`"},
		{few, "list vif1.0", 2, "see `netbackd list --help`"},
		{few, "list --yaml", 2, "unknown flag: --yaml; see `netbackd list --help`"},
	} {
		out, err := runCommand(append([]string{"--run-dir", tt.dir}, strings.Fields(tt.args)...)...)
		if err == nil || command.ExitCode(err) != tt.code || !strings.Contains(err.Error(), tt.want) || out != "" {
			t.Errorf("%s: printed %q, error %v with code %d; want %q with %d", tt.args, out, err, command.ExitCode(err), tt.want, tt.code)
		}
	}
}

func TestCompletion(t *testing.T) {
	dir := serve(t, &fakeDaemon{vifs: testVifs()})
	for _, cmd := range []string{"show", "reset"} {
		out, err := runCommand("__complete", "--run-dir", dir, cmd, "")
		if err != nil || !strings.HasPrefix(out, "vif1.0\nvif2.0\nvif3.0\nvif4.1\nvif32751.0\n:4\n") {
			t.Errorf("%s: %q, %v", cmd, out, err)
		}
		out, err = runCommand("__complete", "--run-dir", dir, cmd, "vif1.0", "")
		if err != nil || !strings.HasPrefix(out, ":4\n") {
			t.Errorf("%s of a second: %q, %v", cmd, out, err)
		}
		out, err = runCommand("__complete", "--run-dir", t.TempDir(), cmd, "")
		if err != nil || !strings.HasPrefix(out, ":4\n") {
			t.Errorf("%s without a daemon: %q, %v", cmd, out, err)
		}
	}
}

func TestShortFeatures(t *testing.T) {
	for in, want := range map[string]string{
		"":                               "-",
		"rx-copy rx-notify":              "-",
		"rx-copy sg":                     "sg",
		"sg gso-tcpv4 csum-ipv4":         "sg,gso4,csum4",
		"gso-tcpv6 csum-ipv4 csum-ipv6":  "gso6,csum46",
		"sg gso-tcpv4 gso-tcpv6":         "sg,gso46",
		"multicast-control":              "mcast",
		"sg csum-ipv6 multicast-control": "sg,csum6,mcast",
	} {
		if got := shortFeatures(strings.Fields(in)); got != want {
			t.Errorf("shortFeatures(%q) = %q, want %q", in, got, want)
		}
	}
}
