// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// childEnv makes the test binary a process that locks the file of this name, and leaves it
// open in a process of its own before it ends.
const childEnv = "DISK_TEST_CHILD"

func TestMain(m *testing.M) {
	if path := os.Getenv(childEnv); path != "" {
		os.Exit(child(path))
	}
	before := openFiles()
	code := m.Run()
	if err := goleak.Find(); err != nil {
		fmt.Fprintln(os.Stderr, "goroutines leak:", err)
		code = 1
	}
	// Go's poller opens one epoll and one eventfd on first use.
	if after := openFiles(); after > before+2 {
		fmt.Fprintf(os.Stderr, "%d files were open before the tests, %d are after\n", before, after)
		code = 1
	}
	os.Exit(code)
}

func openFiles() int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		panic(err)
	}
	return len(entries)
}

// child locks the file and prints the pid of a process that inherits it.
func child(path string) int {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err == nil {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
	}
	heir := exec.Command("sleep", "1000")
	heir.ExtraFiles = []*os.File{f}
	if err == nil {
		err = heir.Start()
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println(heir.Process.Pid)
	return 0
}

// image makes a file of size bytes on a disk, not in tmpfs.
func image(t testing.TB, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.img")
	f, err := os.Create(path)
	if err == nil {
		err = errors.Join(f.Truncate(size), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t testing.TB, o Options) *Disk {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	d, err := Open(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { shut(t, d) })
	return d
}

func shut(t testing.TB, d *Disk) {
	t.Helper()
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}

// refused opens a disk that must be refused, without waiting for a lock.
func refused(t testing.TB, o Options) *Error {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	d, err := Open(ctx, o)
	if err == nil {
		shut(t, d)
		t.Fatalf("%s is opened", o.Path)
	}
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("error %T (%v): want *Error", err, err)
	}
	return e
}

// command runs a program of the host, and skips the test where it is missing or fails.
func command(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Skipf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// loop attaches a loop device to a file, or skips the test.
func loop(t testing.TB, path string, args ...string) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("loop devices need root")
	}
	dev := command(t, "losetup", append(args, "--find", "--show", path)...)
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", dev).CombinedOutput(); err != nil {
			t.Errorf("detach %s: %v: %s", dev, err, out)
		}
	})
	return dev
}
