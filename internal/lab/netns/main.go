// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// The environment has the result of Enter: a process started inside the namespaces is
// inside, too, and must not enter again.
const (
	// envInside is set in every process that is inside.
	envInside = "NETBACKD_NETNS"
	// envReason is set to the reason if Enter failed.
	envReason = "NETBACKD_NETNS_UNAVAILABLE"
	// envRequire makes Need fail instead of skip, so that a machine which
	// has to run all tests cannot silently run fewer.
	envRequire = "NETBACKD_NETNS_REQUIRE"
)

// Values of envInside.
const (
	insideFresh = "fresh" // the process itself was started by Enter
	insideReady = "ready" // an ancestor was started by Enter; the namespaces are set up
)

// Runner is the part of *testing.M that Main needs. As an interface it keeps package
// testing out of the programs that import this package.
type Runner interface{ Run() int }

// Main runs m in namespaces of its own, as [Enter] describes, and returns the exit code
// for the process. If they cannot be made, it prints the reason on standard error and runs
// m in place; [Need] and [NeedTUN] then skip the tests that need them.
func Main(m Runner) int {
	if code, done := Enter(); done {
		return code
	}
	return m.Run()
}

// Enter makes the rest of the program run in new network and mount namespaces
// (and a new user namespace, where the caller is not privileged), with the
// loopback device up and a /sys that shows this network.
//
// It starts the program once more, with the same arguments, environment and standard
// files. In the first process Enter waits for the second and returns its exit code and
// true: the program must then exit with that code and do nothing else. In the second
// process it returns 0 and false. It also returns 0 and false if namespaces cannot be
// made, with the reason on standard error and in [Available].
//
// Call it first in main or TestMain. The network of the second process is removed when
// that process dies for any reason, and it dies with the first.
func Enter() (code int, done bool) {
	switch os.Getenv(envInside) {
	case insideReady:
		return 0, false
	case insideFresh:
		if err := furnish(); err != nil {
			fmt.Fprintf(os.Stderr, "netns: %v\n", err)
			return 1, true
		}
		return 0, false
	}
	code, err := reexec()
	if err == nil {
		return code, true
	}
	fmt.Fprintf(os.Stderr, "netns: %v\n", err)
	// If the variable cannot be set, only the reason is lost.
	_ = os.Setenv(envReason, err.Error())
	return 0, false
}

// reexec runs this program again in new namespaces and waits for it. It returns an error
// if the program did not start.
func reexec() (code int, err error) {
	// The child is told to die with the thread that started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	cmd := &exec.Cmd{
		Path:   "/proc/self/exe",
		Args:   os.Args,
		Env:    append(os.Environ(), envInside+"="+insideFresh),
		Stdin:  os.Stdin,
		Stdout: os.Stdout,
		Stderr: os.Stderr,
	}
	isolate(cmd, unix.CLONE_NEWNET|unix.CLONE_NEWNS)
	if err := explainClone(cmd.Start()); err != nil {
		return 0, err
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return 0, err
	}
	if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal()), nil
	}
	return exit.ExitCode(), nil
}

// furnish completes fresh namespaces.
func furnish() error {
	if err := os.Setenv(envInside, insideReady); err != nil {
		return err
	}
	// systemd makes / shared; a mount made here must not be seen outside.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	// sysfs shows the network namespace of the process that mounted it. In a user
	// namespace the kernel refuses the mount if something is mounted below the
	// present /sys. Only readers of /sys/class/net need it, so ignore the error.
	_ = unix.Mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	if err := Up("lo"); err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	return nil
}

// Available returns nil in a process that runs in the namespaces made by [Enter]. Else it
// returns an error with the reason, which wraps [ErrUnavailable].
func Available() error {
	if os.Getenv(envInside) != "" {
		return nil
	}
	if reason := os.Getenv(envReason); reason != "" {
		reason = strings.TrimPrefix(reason, ErrUnavailable.Error()+": ")
		return fmt.Errorf("%w: %s", ErrUnavailable, reason)
	}
	return fmt.Errorf("%w: netns.Enter was not called", ErrUnavailable)
}

// TB is the part of testing.TB that Need and NeedTUN need.
type TB interface {
	Helper()
	Skip(args ...any)
	Fatal(args ...any)
}

// Need skips the test, with the reason, unless it runs in namespaces made by [Enter]. If
// the environment variable NETBACKD_NETNS_REQUIRE is set, the test fails instead.
func Need(t TB) {
	t.Helper()
	need(t, Available())
}

// NeedTUN is like Need for tests that also open TAP devices.
func NeedTUN(t TB) {
	t.Helper()
	err := Available()
	if err == nil {
		err = CheckTUN()
	}
	need(t, err)
}

func need(t TB, err error) {
	t.Helper()
	switch {
	case err == nil:
	case os.Getenv(envRequire) != "":
		t.Fatal(err)
	default:
		t.Skip(err)
	}
}
