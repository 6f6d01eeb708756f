// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/command"
	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/internal/netcontrol"
	"github.com/netbackd/netbackd/internal/vhostnet"
	"github.com/netbackd/netbackd/pkg/vhostuser"
	"github.com/netbackd/netbackd/pkg/virtqueue"
)

// envProgram makes this binary netbackd.
const envProgram = "NETBACKD_CLI_TEST_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(envProgram) != "" {
		command.Main(netcontrol.Program, New(nil, nil))
		os.Exit(0)
	}
	if code, done := netns.Enter(); done {
		os.Exit(code)
	}
	os.Exit(m.Run())
}

// waitFor bounds what a test waits for. It is generous: machines are busy.
const waitFor = 60 * time.Second

// process is `netbackd vhost-user` in a process of its own, in the network of the test.
type process struct {
	t     *testing.T
	cmd   *exec.Cmd
	ready chan struct{} // closed with the line "ready"
	ended chan struct{}
	err   error  // after ended
	log   string // after ended
}

// program starts netbackd with a run directory. files are its descriptors from 3 on.
func program(t *testing.T, dir string, files []*os.File, args ...string) *process {
	t.Helper()
	args = append([]string{"--run-dir", dir, "vhost-user"}, args...)
	// The shell gives LISTEN_PID the number of the process that it becomes.
	cmd := exec.Command("/bin/sh", append([]string{"-c", `[ -z "$LISTEN_FDS" ] || export LISTEN_PID=$$; exec "$@"`, "sh", os.Args[0]}, args...)...)
	cmd.Env = append(os.Environ(), envProgram+"=1")
	cmd.ExtraFiles = files
	return start(t, cmd)
}

func start(t *testing.T, cmd *exec.Cmd) *process {
	t.Helper()
	out, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, cmd: cmd, ready: make(chan struct{}), ended: make(chan struct{})}
	go func() {
		defer close(p.ended)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			p.log += lines.Text() + "\n"
			if strings.Contains(lines.Text(), "\tready\t") {
				close(p.ready)
			}
		}
		p.err = cmd.Wait()
	}()
	t.Cleanup(func() { _ = cmd.Process.Kill(); <-p.ended })
	return p
}

// awaitReady waits until the process serves its device.
func (p *process) awaitReady() {
	p.t.Helper()
	select {
	case <-p.ready:
	case <-p.ended:
		p.t.Fatalf("the process ended: %v\n%s", p.err, p.log)
	case <-time.After(waitFor):
		p.t.Fatal("the process is not ready")
	}
}

// wait waits for the end of the process and returns its exit code, -1 if a signal ended it.
func (p *process) wait() int {
	p.t.Helper()
	select {
	case <-p.ended:
	case <-time.After(waitFor):
		p.t.Fatal("the process does not end")
	}
	return p.cmd.ProcessState.ExitCode()
}

// stop ends the process as a service manager does, and checks that it was soon and clean.
func (p *process) stop() {
	p.t.Helper()
	began := time.Now()
	_ = p.cmd.Process.Signal(unix.SIGTERM)
	if code := p.wait(); code != 0 {
		p.t.Errorf("exit code %d\n%s", code, p.log)
	}
	if took := time.Since(began); took > 5*time.Second { // TimeoutStopSec
		p.t.Errorf("it took %v to stop", took)
	}
}

// front connects a front end, which negotiates all that is offered.
func front(t *testing.T, path string) *vhostuser.Frontend {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	return negotiate(t, c.(*net.UnixConn))
}

func negotiate(t *testing.T, c *net.UnixConn) *vhostuser.Frontend {
	t.Helper()
	f := vhostuser.NewFrontend(c)
	t.Cleanup(func() { _ = f.Close() })
	if _, _, err := f.Negotiate(1<<32, ^uint64(0)); err != nil {
		t.Fatal(err)
	}
	return f
}

// devices returns the output of list --json.
func devices(t *testing.T, dir string) []vhostnet.Status {
	t.Helper()
	out, err := runCommand("--run-dir", dir, "list", "--json")
	if err != nil {
		t.Fatal(err)
	}
	var l listed
	if err := json.Unmarshal([]byte(out), &l); err != nil {
		t.Fatal(err)
	}
	return l.Devices
}

// left returns the files in a directory and below it.
func left(t *testing.T, dir string) (files []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// TestProcess: a process is killed and started again with the same arguments: it takes over
// its TAP and its socket. Its end leaves nothing.
func TestProcess(t *testing.T) {
	netns.NeedTUN(t)
	if _, err := netns.AddBridge("br7"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netns.Delete("br7") })
	dir := t.TempDir()
	socket := filepath.Join(dir, "socket")
	args := []string{"--socket-path", socket, "--bridge", "br7", "--queues", "2", "--rate", "100Mb/s", "--xen=off"}
	p := program(t, dir, nil, args...)
	p.awaitReady()
	front(t, socket)
	first := devices(t, dir)
	if len(first) != 1 || first[0].PID != p.cmd.Process.Pid || first[0].Pairs != 2 || first[0].Bridge != "br7" ||
		first[0].Socket != socket || first[0].Rate != "625000 B/50ms" || first[0].State != vhostnet.Negotiating {
		t.Fatalf("devices %+v", first)
	}
	link, err := netlink.LinkByName(first[0].Interface)
	if err != nil {
		t.Fatal(err)
	}
	if second := program(t, dir, nil, args...); second.wait() != 1 || !strings.Contains(second.log, "another process listens at "+socket) {
		t.Errorf("a second process: %v\n%s", second.err, second.log)
	}

	_ = p.cmd.Process.Kill()
	p.wait()
	p = program(t, dir, nil, args...)
	p.awaitReady()
	front(t, socket)
	again := devices(t, dir)
	if len(again) != 1 || again[0].PID != p.cmd.Process.Pid || again[0].Interface != first[0].Interface || again[0].Bridge != "br7" {
		t.Errorf("devices %+v", again)
	}
	if now, err := netlink.LinkByName(first[0].Interface); err != nil || now.Attrs().Index != link.Attrs().Index {
		t.Errorf("the TAP is another one: %+v, %v", now, err)
	}
	p.stop()
	if files := left(t, dir); len(files) != 0 {
		t.Errorf("left: %q", files)
	}
	if _, err := netlink.LinkByName(first[0].Interface); err == nil {
		t.Error("the TAP is left")
	}
}

// TestPassedSockets: sockets that another program has made.
func TestPassedSockets(t *testing.T) {
	netns.NeedTUN(t)
	dir := t.TempDir()
	connected := func() (*net.UnixConn, *os.File) {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		c, err := vhostuser.NewConn(pair[0])
		if err != nil {
			t.Fatal(err)
		}
		return c, os.NewFile(uintptr(pair[1]), "socket")
	}
	t.Run("connected", func(t *testing.T) {
		c, file := connected()
		p := program(t, dir, []*os.File{file}, "--fd=3", "--tap", "tap7")
		_ = file.Close()
		f := negotiate(t, c)
		if d := devices(t, dir); len(d) != 1 || d[0].Mode != "fd" || d[0].Name != "tap7" {
			t.Errorf("devices %+v", d)
		}
		_ = f.Close()
		if code := p.wait(); code != 0 {
			t.Errorf("exit code %d\n%s", code, p.log)
		}
	})
	t.Run("connected, a front end that breaks the protocol", func(t *testing.T) {
		c, file := connected()
		p := program(t, dir, []*os.File{file}, "--fd=3", "--tap", "tap7")
		_ = file.Close()
		_ = negotiate(t, c).U64(vhostuser.SetFeatures, 1<<60)
		_ = c.Close()
		if code := p.wait(); code != 1 || !strings.Contains(p.log, "features were accepted that were not offered") {
			t.Errorf("exit code %d\n%s", code, p.log)
		}
	})
	t.Run("by the service manager", func(t *testing.T) {
		socket := filepath.Join(t.TempDir(), "socket")
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		file, err := l.File()
		if err != nil {
			t.Fatal(err)
		}
		t.Setenv("LISTEN_FDS", "1")
		p := program(t, dir, []*os.File{file}, "--tap", "tap7", "--socket-path", "/nonexistent/socket")
		_ = file.Close()
		f := front(t, socket)
		if d := devices(t, dir); len(d) != 1 || d[0].Mode != "fd" || d[0].Socket != socket {
			t.Errorf("devices %+v", d)
		}
		_ = f.Close()
		p.stop()
		if _, err := os.Lstat(socket); err != nil {
			t.Errorf("the manager's socket: %v", err)
		}
	})
}

// TestConnect: the process connects to a front end that listens, also after that was
// restarted, and tells the service manager that it is ready before.
func TestConnect(t *testing.T) {
	netns.NeedTUN(t)
	dir := t.TempDir()
	socket, notify := filepath.Join(dir, "socket"), filepath.Join(t.TempDir(), "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notify, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	t.Setenv("NOTIFY_SOCKET", notify)
	p := program(t, dir, nil, "--socket-path", socket, "--connect", "--tap", "tap7", "--name", "web")
	var got []string
	for buf := make([]byte, 256); len(got) == 0 || got[len(got)-1] != "READY=1"; {
		_ = manager.SetReadDeadline(time.Now().Add(waitFor))
		n, err := manager.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, string(buf[:n]))
	}
	if want := "STATUS=waiting READY=1"; strings.Join(got, " ") != want {
		t.Errorf("messages %q", got)
	}
	for range 2 {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		_ = l.SetDeadline(time.Now().Add(waitFor))
		c, err := l.AcceptUnix()
		if err != nil {
			t.Fatal(err)
		}
		f := negotiate(t, c)
		if d := devices(t, dir); len(d) != 1 || d[0].Mode != "connect" || d[0].Name != "web" || d[0].Interface != "tap7" {
			t.Errorf("devices %+v", d)
		}
		_ = f.Close()
		_ = l.Close()
	}
	p.stop()
	if n := strings.Count(p.log, "connect failed"); n > 4 { // once for each new reason
		t.Errorf("%d lines about failures\n%s", n, p.log)
	}
}

// TestWorkerThatHangs: a front end makes the worker block in an eventfd that is full. SIGTERM
// ends the process nevertheless.
func TestWorkerThatHangs(t *testing.T) {
	netns.NeedTUN(t)
	const size, guest, ring = 1 << 16, 1 << 20, 8
	memory, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC)
	if err == nil {
		err = unix.Ftruncate(memory, size)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(memory)
	mem, err := unix.Mmap(memory, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mem)
	kick, errKick := unix.Eventfd(0, unix.EFD_CLOEXEC)
	call, errCall := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err := errors.Join(errKick, errCall); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(kick)
	defer unix.Close(call)

	dir := t.TempDir()
	socket := filepath.Join(dir, "socket")
	p := program(t, dir, nil, "--socket-path", socket, "--tap", "tap7", "--queues", "1")
	p.awaitReady()
	defer netns.Delete("tap7")
	f := front(t, socket)
	avail, used, _ := virtqueue.SplitOffsets(ring)
	addr := vhostuser.VringAddr{Index: 1, Descriptor: guest, Available: guest + uint64(avail), Used: guest + uint64(used)}
	if err := errors.Join(
		f.SetMemory([]vhostuser.Region{{Guest: guest, User: guest, Size: size}}, []int{memory}),
		f.StartRing(addr, ring, 0, kick, call),
	); err != nil {
		t.Fatal(err)
	}
	d, err := virtqueue.NewSplitDriver(virtqueue.DriverConfig{Size: ring}, virtqueue.SplitRingsIn(mem, ring))
	if err != nil {
		t.Fatal(err)
	}
	full, one := make([]byte, 8), make([]byte, 8)
	binary.NativeEndian.PutUint64(full, 1<<64-2)
	binary.NativeEndian.PutUint64(one, 1)
	_, errFull := unix.Write(call, full)
	if err := errors.Join(errFull, unix.SetNonblock(call, false)); err != nil {
		t.Fatal(err)
	}
	if _, ok := d.Add(virtqueue.Buffer{Addr: guest + 4096, Len: 12 + 60}); !ok {
		t.Fatal("the ring is full")
	}
	d.Publish()
	if _, err := unix.Write(kick, one); err != nil {
		t.Fatal(err)
	}
	// The status waits for the worker.
	for end := time.Now().Add(waitFor); ; {
		if d := devices(t, dir); len(d) == 1 && strings.Contains(d[0].Error, "deadline") {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the worker does not hang")
		}
	}
	p.stop()
}

// TestBoundEnd: only an end that takes too long is cut short.
func TestBoundEnd(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	late := make(chan struct{})
	done := boundEnd(ctx, time.Millisecond, func() { close(late) })
	select {
	case <-late:
		t.Error("cut short before the end has begun")
	case <-time.After(20 * time.Millisecond):
	}
	cancel()
	<-late
	done()
	boundEnd(ctx, time.Hour, func() { t.Error("cut short") })()
}

func TestVhostUserErrors(t *testing.T) {
	netns.NeedTUN(t)
	dir := t.TempDir()
	for args, want := range map[string]struct {
		code int
		text string
	}{
		"--tap t":                                              {2, "which socket?"},
		"--socket-path s":                                      {2, "which network?"},
		"--socket-path s --fd 3 --tap t":                       {2, "exclude each other"},
		"--fd 3 --connect --tap t":                             {2, "--connect needs --socket-path"},
		"--fd 3 --socket-group g --tap t":                      {2, "--socket-group is for"},
		"--socket-path s --tap t --queues 9":                   {2, "want 1 to 8"},
		"--socket-path s --tap t --mtu 9":                      {2, "want 68 to 65521"},
		"--socket-path s --tap t --name a/b":                   {2, "--name is"},
		"--socket-path s --tap t --xen=dom":                    {2, "want grant, foreign, off or auto"},
		"--socket-path s --tap t --rate 7":                     {2, "such as 100Mb/s"},
		"--socket-path s --tap t x":                            {2, "vhost-user --help"},
		"--socket-path no/s --tap t":                           {1, "its directory does not exist"},
		"--fd 0 --tap t":                                       {1, "pass a unix stream socket"},
		"--socket-path s --tap lo":                             {1, "no TAP"},
		"--socket-path s --bridge br9":                         {1, "ip link add br9 type bridge"},
		"--socket-path s --tap t --socket-group no-such-group": {2, "no-such-group"},
	} {
		t.Run(args, func(t *testing.T) {
			words := strings.Fields(args)
			for i := range words {
				if words[i] == "s" || words[i] == "no/s" {
					words[i] = filepath.Join(dir, words[i])
				}
			}
			p := program(t, dir, nil, words...)
			if code := p.wait(); code != want.code || !strings.Contains(p.log, want.text) {
				t.Errorf("exit code %d, want %d and %q\n%s", code, want.code, want.text, p.log)
			}
			if files := left(t, dir); len(files) != 0 {
				t.Errorf("left: %q", files)
			}
		})
	}
}

// TestXenModes: the values of --xen.
func TestXenModes(t *testing.T) {
	auto := vhostnet.XenOff
	if b, err := os.ReadFile("/sys/hypervisor/type"); err == nil && strings.TrimSpace(string(b)) == "xen" {
		auto = vhostnet.XenForeign
	}
	for args, want := range map[string]vhostnet.Xen{
		"": auto, "--xen=auto": auto, "--xen=off": vhostnet.XenOff, "--xen=foreign": vhostnet.XenForeign,
		"--xen": vhostnet.XenGrant, "--xen=grant": vhostnet.XenGrant,
	} {
		c := newVhostUserCmd()
		if err := c.ParseFlags(strings.Fields(args)); err != nil {
			t.Fatal(err)
		}
		f := vhostFlags{xen: c.Flag("xen").Value.String()}
		if got, err := f.mode(); err != nil || got != want {
			t.Errorf("%q: %v, %v, want %v", args, got, err, want)
		}
	}
}
