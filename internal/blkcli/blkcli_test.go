// SPDX-License-Identifier: Apache-2.0

package blkcli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/netbackd/netbackd/internal/blkcontrol"
	"github.com/netbackd/netbackd/internal/command"
	"github.com/netbackd/netbackd/internal/control"
	"github.com/netbackd/netbackd/internal/vbd"
	"github.com/netbackd/netbackd/pkg/blkif"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// runCommand runs a command as a user does, and returns what it prints.
func runCommand(args ...string) (string, error) {
	var out bytes.Buffer
	c := New(nil, nil, Steps{})
	c.SetArgs(args)
	c.SetOut(&out)
	c.SetErr(&out)
	err := c.ExecuteContext(context.Background())
	return out.String(), err
}

var errNoVbd = errors.New("no such vbd")

// source is a daemon with some vbds.
type source struct{ did []string }

func status(domid xen.Domid, name string, change func(*vbd.Status)) vbd.Status {
	n, err := xenbus.ParseVdev(name)
	if err != nil {
		panic(err)
	}
	s := vbd.NewStatus(xenbus.DeviceID{Class: xenbus.VBD, Domid: domid, Devid: int(n)})
	s.Script, s.Hotplug, s.Online = "/etc/xen/scripts/block-blkbackd", "connected", true
	change(&s)
	return s
}

var since = time.Unix(1700000000, 0).UTC()

func (s *source) List() []vbd.Status {
	return []vbd.Status{
		status(1, "xvda", func(s *vbd.Status) {
			s.State, s.Frontend = xenbus.Connected, xenbus.Connected
			s.Disk = vbd.DiskStatus{Path: "/srv/a.img", Open: true, Sectors: 1 << 21, SectorSize: 512, PhysicalSize: 4096, Discard: true, Granularity: 4096}
			s.Counters = map[string]uint64{"reads": 3, "read_bytes": 12288, "writes": 1, "write_bytes": 1 << 20, "disk_error": 2}
			s.Connection = &vbd.ConnStatus{
				Since: since, Protocol: "x86_64-abi", RingOrder: 4, MaxSegments: 256, Persistent: true, Journal: true,
				DiskError: "input/output error",
				Queues: []vbd.QueueStatus{
					{IOUring: true, Slots: 512, InFlight: 2, Operations: 2, Bytes: 8192, Persistent: 5,
						Ring:     vbd.RingStatus{ReqProd: 4, ReqCons: blkif.Index(4)},
						Counters: map[string]uint64{"reads": 3, "writes": 1, "segments": 8, "syscalls": 2}},
					{Slots: 512, Memory: true, Counters: map[string]uint64{}},
				},
			}
		}),
		status(1, "xvdb", func(s *vbd.Status) {
			s.State, s.Frontend, s.Error = xenbus.InitWait, xenbus.Initialising, "disk /srv/b.img: not found"
			s.Disk = vbd.DiskStatus{Path: "/srv/b.img", ReadOnly: true, CDROM: true}
		}),
		status(2, "xvda", func(s *vbd.Status) { s.State, s.Quarantine = xenbus.Connected, "ring overrun" }),
		status(3, "xvda", func(s *vbd.Status) { s.ServedBy = "kernel" }),
		status(4, "xvda", func(s *vbd.Status) { s.ServedBy = "other" }),
	}
}

func (s *source) Names() (names []string) {
	for _, v := range s.List() {
		names = append(names, v.Name)
	}
	return names
}

func (s *source) Status(_ context.Context, name string, _ uint64) (vbd.Status, error) {
	for _, v := range s.List() {
		if v.Name == name || fmt.Sprintf("%d/%s", v.Domid, v.Vdev) == name {
			return v, nil
		}
	}
	return vbd.Status{}, fmt.Errorf("%s: %w; there are others", name, errNoVbd)
}

func (s *source) do(what, name string) error {
	if _, err := s.Status(context.Background(), name, 0); err != nil {
		return err
	}
	s.did = append(s.did, what+" "+name)
	return nil
}

func (s *source) Reset(name string) error    { return s.do("reset", name) }
func (s *source) Resize(name string) error   { return s.do("resize", name) }
func (s *source) CanAdopt(name string) error { return s.do("can adopt", name) }
func (s *source) Adopt(name string) error    { return s.do("adopt", name) }

var testDaemon = blkcontrol.Daemon{
	Version: "v1", PID: 4711, Since: since, Uring: "in use", MaxQueues: 4, MaxSegments: 256, Persistent: true, Cache: "auto",
	MaxVbds: 64, GuestMemory: 64 << 20, Queues: 2, AllQueues: 4096, Maps: 7, MaxMaps: 33792, Threads: 20, MaxThreads: 4300,
}

// serve runs a daemon's end until the test ends, and returns its run directory.
func serve(t *testing.T, src blkcontrol.Source) string {
	t.Helper()
	dir := t.TempDir()
	l, err := control.Listen(blkcontrol.Program, command.SocketIn(dir))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() {
		served <- control.Serve(ctx, l, blkcontrol.Handler(func() blkcontrol.Daemon { return testDaemon }, src, errNoVbd), nil)
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestList(t *testing.T) {
	dir := serve(t, &source{})
	out, err := runCommand("--run-dir", dir, "list")
	want := `VBD          DOMID  VDEV  STATE       QUEUES  MODE   SIZE  READS  READ BYTES  WRITES  WRITE BYTES  FAILED  PATH        NOTE
vbd-1-51712  1      xvda  connected   2       w      1.1G  3      12.3k       1       1.0M         2       /srv/a.img  input/output error
vbd-1-51728  1      xvdb  init-wait   0       cdrom  -     0      0           0       0            0       /srv/b.img  disk /srv/b.img: not found
vbd-2-51712  2      xvda  quarantine  0       -      -     0      0           0       0            0       -           ring overrun
vbd-3-51712  3      xvda  kernel      0       -      -     0      0           0       0            0       -           served by xen-blkback
vbd-4-51712  4      xvda  other       0       -      -     0      0           0       0            0       -           its script is not block-blkbackd
`
	if diff := cmp.Diff(want, out); diff != "" || err != nil {
		t.Errorf("unexpected table, error %v (-want +got):\n%s", err, diff)
	}
	out, err = runCommand("--run-dir", dir, "list", "--json")
	if err != nil || !strings.Contains(out, `"schema": 1`) || !strings.Contains(out, `"vbds": [`) || !strings.Contains(out, `"vdev": "xvda"`) {
		t.Errorf("%s, %v", out, err)
	}
	var b bytes.Buffer
	if err := writeList(&b, nil); err != nil || b.String() != "no vbds\n" {
		t.Errorf("%q, %v", b.String(), err)
	}
}

func TestShow(t *testing.T) {
	vbds := (&source{}).List()
	for i, want := range []string{
		`vbd         vbd-1-51712 (domain 1, xvda)
state       connected, frontend connected, online true
hotplug     connected
weight      1
script      /etc/xen/scripts/block-blkbackd
disk        /srv/a.img, file
size        2097152 sectors of 512 bytes, 1.1G bytes; sectors of 512, physical 4096
cache       writeback, through the host's page cache
discard     on, in units of 4096 bytes
connected   1m0s ago, x86_64-abi, rings of 16 pages, requests of up to 256 segments
persistent  grants on
restart     a successor goes on from the journal
disk error  input/output error
work        for all vbds of the guest: 0 requests to xenstored, 0 host calls of 0 ms

QUEUE  I/O       SLOTS  PENDING  IN FLIGHT  WAITING  AT DISK  BYTES  MAPPED  REQUESTS  SEGMENTS/REQ  SYSCALLS/REQ  GRANT OPS/REQ  EVENTS/REQ  OWES
0      io_uring  512    0        2          0        2        8.2k   5       4         2.000         0.500         0.000          0.000       disk
1      threads   512    0        0          0        0        0      0       0         -             -             -              -           memory

COUNTER            VALUE    MEANING
reads              3        read requests started
writes             1        write requests started
read_bytes         12288    bytes of read requests that were answered with OKAY
write_bytes        1048576  bytes of write requests that were answered with OKAY
failed disk_error  2        the disk reported an error
`,
		`vbd         vbd-1-51728 (domain 1, xvdb)
state       init-wait, frontend initialising, online true
last error  disk /srv/b.img: not found
hotplug     connected
weight      1
script      /etc/xen/scripts/block-blkbackd
disk        /srv/b.img, not open, a CD-ROM
work        for all vbds of the guest: 0 requests to xenstored, 0 host calls of 0 ms
`,
		`vbd         vbd-2-51712 (domain 2, xvda)
state       quarantine, frontend unknown, online true
quarantine  ring overrun (` + "`blkbackd reset vbd-2-51712`" + ` lets it try again)
hotplug     connected
weight      1
script      /etc/xen/scripts/block-blkbackd
disk        -, not open
work        for all vbds of the guest: 0 requests to xenstored, 0 host calls of 0 ms
`,
		`vbd    vbd-3-51712 (domain 3, xvda)
state  kernel: served by xen-blkback
`,
	} {
		var b bytes.Buffer
		if err := writeShow(&b, &vbds[i], since.Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, b.String()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", vbds[i].Name, diff)
		}
	}
}

func TestShowDaemon(t *testing.T) {
	var b bytes.Buffer
	if err := writeDaemon(&b, &testDaemon, since.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	want := `blkbackd    v1, process 4711, started 1h0m0s ago
io_uring    in use
cache       auto
offers      4 queues for each disk, 256 segments for each request, persistent grants on
of a guest  at most 64 disks, and 67.1M bytes in flight
queues      2, at most 4096
mapped      7 pages by persistent grants, at most 33792
threads     20, at most 4300
log         0 lines lost
`
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Errorf("unexpected status (-want +got):\n%s", diff)
	}
	out, err := runCommand("--run-dir", serve(t, &source{}), "show", "--json")
	if err != nil || !strings.Contains(out, `"queues_all": 4096`) {
		t.Errorf("%s, %v", out, err)
	}
}

func TestStats(t *testing.T) {
	dir := serve(t, &source{})
	for args, want := range map[string]string{
		"stats":              "vbd-1-51712  reads        3\n",
		"stats 1/xvda":       "failed disk_error  2        the disk reported an error\n",
		"stats --json":       "\"vbd-1-51728\": {}",
		"show 1/xvda --json": `"path": "/srv/a.img"`,
	} {
		out, err := runCommand(append([]string{"--run-dir", dir}, strings.Fields(args)...)...)
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("%s: %q, %v", args, out, err)
		}
	}
}

func TestResetAndResize(t *testing.T) {
	src := &source{}
	dir := serve(t, src)
	for _, args := range [][]string{{"reset", "1/xvda"}, {"resize", "vbd-1-51712"}} {
		if out, err := runCommand(append([]string{"--run-dir", dir}, args...)...); out != "" || err != nil {
			t.Errorf("%v: %q, %v", args, out, err)
		}
	}
	if diff := cmp.Diff([]string{"reset 1/xvda", "resize vbd-1-51712"}, src.did); diff != "" {
		t.Errorf("unexpected requests (-want +got):\n%s", diff)
	}
}

// TestErrors: each mistake has its exit code, and an error that tells what to do.
func TestErrors(t *testing.T) {
	dir := serve(t, &source{})
	none := t.TempDir()
	t.Setenv("XENBUS_PATH", "")
	for _, tt := range []struct {
		dir, args string
		code      int
		want      string
	}{
		{dir, "show 9/xvda", command.ExitNotFound, "9/xvda: no such vbd; there are others"},
		{dir, "stats 9/xvda", command.ExitNotFound, "no such vbd"},
		{dir, "reset vbd-9-0", command.ExitNotFound, "no such vbd"},
		{none, "list", command.ExitNotRunning, "start it with `systemctl start blkbackd`"},
		{none, "resize 1/xvda", command.ExitNotRunning, "blkbackd is not running"},
		{dir, "show a b", command.ExitUsage, "see `blkbackd show --help`"},
		{dir, "reset", command.ExitUsage, "see `blkbackd reset --help`"},
		{dir, "lst", command.ExitUsage, "did you mean list?"},
		{dir, "hotplug", command.ExitUsage, "accepts between 1 and 2 arg(s)"},
		{dir, "hotplug online 1/xvda", command.ExitUsage, `hotplug wants add or remove, not "online"`},
		{dir, "hotplug add", command.ExitUsage, "$XENBUS_PATH"},
		{dir, "hotplug add vif1.0", command.ExitUsage, `"vif1.0" is not a vbd`},
		{dir, "run --cache none", command.ExitUsage, `--cache: cache mode "none": want auto, writeback or direct`},
		{dir, "run --max-queues 0", command.ExitUsage, "--max-queues is 0, want 1 to 64"},
		{dir, "run --max-ring-order 5", command.ExitUsage, "--max-ring-order is 5, want 0 to 4"},
		{dir, "run --max-indirect-segments 4097", command.ExitUsage, "want 0 to 4096"},
		{dir, "run --drain 1h", command.ExitUsage, "--drain is 1h0m0s"},
		{dir, "run --guest-memory 0", command.ExitUsage, "--guest-memory is 0"},
		{dir, "run --max-vbds-per-guest 0", command.ExitUsage, "--max-vbds-per-guest is 0"},
		{dir, "run --max-queues-all 0", command.ExitUsage, "--max-queues-all is 0"},
		{dir, "run --log-level loud", command.ExitUsage, "--log-level is \"loud\""},
	} {
		out, err := runCommand(append([]string{"--run-dir", tt.dir}, strings.Fields(tt.args)...)...)
		if err == nil || command.ExitCode(err) != tt.code || !strings.Contains(err.Error(), tt.want) || out != "" {
			t.Errorf("%s: printed %q, error %v with code %d; want %q with %d", tt.args, out, err, command.ExitCode(err), tt.want, tt.code)
		}
	}
	if out, err := runCommand("hotplug", "remove"); err == nil || out != "" { // without a name
		t.Errorf("%q, %v", out, err)
	}
	t.Setenv("XENBUS_PATH", "backend/vbd/1/51712")
	if out, err := runCommand("hotplug", "remove"); err != nil || out != "" {
		t.Errorf("%q, %v", out, err)
	}
}

func TestCompletion(t *testing.T) {
	dir := serve(t, &source{})
	for _, c := range []string{"show", "stats", "reset", "resize"} {
		out, err := runCommand("__complete", "--run-dir", dir, c, "")
		if err != nil || !strings.HasPrefix(out, "vbd-1-51712\nvbd-1-51728\n") {
			t.Errorf("%s: %q, %v", c, out, err)
		}
		out, err = runCommand("__complete", "--run-dir", filepath.Join(dir, "none"), c, "")
		if err != nil || !strings.HasPrefix(out, ":4\n") {
			t.Errorf("%s without a daemon: %q, %v", c, out, err)
		}
	}
}
