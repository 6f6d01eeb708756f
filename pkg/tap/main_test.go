// SPDX-License-Identifier: Apache-2.0

package tap

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/netns"
)

// envHelper selects what this binary does when a test starts it again.
const envHelper = "TAP_TEST_HELPER"

func TestMain(m *testing.M) {
	if code, done := netns.Enter(); done {
		os.Exit(code)
	}
	if helper := os.Getenv(envHelper); helper != "" {
		if err := help(strings.Fields(helper)); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if err := netns.NoIPv6(); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	goleak.VerifyTestMain(m)
}

func help(args []string) error {
	cfg := Config{Name: args[1], VnetHdr: args[2] == "vnet", Queues: 3, Persist: true}
	switch args[0] {
	case "hold": // hold a device until killed
		if _, err := Create(cfg); err != nil {
			return err
		}
		fmt.Println("holding")
		_, _ = io.Copy(io.Discard, os.Stdin)
		return errors.New("stdin was closed")
	case "create": // create a device as the user of this process
		_, err := Create(cfg)
		return err
	case "powerless": // without CAP_NET_ADMIN, and count what is left behind
		runtime.LockOSThread()
		hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&hdr, &none[0]); err != nil {
			return err
		}
		_, err := Create(cfg)
		links, _ := os.ReadDir("/proc/self/fd")
		for _, l := range links {
			if to, _ := os.Readlink("/proc/self/fd/" + l.Name()); to == tunPath {
				fmt.Println("left open: fd", l.Name())
			}
		}
		return err
	}
	return fmt.Errorf("no helper %q", args)
}

// helper returns a command that runs help(args) in this binary.
func helper(args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), envHelper+"="+strings.Join(args, " "))
	cmd.Stderr = os.Stderr
	return cmd
}

// hold starts a process that holds a persistent device with three queues and
// returns what kills it, and waits until it is dead.
func hold(t *testing.T, name, kind string) (pid int, kill func()) {
	t.Helper()
	cmd := helper("hold", name, kind)
	// Its stdin is closed when this process dies, and then it does too.
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	dead := false
	kill = func() {
		if dead {
			return
		}
		dead = true
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed; and has closed stdin
	}
	t.Cleanup(func() {
		kill()
		_ = netns.Delete(name) // unless the test did
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil || line != "holding\n" {
		t.Fatalf("holder said %q, %v", line, err)
	}
	return cmd.Process.Pid, kill
}

// both runs a test on a device with and on one without a vnet header.
func both(t *testing.T, test func(t *testing.T, cfg Config)) {
	t.Run("with vnet header", func(t *testing.T) { test(t, Config{Name: "vif1.0", VnetHdr: true}) })
	t.Run("plain", func(t *testing.T) { test(t, Config{Name: "vif1.0"}) })
}

// newTAP makes a device that goes away after the test.
func newTAP(t *testing.T, cfg Config) *Device {
	t.Helper()
	d, err := Create(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// newBridge makes a bridge that goes away after the test.
func newBridge(t *testing.T, name string) (index int) {
	t.Helper()
	index, err := netns.AddBridge(name)
	must(t, err)
	t.Cleanup(func() {
		if err := netns.Delete(name); err != nil {
			t.Error(err)
		}
	})
	return index
}

// newTAPUp makes a device and brings it up.
func newTAPUp(t *testing.T, cfg Config) *Device {
	t.Helper()
	d := newTAP(t, cfg)
	must(t, netns.Up(cfg.Name))
	return d
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wantErr checks an error's sentinel, and that it teaches.
func wantErr(t *testing.T, err, is error, says ...string) {
	t.Helper()
	if !errors.Is(err, is) {
		t.Errorf("got error %v, want one that is %v", err, is)
		return
	}
	for _, s := range says {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("got error %q, want it to say %q", err, s)
		}
	}
}

// tuntap asks netlink about a device.
func tuntap(t *testing.T, name string) *netlink.Tuntap {
	t.Helper()
	link, err := netlink.LinkByName(name)
	must(t, err)
	tt, ok := link.(*netlink.Tuntap)
	if !ok {
		t.Fatalf("%s is a %s", name, link.Type())
	}
	return tt
}

func exists(name string) bool {
	_, err := netlink.LinkByName(name)
	return err == nil
}

// info asks the host about a device.
func info(t *testing.T, d *Device) Info {
	t.Helper()
	i, err := d.Info()
	must(t, err)
	return i
}

// openFDs returns how many descriptors this process has, without those of netlink, of which
// nlsock keeps a few.
func openFDs(t *testing.T) (n int) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	table, err := os.ReadFile("/proc/thread-self/net/netlink")
	must(t, err)
	netlinks := map[string]bool{}
	for line := range strings.Lines(string(table)) {
		if f := strings.Fields(line); len(f) > 9 {
			netlinks["socket:["+f[9]+"]"] = true
		}
	}
	for _, e := range entries {
		if link, _ := os.Readlink("/proc/self/fd/" + e.Name()); !netlinks[link] {
			n++
		}
	}
	return n
}

// readable waits until a queue has something to say. The limit is there for
// broken code only.
func readable(t *testing.T, q *Queue) {
	t.Helper()
	p := []unix.PollFd{{Fd: int32(q.FD()), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(p, 5000)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			t.Fatalf("nothing to read on queue %d: %v", q.Index(), err)
		}
		return
	}
}

// eventually tries until ok, for things that the kernel finishes later.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 5 s: %s", what)
		}
	}
}

func itoa(i int) string { return strconv.Itoa(i) }
