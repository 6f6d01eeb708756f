// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/netbackd/netbackd/internal/command"
	"github.com/netbackd/netbackd/internal/control"
	"github.com/netbackd/netbackd/internal/netcontrol"
	"github.com/netbackd/netbackd/internal/vhostnet"
)

// testDevices returns devices as a host may have them.
func testDevices() []vhostnet.Status {
	base := vhostnet.Status{
		Kind: vhostnet.Kind, PID: 4242, Mode: "listen", Rate: "unlimited", Steering: "host", VnetHdr: true, Up: true, MTU: 1500,
		Offered: []string{"csum", "guest_csum", "mrg_rxbuf", "mq"}, Features: []string{}, Memory: []vhostnet.Memory{},
		Queues: []vhostnet.QueueStatus{}, Counters: counters(),
	}
	busy := base
	busy.Name, busy.Interface, busy.Bridge, busy.Made = "web", "vhu0000002a", "br0", true
	busy.State, busy.Socket, busy.Frontend, busy.Sessions = vhostnet.Connected, "/run/web.sock", 99, 3
	busy.Since, busy.Carrier, busy.GuestMTU, busy.Driver = testNow.Add(-time.Minute), true, 1400, 0xf
	busy.Features = []string{"csum", "guest_csum", "guest_tso4", "guest_tso6", "mrg_rxbuf", "mq", "version_1", "ring_packed"}
	busy.Memory = []vhostnet.Memory{{Kind: "shared", Regions: 2, Bytes: 268_000_000}, {Kind: "grant", Regions: 1, Bytes: 4096, Domid: 7, Flags: 2}}
	busy.Error = "reset by an administrator"
	busy.Logging, busy.Pairs, busy.Active = true, 2, 1
	busy.Queues = []vhostnet.QueueStatus{
		{Worker: 1, Tx: vhostnet.RingStatus{Started: true, Enabled: true, Packed: true, Size: 256, Available: 3},
			Rx:       vhostnet.RingStatus{Started: true, Enabled: true, Packed: true, Size: 256, Available: 200},
			Counters: counters("tx_packets", 10, "rx_packets", 10, "syscalls", 5, "notifies", 2)},
		{Tx: vhostnet.RingStatus{Started: true, Size: 256}, Rx: vhostnet.RingStatus{Error: "head is out of bounds"}, Held: 2, Counters: counters()},
	}
	busy.Counters = counters("tx_packets", 10, "tx_bytes", 640, "rx_packets", 10, "rx_bytes", 15_140, "rx_backlog", 4)
	waiting := base
	waiting.Name, waiting.Interface, waiting.State = "tap1", "tap1", vhostnet.Waiting
	waiting.Waits, waiting.Error = "a front end to connect to /run/tap1.sock", "SET_MEM_TABLE: regions overlap"
	waiting.Socket, waiting.Pairs = "/run/tap1.sock", 1
	silent := vhostnet.Status{Kind: vhostnet.Kind, Name: "hung", Error: "context deadline exceeded", Counters: counters()}
	return []vhostnet.Status{busy, waiting, silent}
}

func TestWriteDevices(t *testing.T) {
	var b bytes.Buffer
	if err := writeList(&b, lines(testVifs()[:1]), testDevices()); err != nil {
		t.Fatal(err)
	}
	golden(t, "list-devices", b.Bytes())
	for _, s := range testDevices() {
		b.Reset()
		if err := writeDevice(&b, &s, testNow); err != nil {
			t.Fatal(err)
		}
		golden(t, "show-device-"+s.Name, b.Bytes())
	}
	b.Reset()
	if err := command.WriteJSON(&b, listed{netcontrol.Vifs{Schema: netcontrol.Schema}, testDevices()}); err != nil {
		t.Fatal(err)
	}
	golden(t, "list-devices-json", b.Bytes())
}

// fakeDevice is the device of a process.
type fakeDevice struct {
	status vhostnet.Status
	resets int
}

func (d *fakeDevice) Status() vhostnet.Status { return d.status }
func (d *fakeDevice) Reset() bool             { d.resets++; return d.status.State != vhostnet.Waiting }

// serveDevice answers at the control socket of a device until the test ends.
func serveDevice(t *testing.T, dir string, d *fakeDevice) {
	t.Helper()
	l, err := netcontrol.ListenDevice(dir, d.status.Name)
	if err != nil {
		t.Fatal(err)
	}
	log, err := zap.NewStdLogAt(zap.NewNop(), zap.WarnLevel)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- control.Serve(ctx, l, netcontrol.DeviceHandler(func() netcontrol.Daemon { return netcontrol.Daemon{} }, d), log)
	}()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestDevicesWithoutDaemon: devices are listed, shown and reset while no daemon runs. The
// socket of a process that was killed is removed.
func TestDevicesWithoutDaemon(t *testing.T) {
	dir := t.TempDir()
	if _, err := runCommand("--run-dir", dir, "list"); command.ExitCode(err) != command.ExitNotRunning {
		t.Errorf("list without daemon and devices: %v", err)
	}
	devices := testDevices()
	busy, waiting := &fakeDevice{status: devices[0]}, &fakeDevice{status: devices[1]}
	serveDevice(t, dir, busy)
	serveDevice(t, dir, waiting)
	dead := netcontrol.DeviceSocket(dir, "dead")
	for _, p := range []string{dead, dead + ".lock"} {
		if err := os.WriteFile(p, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}

	out, err := runCommand("--run-dir", dir, "list", "--json")
	var list listed
	if err := errors.Join(err, json.Unmarshal([]byte(out), &list)); err != nil {
		t.Fatal(err)
	}
	if len(list.Vifs.Vifs) != 0 || len(list.Devices) != 2 || list.Devices[0].Name != "tap1" || list.Devices[1].Name != "web" {
		t.Errorf("list: %s", out)
	}
	if left, _ := filepath.Glob(dead + "*"); len(left) != 0 {
		t.Errorf("left: %q", left)
	}
	for _, name := range []string{"web", "vhu0000002a"} {
		if out, err := runCommand("--run-dir", dir, "show", name); err != nil || !strings.Contains(out, "web, process 4242") {
			t.Errorf("show %s: %q, %v", name, out, err)
		}
	}
	if _, err := runCommand("--run-dir", dir, "reset", "vhu0000002a"); err != nil || busy.resets != 1 {
		t.Errorf("%d resets, %v", busy.resets, err)
	}
	if _, err := runCommand("--run-dir", dir, "reset", "tap1"); err == nil || !strings.Contains(err.Error(), "no front end") {
		t.Errorf("reset of a device that waits: %v", err)
	}
	if _, err := runCommand("--run-dir", dir, "show", "vif1.0"); command.ExitCode(err) != command.ExitNotRunning {
		t.Errorf("show of a vif: %v", err)
	}
	if out, err := runCommand("__complete", "--run-dir", dir, "show", ""); err != nil || !strings.HasPrefix(out, "tap1\nweb\n:4\n") {
		t.Errorf("completion: %q, %v", out, err)
	}
}
