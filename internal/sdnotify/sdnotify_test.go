// SPDX-License-Identifier: Apache-2.0

package sdnotify

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/fuzzloop"
)

func TestMain(m *testing.M) {
	if os.Getenv("SDNOTIFY_TEST_SERVICE") != "" {
		service()
		return
	}
	goleak.VerifyTestMain(m)
}

// manager is the service manager's end of the socket.
type manager struct {
	t    *testing.T
	conn *net.UnixConn
}

func newManager(t *testing.T, name string) *manager {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: name})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &manager{t, conn}
}

// next receives a message and the files that came with it.
func (m *manager) next() (string, []int) {
	m.t.Helper()
	_ = m.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	text, rights := make([]byte, 4096), make([]byte, 256)
	n, rn, _, _, err := m.conn.ReadMsgUnix(text, rights)
	if err != nil {
		m.t.Fatal(err)
	}
	var fds []int
	control, err := unix.ParseSocketControlMessage(rights[:rn])
	if err != nil {
		m.t.Fatal(err)
	}
	for i := range control {
		got, err := unix.ParseUnixRights(&control[i])
		if err != nil {
			m.t.Fatal(err)
		}
		fds = append(fds, got...)
	}
	return string(text[:n]), fds
}

// connected makes a manager and a Notifier that talks to it.
func connected(t *testing.T) (*manager, *Notifier) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	n, err := parseSocket(path)
	if err != nil {
		t.Fatal(err)
	}
	return newManager(t, path), n
}

func TestMessages(t *testing.T) {
	m, n := connected(t)
	for _, tt := range []struct {
		send func() error
		want string
	}{
		{n.Ready, "READY=1"},
		{n.Stopping, "STOPPING=1"},
		{n.Alive, "WATCHDOG=1"},
		{func() error { return n.Status("serving 3 vifs") }, "STATUS=serving 3 vifs"},
		{func() error { return n.Status("one\nFDSTORE=1") }, "STATUS=one FDSTORE=1"},
		{func() error { return n.Remove("tap-1.0-0") }, "FDSTOREREMOVE=1\nFDNAME=tap-1.0-0"},
	} {
		if err := tt.send(); err != nil {
			t.Errorf("%s: %v", tt.want, err)
			continue
		}
		got, fds := m.next()
		if diff := cmp.Diff(tt.want, got); diff != "" || len(fds) != 0 {
			t.Errorf("%d files, unexpected message (-want +got):\n%s", len(fds), diff)
		}
	}
}

// TestStore: the manager gets the same open file, and is told not to poll it.
func TestStore(t *testing.T) {
	m, n := connected(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	fd, err := dup(w)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(n.Store("a name", fd), w.Close(), unix.Close(fd)); err != nil {
		t.Fatal(err)
	}
	got, fds := m.next()
	if got != "FDSTORE=1\nFDPOLL=0\nFDNAME=a name" || len(fds) != 1 {
		t.Fatalf("got %q with %d files", got, len(fds))
	}
	if _, err := unix.Write(fds[0], []byte("x")); err != nil {
		t.Error(err)
	}
	_ = unix.Close(fds[0])
	b := make([]byte, 2)
	if k, err := r.Read(b); err != nil || k != 1 || b[0] != 'x' {
		t.Errorf("read %q, %v", b[:k], err)
	}
}

func TestBadNames(t *testing.T) {
	_, n := connected(t)
	for _, name := range []string{"", "a:b", "line\nfeed", "\x7f", "ä", strings.Repeat("x", 256)} {
		if err := n.Store(name, 0); err == nil {
			t.Errorf("stored %q", name)
		}
		if err := n.Remove(name); err == nil {
			t.Errorf("removed %q", name)
		}
	}
}

func TestBarrier(t *testing.T) {
	m, n := connected(t)
	passed := make(chan error, 1)
	go func() { passed <- n.Barrier(context.Background()) }()
	got, fds := m.next()
	if got != "BARRIER=1" || len(fds) != 1 {
		t.Fatalf("got %q with %d files", got, len(fds))
	}
	select {
	case err := <-passed:
		t.Fatalf("passed while the manager was at it: %v", err)
	default:
	}
	if err := unix.Close(fds[0]); err != nil {
		t.Fatal(err)
	}
	if err := <-passed; err != nil {
		t.Error(err)
	}
}

// TestBarrierOfABusyManager: Barrier returns after its timeout.
func TestBarrierOfABusyManager(t *testing.T) {
	_, n := connected(t)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if err := n.Barrier(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestNoManager(t *testing.T) {
	var n *Notifier
	ctx := context.Background()
	if err := errors.Join(n.Ready(), n.Stopping(), n.Alive(), n.Status("x"), n.Store("x", 0), n.Remove("x"), n.Barrier(ctx)); err != nil {
		t.Error(err)
	}
	if n.Watchdog() != 0 {
		t.Error("a watchdog without a manager")
	}
}

// TestManyAtOnce stores and removes files while the watchdog is fed.
func TestManyAtOnce(t *testing.T) {
	const each, senders = 50, 8
	m, n := connected(t)
	var wg sync.WaitGroup
	for range senders {
		wg.Go(func() {
			for range each {
				if err := n.Alive(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range each * senders {
		if got, _ := m.next(); got != "WATCHDOG=1" {
			t.Errorf("got %q", got)
		}
	}
	wg.Wait()
}

// TestManagerGone: the error names the message that could not be sent.
func TestManagerGone(t *testing.T) {
	m, n := connected(t)
	_ = m.conn.Close()
	if err := n.Ready(); err == nil || !strings.Contains(err.Error(), "READY=1") {
		t.Errorf("got %v", err)
	}
}

func TestParseSocket(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"/run/systemd/notify", "/run/systemd/notify"},
		{"@notify", "@notify"},
		{"", ""}, {"@", "error"}, {"notify", "error"}, {"vsock:2:1234", "error"},
	} {
		n, err := parseSocket(tt.in)
		got := ""
		switch {
		case err != nil:
			got = "error"
		case n != nil:
			got = n.addr
		}
		if got != tt.want {
			t.Errorf("%q: got %q, %v; want %q", tt.in, got, err, tt.want)
		}
	}
}

func env(pairs ...string) func(string) string {
	return func(key string) string {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == key {
				return pairs[i+1]
			}
		}
		return ""
	}
}

func TestParseWatchdog(t *testing.T) {
	for _, tt := range []struct {
		usec, pid string
		want      time.Duration
		bad       bool
	}{
		{usec: ""},
		{usec: "10000000", want: 10 * time.Second},
		{usec: "10000000", pid: "42", want: 10 * time.Second},
		{usec: "10000000", pid: "43"},
		{usec: "0", bad: true}, {usec: "-1", bad: true}, {usec: "soon", bad: true},
		{usec: "9223372036854775807", bad: true},
	} {
		got, err := parseWatchdog(42, env(envWatchdogUsec, tt.usec, envWatchdogPID, tt.pid))
		if got != tt.want || (err != nil) != tt.bad {
			t.Errorf("%+v: got %v, %v", tt, got, err)
		}
	}
}

func TestListenFiles(t *testing.T) {
	for _, tt := range []struct {
		name            string
		pid, fds, names string
		want            []File
		bad             bool
	}{
		{name: "none"},
		{name: "two", pid: "42", fds: "2", names: "a:b", want: []File{{"a", 1000}, {"b", 1001}}},
		{name: "without names", pid: "42", fds: "2", want: []File{{"unknown", 1000}, {"unknown", 1001}}},
		{name: "one without a name", pid: "42", fds: "2", names: "a:", want: []File{{"a", 1000}, {"", 1001}}},
		{name: "for the parent", pid: "41", fds: "2", names: "a:b"},
		{name: "fewer names than files", pid: "42", fds: "2", names: "a", want: []File{{"unknown", 1000}, {"unknown", 1001}}, bad: true},
		{name: "no number", pid: "42", fds: "two", bad: true},
		{name: "nonsense", pid: "42", fds: "2147483647", bad: true},
		{name: "negative", pid: "42", fds: "-1", bad: true},
	} {
		got, err := listenFiles(42, 1000, env(envListenPID, tt.pid, envListenFDs, tt.fds, envListenNames, tt.names))
		if diff := cmp.Diff(tt.want, got); diff != "" || (err != nil) != tt.bad {
			t.Errorf("%s: error %v, unexpected files (-want +got):\n%s", tt.name, err, diff)
		}
	}
}

// FuzzListenFiles: for any environment ListenFiles returns, with no more files than the
// environment announces.
func FuzzListenFiles(f *testing.F) {
	f.Add("2", "a:b")
	f.Add("65537", "")
	f.Add("1", ":::")
	fuzzloop.Fuzz(f, func(t *testing.T, fds, names string) {
		got, _ := listenFiles(1, 1<<20, env(envListenPID, "1", envListenFDs, fds, envListenNames, names))
		if len(got) > maxFiles {
			t.Errorf("%d files", len(got))
		}
	})
}

// TestService starts a service as its manager does. It finds its manager at an abstract
// socket, and the file of its predecessor. Its children inherit none of these.
func TestService(t *testing.T) {
	name := fmt.Sprintf("@netbackd-test-%d", os.Getpid())
	m := newManager(t, name)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	// The manager knows the process's number only after the fork.
	cmd := exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ exec "$0"`, os.Args[0])
	cmd.Env = append(os.Environ(), "SDNOTIFY_TEST_SERVICE=1", "NOTIFY_SOCKET="+name, "LISTEN_FDS=1", "LISTEN_FDNAMES=tap-1.0-0", "WATCHDOG_USEC=3000000")
	cmd.ExtraFiles = []*os.File{w}
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %s", err, said.String())
	}
	_ = w.Close()
	if diff := cmp.Diff("tap-1.0-0 3s \n", said.String()); diff != "" {
		t.Errorf("unexpected output (-want +got):\n%s", diff)
	}
	if got, _ := m.next(); got != "READY=1" {
		t.Errorf("got %q", got)
	}
	b := make([]byte, 16)
	if n, err := r.Read(b); err != nil || string(b[:n]) != "here" {
		t.Errorf("read %q, %v", b[:n], err)
	}
}

// service is the program that TestService starts.
func service() {
	n, files, err := FromEnv()
	if err != nil || len(files) != 1 {
		fmt.Println(files, err)
		return
	}
	_, werr := unix.Write(files[0].FD, []byte("here"))
	if err := errors.Join(werr, n.Ready()); err != nil {
		fmt.Println(err)
	}
	left := ""
	for _, key := range []string{envSocket, envWatchdogUsec, envWatchdogPID, envListenPID, envListenFDs, envListenNames} {
		left += os.Getenv(key)
	}
	fmt.Println(files[0].Name, n.Watchdog(), left)
}
