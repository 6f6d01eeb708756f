// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// envHelper selects what this binary does when a test starts it again.
const envHelper = "NETNS_TEST_HELPER"

func TestMain(m *testing.M) {
	if code, done := Enter(); done {
		os.Exit(code)
	}
	if helper := os.Getenv(envHelper); helper != "" {
		os.Exit(help(helper))
	}
	goleak.VerifyTestMain(m)
}

func help(what string) int {
	switch what {
	case "links": // print the links, then live until stdin is closed
		links, err := linkNames()
		fmt.Println(id(), strings.Join(links, ","), err)
		_, _ = io.Copy(io.Discard, os.Stdin)
	case "available": // report the reason as Need does
		fmt.Println("available:", Available())
		fmt.Println("tun:", CheckTUN())
	case "exit":
		return 42
	case "kill":
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
	}
	return 0
}

// helper returns a command that runs help(what) in this binary.
func helper(what string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), envHelper+"="+what)
	cmd.Stderr = os.Stderr
	return cmd
}

// outside clears the mark of Enter in the environment of cmd.
func outside(cmd *exec.Cmd) *exec.Cmd {
	cmd.Env = append(cmd.Env, envInside+"=")
	return cmd
}

func id() string {
	s, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		return err.Error()
	}
	return s
}

func linkNames() ([]string, error) {
	links, err := netlink.LinkList()
	var names []string
	for _, l := range links {
		names = append(names, l.Attrs().Name)
	}
	return names, err
}

func TestEnterGivesAnEmptyNetworkWithLoopbackUp(t *testing.T) {
	Need(t)
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if lo.Attrs().Flags&net.FlagUp == 0 {
		t.Error("loopback is down")
	}
	cmd := outside(helper("links"))
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	ns, links, _ := strings.Cut(strings.TrimSpace(string(out)), " ")
	if ns == id() {
		t.Errorf("a process that entered is still in namespace %s", ns)
	}
	if diff := cmp.Diff("lo <nil>", links); diff != "" {
		t.Errorf("its links (-want +got):\n%s", diff)
	}
	if _, err := AddBridge("br-sysfs"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := Delete("br-sysfs"); err != nil {
			t.Error(err)
		}
	}()
	if _, err := os.Stat("/sys/class/net/br-sysfs"); err != nil && os.Geteuid() == 0 {
		t.Errorf("/sys shows another network: %v", err)
	}
}

func TestEnterReturnsTheExitCodeOfTheSecondProcess(t *testing.T) {
	Need(t)
	for _, tc := range []struct {
		helper string
		want   int
	}{
		{"exit", 42},
		{"kill", 128 + int(unix.SIGKILL)},
		{"", 0},
	} {
		t.Run("helper "+tc.helper, func(t *testing.T) {
			if tc.helper == "" {
				tc.helper = "available"
			}
			cmd := outside(helper(tc.helper))
			err := cmd.Run()
			if got := cmd.ProcessState.ExitCode(); got != tc.want {
				t.Errorf("exit code %d (%v), want %d", got, err, tc.want)
			}
		})
	}
}

func TestEnterAsAnUnprivilegedUser(t *testing.T) {
	Need(t)
	cmd := outside(helper("available"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if errors.Is(err, unix.EPERM) {
		t.Skip("not root: cannot become another user")
	}
	if err != nil {
		t.Fatalf("%v\n%s%s", err, out, &stderr)
	}
	if strings.Contains(string(out), "available: <nil>") {
		// User namespaces are allowed; /dev/net/tun may still not be.
		fi, err := os.Stat(tunPath)
		if err != nil || fi.Mode().Perm()&0o006 == 0o006 {
			return
		}
		if want := "chmod 666 " + tunPath; !strings.Contains(string(out), want) {
			t.Errorf("got:\n%swant a hint %q", out, want)
		}
		return
	}
	if want := "run as root"; !strings.Contains(string(out), want) || !strings.Contains(stderr.String(), want) {
		t.Errorf("got:\n%s%swant a hint %q in both", out, &stderr, want)
	}
}

func TestStartGivesAProcessItsOwnNetwork(t *testing.T) {
	Need(t)
	cmd := helper("links")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := Start(cmd); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	ns, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
	if ns == id() {
		t.Errorf("child is in our namespace %s", ns)
	}
	if diff := cmp.Diff("lo <nil>", rest); diff != "" {
		t.Errorf("links of the child (-want +got):\n%s", diff)
	}
	var there string
	for range 100 { // each ends a thread, but never the one the child depends on
		if err := Do(cmd.Process.Pid, func() error { return nil }); err != nil {
			t.Fatal(err)
		}
	}
	if err := Do(cmd.Process.Pid, func() error { there = id(); return Up("lo") }); err != nil {
		t.Error(err)
	}
	if there != ns {
		t.Errorf("Do ran in %s, want %s", there, ns)
	}
	if err := errors.Join(stdin.Close(), cmd.Wait()); err != nil {
		t.Error(err)
	}
	if _, err := OfPid(cmd.Process.Pid); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("OfPid of a finished process: %v, want os.ErrProcessDone", err)
	}
}

func TestDo(t *testing.T) {
	Need(t)
	ns, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ns.Close(); err != nil {
			t.Error(err)
		}
	})
	before := id()

	t.Run("links made inside are not seen outside", func(t *testing.T) {
		var inside []string
		if err := ns.Do(func() error {
			if _, err := AddBridge("br-inside"); err != nil {
				return err
			}
			var err error
			inside, err = linkNames()
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"lo", "br-inside"}, inside); diff != "" {
			t.Errorf("links inside (-want +got):\n%s", diff)
		}
		if err := Up("br-inside"); err == nil {
			t.Error("br-inside is visible outside")
		}
	})
	t.Run("what was opened inside stays there", func(t *testing.T) {
		var h *netlink.Handle
		if err := ns.Do(func() (err error) {
			h, err = netlink.NewHandle(unix.NETLINK_ROUTE)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		if _, err := h.LinkByName("br-inside"); err != nil {
			t.Error(err)
		}
	})
	t.Run("error is passed on", func(t *testing.T) {
		want := errors.New("mine")
		if err := ns.Do(func() error { return want }); !errors.Is(err, want) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("goexit is an error", func(t *testing.T) {
		if err := ns.Do(func() error { runtime.Goexit(); return nil }); !errors.Is(err, errGoexit) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("path", func(t *testing.T) {
		got, err := os.Readlink(ns.Path())
		if err != nil || !strings.HasPrefix(got, "net:[") {
			t.Errorf("%s -> %s, %v", ns.Path(), got, err)
		}
	})
	t.Run("many at once", func(t *testing.T) {
		errs := make(chan error, 16)
		for range cap(errs) {
			go func() {
				errs <- ns.Do(func() error { _, err := netlink.LinkByName("br-inside"); return err })
			}()
		}
		for range cap(errs) {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
	})
	if after := id(); after != before {
		t.Errorf("namespace of the test changed from %s to %s", before, after)
	}
}

func TestBridgeAndAddresses(t *testing.T) {
	Need(t)
	ns, err := New()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := ns.Close(); err != nil {
			t.Error(err)
		}
	}()
	mac := net.HardwareAddr{0x00, 0x16, 0x3e, 1, 2, 3}
	err = ns.Do(func() error {
		index, err := AddBridge("br0")
		if err != nil {
			return err
		}
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "a0"}, PeerName: "b0"}); err != nil {
			return err
		}
		if err := errors.Join(
			Attach("a0", "br0"), Up("a0"), Rename("a0", "a1"), SetMAC("b0", mac), Up("b0"),
			AddAddr("br0", "192.0.2.1/24"), AddAddr("b0", "2001:db8::1/64"),
			Sysctl("net/ipv4/ip_forward", "1"),
		); err != nil {
			return err
		}
		a, err := netlink.LinkByName("a1")
		if err != nil {
			return err
		}
		if a.Attrs().MasterIndex != index {
			return fmt.Errorf("master of a1 is %d, want br0, %d", a.Attrs().MasterIndex, index)
		}
		b, err := netlink.LinkByName("b0")
		if err != nil {
			return err
		}
		if got := b.Attrs().HardwareAddr.String(); got != mac.String() {
			return fmt.Errorf("address of b0 is %s, want %s", got, mac)
		}
		// An address still being probed cannot be bound.
		for _, addr := range []string{"192.0.2.1:0", "[2001:db8::1]:0"} {
			l, err := net.Listen("tcp", addr)
			if err != nil {
				return err
			}
			if err := l.Close(); err != nil {
				return err
			}
		}
		return errors.Join(Down("b0"), Delete("b0"))
	})
	if err != nil {
		t.Error(err)
	}
}

func TestLinkErrorsNameTheLinkAndTheDeed(t *testing.T) {
	Need(t)
	err := Attach("nosuch", "br0")
	if err == nil || !strings.Contains(err.Error(), "link nosuch: attach to br0: ") {
		t.Errorf("got %v", err)
	}
	if !errors.As(err, new(netlink.LinkNotFoundError)) {
		t.Errorf("%v is not a LinkNotFoundError", err)
	}
}

func TestErrorsSayWhatToDo(t *testing.T) {
	for _, tc := range []struct {
		name string
		err  error
		want string
	}{
		{"tun node missing", explainTUN(unix.ENOENT), "modprobe tun"},
		{"tun driver missing", explainTUN(unix.ENODEV), "CONFIG_TUN"},
		{"tun not permitted", explainTUN(unix.EACCES), "run as root or `chmod 666 /dev/net/tun`"},
		{"namespace not permitted", explainClone(unix.EPERM), "run as root"},
		{"too many namespaces", explainClone(unix.ENOSPC), "user.max_net_namespaces"},
		{"kernel without namespaces", explainClone(unix.EINVAL), "CONFIG_NET_NS"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if !errors.Is(tc.err, ErrUnavailable) || !strings.Contains(tc.err.Error(), tc.want) {
				t.Errorf("got %v", tc.err)
			}
		})
	}
	if err := explainClone(unix.ENOENT); errors.Is(err, ErrUnavailable) {
		t.Errorf("a missing program is not a missing network: %v", err)
	}
}

type fakeTB struct{ skipped, failed bool }

func (f *fakeTB) Helper()      {}
func (f *fakeTB) Skip(...any)  { f.skipped = true }
func (f *fakeTB) Fatal(...any) { f.failed = true }

func TestNeedSkipsOutsideAndFailsWhereRequired(t *testing.T) {
	t.Setenv(envInside, "")
	t.Setenv(envReason, "because")
	var got fakeTB
	t.Setenv(envRequire, "")
	Need(&got)
	if diff := cmp.Diff(fakeTB{skipped: true}, got, cmp.AllowUnexported(fakeTB{})); diff != "" {
		t.Errorf("outside (-want +got):\n%s", diff)
	}
	got = fakeTB{}
	t.Setenv(envRequire, "1")
	Need(&got)
	if diff := cmp.Diff(fakeTB{failed: true}, got, cmp.AllowUnexported(fakeTB{})); diff != "" {
		t.Errorf("outside, required (-want +got):\n%s", diff)
	}
	if err := Available(); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "because") {
		t.Errorf("Available: %v", err)
	}
}

func TestTheMainThreadStaysWhereItIs(t *testing.T) {
	Need(t)
	ns, err := New()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	main := fmt.Sprintf("/proc/self/task/%d/ns/net", os.Getpid())
	before, err := os.Readlink(main)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 200 {
		wg.Go(func() {
			if err := ns.Do(func() error { return nil }); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if after, _ := os.Readlink(main); after != before {
		t.Errorf("the main thread is in %s, was in %s", after, before)
	}
}
