// SPDX-License-Identifier: Apache-2.0

package confine

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/iouring"
	"github.com/netbackd/netbackd/internal/lab/confinetest"
	"github.com/netbackd/netbackd/internal/procwire"
	"github.com/netbackd/netbackd/internal/spawn"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntalloc"
	"github.com/netbackd/netbackd/pkg/gntdev"
)

// packetIoctls are the ioctls of a packet process.
var packetIoctls = slices.Concat(gntdev.Ioctls(), evtchn.Ioctls(), gntalloc.Ioctls())

const kindDo procwire.Kind = 1 // a request: the body names what to do in the sandbox

var rules = procwire.Rules{kindDo: {Ask: procwire.Size{Body: 100}, Answer: procwire.Size{Body: 100}}}

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "packets" {
		if err := packets(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(3)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// packets enters the sandbox of a packet process and obeys until its socket ends.
func packets() error {
	fd, err := spawn.Begin(spawn.Limits{})
	if err != nil {
		return err
	}
	c, err := procwire.New(fd, procwire.Config{In: rules, Handle: func(m *procwire.Message) {
		if err := do(string(m.Body)); err != nil {
			_ = m.Fail(err)
			return
		}
		_ = m.Answer(nil)
	}})
	if err != nil {
		return err
	}
	ringErr := iouring.Reserve(iouring.Reservation{Rings: 1, Entries: 8})
	if err := Enter(childPolicy()); err != nil {
		return err
	}
	if ringErr == nil {
		ring = useRing
	}
	c.Serve()
	<-c.Done()
	return nil
}

// policyEnv makes a child a disk process, if it is set.
const policyEnv = "CONFINE_TEST_DISKS"

// childPolicy is the policy of a child.
func childPolicy() Policy {
	if os.Getenv(policyEnv) != "" {
		return DiskProcess(packetIoctls[:len(packetIoctls):len(packetIoctls)])
	}
	return PacketProcess(packetIoctls)
}

// ring uses the reserved io_uring, if there is one.
var ring = func() error { return nil }

func do(what string) error {
	switch what {
	case "probe":
		return confinetest.Run()
	case "work":
		return work()
	case "panic":
		go panic("as told")
		select {}
	case "fault":
		var p *int
		*p = 1
	}
	return confinetest.Die(what)
}

// useRing writes by the reserved ring, once.
func useRing() (err error) {
	ring = func() error { return nil }
	r, err := iouring.New(8)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	mem, err := gntdev.NewArena(4096)
	if err != nil {
		return err
	}
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return err
	}
	mem.Bytes()[0] = 1
	if err := errors.Join(r.RegisterBuffers(mem.Bytes()), r.RegisterFiles(1), r.SetFile(0, fd)); err != nil {
		return err
	}
	r.WriteFixed(0, mem.Addr(0), 8, 0, 1)
	_, err = r.Submit()
	var c [1]iouring.Completion
	if r.Completions(c[:]); c[0].Res != 8 {
		return fmt.Errorf("a write by io_uring: %d", c[0].Res)
	}
	return errors.Join(err, mem.Close(), unix.Close(fd))
}

// work does what Go's runtime and a packet process need.
func work() error {
	if zone, _ := time.Now().Zone(); zone == "" {
		return errors.New("no time zone")
	}
	// Threads, signals to them, and collections.
	var all sync.WaitGroup
	stop := make(chan struct{})
	for range 3 {
		all.Go(func() {
			runtime.LockOSThread() // a thread of its own, which ends with the goroutine
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	for range 2 {
		garbage = make([]byte, 16<<20)
		runtime.GC()
	}
	debug.FreeOSMemory()
	close(stop)
	all.Wait()
	if deep(1<<16) == 0 {
		return errors.New("no stack")
	}
	// Waits for files and timers.
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "event")
	time.AfterFunc(time.Millisecond, func() { _, _ = unix.Write(fd, []byte{1, 0, 0, 0, 0, 0, 0, 0}) })
	var b [8]byte
	if _, err := f.Read(b[:]); err != nil {
		return err
	}
	if err := recovered(); err == nil {
		return errors.New("a fault of memory was not reported")
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- ring()
	}()
	return errors.Join(<-done, f.Close())
}

var garbage []byte

func deep(n int) int {
	if n == 0 {
		return 1
	}
	return deep(n-1) + 1
}

// recovered makes a fault and recovers.
func recovered() (err error) {
	defer func() { err, _ = recover().(error) }()
	var p *int
	*p = 1
	return nil
}

// start starts a packet process.
func start(t *testing.T, log func([]byte)) (*spawn.Child, *procwire.Conn) {
	t.Helper()
	if err := Supported(); errors.Is(err, ErrNotSupported) {
		t.Skip(err)
	}
	c, err := spawn.Start(spawn.Options{Args: []string{"packets"}, Env: []string{policyEnv}, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := procwire.New(c.Socket(), procwire.Config{Out: rules, Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	conn.Serve()
	t.Cleanup(func() { conn.Close(); <-conn.Done(); <-c.Done() })
	return c, conn
}

// TestPacketProcess: a packet process works, and cannot do anything else.
func TestPacketProcess(t *testing.T) { confined(t, "") }

// TestDiskProcess: the same of a disk process, which may also discard.
func TestDiskProcess(t *testing.T) {
	t.Setenv(policyEnv, "1")
	confined(t, "fallocate: bad file descriptor, want: operation not permitted\n"+
		"BLKDISCARD: inappropriate ioctl for device, want: operation not permitted")
}

// confined checks that a process works, and cannot do anything else but what the table of attempts
// says then.
func confined(t *testing.T, but string) {
	t.Helper()
	c, conn := start(t, func(line []byte) { t.Logf("%s", line) })
	for _, what := range []string{"work", "probe", "work"} {
		want := ""
		if what == "probe" {
			want = but
		}
		said := ""
		if _, err := conn.Call(t.Context(), kindDo, []byte(what)); err != nil {
			said = strings.ReplaceAll(err.Error(), `\n`, "\n")
		}
		if said != want {
			t.Errorf("%s:\n%s\nwant:\n%s", what, said, want)
		}
	}
	if err := confinetest.CheckRights(c.PID()); err != nil {
		t.Error(err)
	}
	if os.Geteuid() == 0 {
		if err := confinetest.CheckFiles(c.PID(), `socket:\[\d+\]`, `anon_inode:\[io_uring\]`); err != nil {
			t.Error(err)
		}
	}
}

// TestDeadly: calls that only an attacker makes end the process.
func TestDeadly(t *testing.T) {
	for _, a := range confinetest.Deadly() {
		t.Run(a.Name, func(t *testing.T) {
			t.Parallel()
			c, conn := start(t, nil)
			_, err := conn.Call(t.Context(), kindDo, []byte(a.Name))
			if !errors.Is(err, procwire.ErrClosed) {
				t.Fatal(err)
			}
			<-c.Done()
			if got := c.Err().Error(); !strings.Contains(got, "bad system call") {
				t.Errorf("the process ended with: %s", got)
			}
		})
	}
}

// TestCrash: the stacks of a crash reach the log.
func TestCrash(t *testing.T) {
	for what, want := range map[string]string{"panic": "panic: as told", "fault": "SIGSEGV"} {
		var mu sync.Mutex
		var log []string
		c, conn := start(t, func(line []byte) {
			mu.Lock()
			defer mu.Unlock()
			log = append(log, string(line))
		})
		if _, err := conn.Call(t.Context(), kindDo, []byte(what)); !errors.Is(err, procwire.ErrClosed) {
			t.Error(err)
		}
		<-c.Done()
		text := strings.Join(log, "\n")
		if !strings.Contains(text, want) || !strings.Contains(text, "goroutine ") || !strings.Contains(c.Err().Error(), "exit status 2") {
			t.Errorf("%s: %v, log: %s", what, c.Err(), text)
		}
	}
}
