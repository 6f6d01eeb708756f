// SPDX-License-Identifier: Apache-2.0

package iouring

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// childEnv makes the test binary act as a process with fewer rights.
const childEnv = "IOURING_TEST_CHILD"

func TestMain(m *testing.M) {
	if role := os.Getenv(childEnv); role != "" {
		os.Exit(child(role))
	}
	before, err := openFiles()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	if err := goleak.Find(); err != nil {
		fmt.Fprintln(os.Stderr, "goroutines leak:", err)
		code = 1
	}
	// Go's poller opens one epoll and one eventfd on first use.
	if after, err := openFiles(); err != nil || after > before+2 {
		fmt.Fprintf(os.Stderr, "%d files were open before the tests, %d are after (%v)\n", before, after, err)
		code = 1
	}
	os.Exit(code)
}

func openFiles() (int, error) {
	entries, err := os.ReadDir("/proc/self/fd")
	return len(entries), err
}

// ringMappings counts the lines of io_uring mappings in /proc/self/maps.
func ringMappings(t *testing.T) int {
	t.Helper()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(maps), "io_uring")
}

// memory maps n bytes outside the Go heap.
func memory(t testing.TB, n int) []byte {
	t.Helper()
	mem, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Munmap(mem); err != nil {
			t.Error(err)
		}
	})
	return mem
}

func iovecs(t testing.TB, n int) *Iovecs {
	t.Helper()
	v, err := NewIovecs(n)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	})
	return v
}

func closeNow(t testing.TB, fds ...int) {
	t.Helper()
	for _, fd := range fds {
		if err := unix.Close(fd); err != nil {
			t.Errorf("close fd %d: %v", fd, err)
		}
	}
}

func closeLater(t testing.TB, fds ...int) {
	t.Cleanup(func() { closeNow(t, fds...) })
}

// watchdog ends the process with all stacks when a test hangs in the kernel,
// where the test's own deadline cannot reach it.
func watchdog(t testing.TB, limit time.Duration) {
	timer := time.AfterFunc(limit, func() { panic(t.Name() + " hangs") })
	t.Cleanup(func() { timer.Stop() })
}

// mode selects the features of a test ring, as on the kernels that it names.
type mode struct {
	name   string
	flags  uint32 // for open
	noWait bool   // operations carry RWF_NOWAIT where files take it
}

var modes = []mode{
	{"as on 6.4", setupSingleIssuer | setupDeferTaskrun | setupSubmitAll, true},
	{"as on 6.1", setupSingleIssuer | setupDeferTaskrun | setupSubmitAll, false},
	{"as on 5.19", 0, false},
}

// eachMode runs a test in every mode, on a thread that it keeps.
func eachMode(t *testing.T, test func(t *testing.T, m mode)) {
	t.Helper()
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			runtime.LockOSThread()
			t.Cleanup(runtime.UnlockOSThread)
			watchdog(t, 30*time.Second)
			test(t, m)
		})
	}
}

// ring makes a ring with a table of 8 files.
func (m mode) ring(t testing.TB, entries uint32) *Ring {
	t.Helper()
	r, err := open(entries, m.flags)
	if errors.Is(err, ErrNotSupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := r.RegisterFiles(8); err != nil {
		t.Fatal(err)
	}
	return r
}

// set registers a file in a slot, as the mode does.
func (m mode) set(t testing.TB, r *Ring, slot, fd int) {
	t.Helper()
	if err := r.SetFile(slot, fd); err != nil {
		t.Fatal(err)
	}
	if !m.noWait {
		r.rwFlags[slot] = 0
	}
}

// submit runs the batch and returns the results by User.
func submit(t testing.TB, r *Ring) map[uint64]int32 {
	t.Helper()
	ready, err := r.Submit()
	if err != nil {
		t.Fatal(err)
	}
	done := make([]Completion, ready+1)
	n := r.Completions(done)
	if n != ready {
		t.Fatalf("Submit promises %d completions, there are %d", ready, n)
	}
	results := make(map[uint64]int32, n)
	for _, c := range done[:n] {
		if _, twice := results[c.User]; twice {
			t.Fatalf("operation %d completed twice", c.User)
		}
		results[c.User] = c.Res
	}
	return results
}

// child runs in a process of its own, on its only locked thread.
func child(role string) int {
	runtime.LockOSThread()
	verb, arg, _ := strings.Cut(role, ":")
	n, _ := strconv.Atoi(arg)
	var err error
	switch verb {
	case "seccomp": // io_uring_setup fails with errno n
		if err = denySetup(unix.Errno(n)); err == nil {
			err = Supported()
		}
	case "memlock": // no CAP_IPC_LOCK, n bytes may be locked
		err = registerWithMemlock(uint64(n))
	case "reserve": // rings are reserved, then io_uring_setup fails with errno n
		err = useReserved(unix.Errno(n))
	default:
		err = errors.New("unknown role")
	}
	fmt.Println(err)
	fmt.Println(errors.Is(err, ErrNotSupported))
	return 0
}

// denySetup installs a seccomp filter for this thread.
func denySetup(errno unix.Errno) error {
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // seccomp_data.nr
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_IO_URING_SETUP, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(errno)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	prog := &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, reflect.ValueOf(prog).Pointer(), 0, 0); err != nil {
		return err
	}
	runtime.KeepAlive(filter)
	return nil
}

func registerWithMemlock(limit uint64) error {
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: limit, Max: limit}); err != nil {
		return err
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&header, &none[0]); err != nil {
		return err
	}
	r, err := New(1)
	if err != nil {
		return err
	}
	mem, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	return errors.Join(r.RegisterBuffers(mem), r.Close())
}
