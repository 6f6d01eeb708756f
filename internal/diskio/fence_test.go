// SPDX-License-Identifier: Apache-2.0

package diskio

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/disk"
)

// childEnv makes the test binary a daemon that starts a write and is killed: its value has
// the mode, the cache mode and the path of the disk.
const childEnv = "DISKIO_TEST_CHILD"

// handedEnv has the description of the disk for a child whose parent has opened it: its file is
// descriptor 3, and that for flushes 4.
const handedEnv = "DISKIO_TEST_HANDED"

// fenceChild writes 4 KiB of 'o' to the disk. It says "started" when the disk is open, and
// writes when it is told to.
func fenceChild(args string) error {
	f := strings.SplitN(args, ",", 3)
	cache, err := disk.ParseCache(f[1])
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	var d *disk.Disk
	if about := os.Getenv(handedEnv); about != "" {
		var s disk.Description
		if err := json.Unmarshal([]byte(about), &s); err != nil {
			return err
		}
		d = disk.Adopt(s, 3, []int{4})
	} else if d, err = disk.Open(context.Background(), disk.Options{Path: f[2], Cache: cache}); err != nil {
		return err
	}
	e, err := New(Config{NoIOUring: f[0] == "threads"})
	if err != nil {
		return err
	}
	if err := e.SetDisk(d); err != nil {
		return err
	}
	e.inline.on = e.inline.on && f[0] != "io_uring alone"
	mem, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	copy(mem, bytes.Repeat([]byte("o"), 4096))
	fmt.Println("started")
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return err
	}
	e.Write(0, address(mem), 4096, 1)
	fmt.Println("writes")
	return e.SubmitAndWait(1, -1)
}

// fileSystem makes a file system of 32 MiB, which a test can freeze: writes to it then wait in the
// kernel. It returns its directory.
func fileSystem(t *testing.T) (dir string) {
	t.Helper()
	dev := loop(t, image(t, 32<<20))
	if out, err := exec.Command("mkfs.ext4", "-q", dev).CombinedOutput(); err != nil {
		t.Skipf("mkfs.ext4: %v: %s", err, out)
	}
	dir = t.TempDir()
	if err := unix.Mount(dev, dir, "ext4", 0, ""); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

const (
	fiFreeze = 0xc0045877 // FIFREEZE
	fiThaw   = 0xc0045878 // FITHAW
)

func freeze(t *testing.T, dir string, request uint) {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.IoctlSetInt(int(f.Fd()), request, 0); err != nil {
		t.Fatal(err)
	}
}

// TestFence: while a write of a killed process is in the kernel, its disk cannot be
// opened. So the old write never lands after a new one, whichever way it took.
func TestFence(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("freezing a file system needs root")
	}
	dir := fileSystem(t)
	file := func(t *testing.T) (path, read string) {
		path = filepath.Join(dir, "disk.img")
		if err := os.WriteFile(path, make([]byte, 1<<16), 0o600); err != nil {
			t.Fatal(err)
		}
		return path, path
	}
	device := func(t *testing.T) (path, read string) {
		path, _ = file(t)
		return loop(t, path), path
	}
	for _, tt := range []struct {
		name  string
		cache disk.Cache
		make  func(t *testing.T) (path, read string)
	}{
		{"file, direct", disk.CacheDirect, file},
		{"file, page cache", disk.CacheWriteback, file},
		{"device", disk.CacheDirect, device},
	} {
		for _, m := range modes {
			t.Run(tt.name+", "+m.name, func(t *testing.T) {
				path, read := tt.make(t)
				fence(t, dir, m, tt.cache, path, read, false)
			})
			t.Run(tt.name+", handed over, "+m.name, func(t *testing.T) {
				path, read := tt.make(t)
				fence(t, dir, m, tt.cache, path, read, true)
			})
		}
	}
}

// hand opens the disk at path for a child.
func hand(t *testing.T, child *exec.Cmd, cache disk.Cache, path string) *disk.Disk {
	t.Helper()
	d, err := disk.Open(t.Context(), disk.Options{Path: path, Cache: cache})
	if err != nil {
		t.Fatal(err)
	}
	about, err := json.Marshal(d.Describe(0, 0))
	if err != nil {
		t.Fatal(err)
	}
	child.Env = append(child.Env, handedEnv+"="+string(about))
	for _, open := range []func() (int, error){
		func() (int, error) { return unix.FcntlInt(uintptr(d.FD()), unix.F_DUPFD_CLOEXEC, 0) }, d.OpenAgain,
	} {
		fd, err := open()
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), "disk")
		t.Cleanup(func() { _ = f.Close() })
		child.ExtraFiles = append(child.ExtraFiles, f)
	}
	return d
}

// fence kills a process with a write to path under way. The data is at read. With handed this
// process has opened the disk, as a broker, and closes it when the other one has died.
func fence(t *testing.T, dir string, m mode, cache disk.Cache, path, read string, handed bool) {
	unix.Sync() // so that freezing has nothing to wait for
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), childEnv+"="+m.name+","+cache.String()+","+path)
	child.Stderr = os.Stderr
	var ours *disk.Disk
	if handed {
		ours = hand(t, child, cache, path)
	}
	stdin, err1 := child.StdinPipe()
	stdout, err2 := child.StdoutPipe()
	if err := errors.Join(err1, err2, child.Start()); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stdout)
	expect := func(want string) {
		t.Helper()
		if !lines.Scan() || lines.Text() != want {
			t.Fatalf("the process says %q, want %q", lines.Text(), want)
		}
	}
	expect("started")
	thawed := false
	thaw := func() {
		if !thawed {
			thawed = true
			freeze(t, dir, fiThaw)
		}
	}
	freeze(t, dir, fiFreeze)
	defer thaw()
	if _, err := stdin.Write([]byte("go\n")); err != nil {
		t.Fatal(err)
	}
	expect("writes")
	awaitBlocked(t, child.Process.Pid, path)
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if handed {
		for _, f := range child.ExtraFiles {
			_ = f.Close()
		}
		shut(t, ours)
	}

	var holders []disk.Holder
	opened := make(chan error, 1)
	waits := make(chan struct{})
	var d *disk.Disk
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		var err error
		d, err = disk.Open(ctx, disk.Options{Path: path, Cache: cache, Waiting: func(h disk.Holder) {
			if holders = append(holders, h); len(holders) == 1 {
				close(waits)
			}
		}})
		opened <- err
	}()
	select {
	case <-waits:
	case err := <-opened:
		t.Fatalf("the disk was opened while a write was in the kernel: %v", err)
	}
	thaw()
	if err := <-opened; err != nil {
		t.Fatal(err)
	}
	defer shut(t, d)
	if !handed && holders[0].PID != child.Process.Pid {
		t.Errorf("waited for %v, want process %d", holders[0], child.Process.Pid)
	}
	// The old write has landed, or the kernel has dropped it for the signal.
	replace(t, d)
	_ = child.Wait() // it was killed; now all its threads have ended
	if got, err := os.ReadFile(read); err != nil || got[0] != 'n' {
		t.Errorf("the disk begins with %q, %v: want the new data", got[:1], err)
	}
}

// replace writes 4 KiB of 'n'.
func replace(t *testing.T, d *disk.Disk) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	e := modes[0].engine(t, d)
	mem := mapMemory(t, 4096)
	copy(mem, bytes.Repeat([]byte("n"), 4096))
	if res := one(t, e, e.Write(0, address(mem), 4096, 1)); res != 4096 {
		t.Errorf("write: %d", res)
	}
	shut(t, e)
}

// awaitBlocked waits until a thread of the process waits in the kernel for the file system,
// or the block device path has a request under way.
func awaitBlocked(t *testing.T, pid int, path string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); runtime.Gosched() {
		stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range stats {
			stat, _ := os.ReadFile(path) // the thread may have ended
			if _, rest, _ := strings.Cut(string(stat), ") "); strings.HasPrefix(rest, "D ") {
				return
			}
		}
		requests, _ := os.ReadFile("/sys/block/" + filepath.Base(path) + "/inflight") // of a device
		if f := strings.Fields(string(requests)); len(f) == 2 && f[1] != "0" {
			return
		}
	}
	t.Fatal("no write waits for the file system")
}
