// SPDX-License-Identifier: Apache-2.0

package spawn

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/procwire"
)

// The kinds of messages of the children in these tests.
const (
	kindEnv   procwire.Kind = iota + 1 // a request: the answer has the environment
	kindLog                            // a notice: write the body to the standard error
	kindPanic                          // a notice: crash
)

var childRules = procwire.Rules{
	kindEnv:   {Answer: procwire.Size{Body: procwire.MaxBody}},
	kindLog:   {Notice: true, Ask: procwire.Size{Body: procwire.MaxBody}},
	kindPanic: {Notice: true},
}

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "child" {
		child()
		return
	}
	if len(os.Args) > 1 && os.Args[1] == "parent" {
		c, err := Start(Options{Args: []string{"child"}})
		if err != nil {
			panic(err)
		}
		fmt.Println(c.PID())
		select {}
	}
	goleak.VerifyTestMain(m)
}

// childTasks is the bound on threads of the children in these tests.
const childTasks = 5000

// child obeys messages until its socket ends.
func child() {
	fd, err := Begin(Limits{Files: 100, FileSize: 4096, Tasks: childTasks})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	}
	c, err := procwire.New(fd, procwire.Config{In: childRules, Handle: func(m *procwire.Message) {
		switch m.Kind {
		case kindEnv:
			_ = m.Answer([]byte(strings.Join(os.Environ(), "\n")))
		case kindLog:
			writeAll(m.Body)
		case kindPanic:
			panic("as told")
		}
	}})
	if err != nil {
		panic(err)
	}
	c.Serve()
	<-c.Done()
}

// writeAll writes to the standard error, which does not block.
func writeAll(b []byte) {
	for len(b) > 0 {
		n, err := unix.Write(stderr, b)
		if err == unix.EAGAIN {
			_, _ = unix.Poll([]unix.PollFd{{Fd: stderr, Events: unix.POLLOUT}}, -1)
		}
		b = b[max(n, 0):]
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// begin starts a child that ends with the test, and returns once it has answered.
func begin(t *testing.T, o Options) (*Child, *procwire.Conn) {
	t.Helper()
	o.Args = []string{"child"}
	c, err := Start(o)
	must(t, err)
	conn, err := procwire.New(c.Socket(), procwire.Config{Out: childRules, Timeout: time.Minute})
	must(t, err)
	conn.Serve()
	t.Cleanup(func() { conn.Close(); <-conn.Done(); <-c.Done() })
	_, err = conn.Call(t.Context(), kindEnv, nil)
	must(t, err)
	return c, conn
}

// status returns fields of the status of each thread of a process.
func status(t *testing.T, pid int, fields ...string) []map[string]string {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	must(t, err)
	var all []map[string]string
	for _, path := range tasks {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // the thread has ended
		}
		one := map[string]string{}
		for line := range strings.Lines(string(b)) {
			name, value, _ := strings.Cut(line, ":")
			for _, f := range fields {
				if f == name {
					one[f] = strings.TrimSpace(value)
				}
			}
		}
		all = append(all, one)
	}
	return all
}

// TestRights: a child has no capability on any thread, and cannot gain one. The process that
// started it keeps its own.
func TestRights(t *testing.T) {
	mine := status(t, os.Getpid(), "CapEff", "CapBnd", "NoNewPrivs")
	c, _ := begin(t, Options{})
	const none = "0000000000000000"
	want := map[string]string{"CapInh": none, "CapPrm": none, "CapEff": none, "CapAmb": none, "NoNewPrivs": "1"}
	fields := []string{"CapInh", "CapPrm", "CapEff", "CapAmb", "NoNewPrivs"}
	if os.Geteuid() == 0 {
		want["CapBnd"] = none
		fields = append(fields, "CapBnd")
	}
	for _, got := range status(t, c.PID(), fields...) {
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
	}
	if d := cmp.Diff(mine[0], status(t, os.Getpid(), "CapEff", "CapBnd", "NoNewPrivs")[0]); d != "" {
		t.Errorf("the main thread has changed: %s", d)
	}
	var l unix.Rlimit
	for what, want := range map[int]uint64{unix.RLIMIT_CORE: 0, unix.RLIMIT_NOFILE: 100, unix.RLIMIT_FSIZE: 4096} {
		if err := unix.Prlimit(c.PID(), what, nil, &l); err != nil || l.Cur != want || l.Max != want {
			t.Errorf("limit %d: %+v, %v; want %d", what, l, err, want)
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d/fd", c.PID()), &st); err != nil || st.Uid != 0 {
		t.Errorf("the files of the process belong to user %d, %v: it is dumpable", st.Uid, err)
	}
	if sid, err := unix.Getsid(c.PID()); err != nil || sid != c.PID() {
		t.Errorf("session %d, %v", sid, err)
	}
}

// TestInherited: a child gets neither files nor the environment.
func TestInherited(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "/secret")
	t.Setenv("GOTRACEBACK", "all")
	t.Setenv("WANTED", "yes")
	leak, err := unix.Open("/dev/zero", unix.O_RDONLY, 0) // without CLOEXEC
	must(t, err)
	defer unix.Close(leak)
	c, conn := begin(t, Options{Env: []string{"WANTED", "ABSENT"}})
	p, err := conn.Call(t.Context(), kindEnv, nil)
	must(t, err)
	for _, v := range strings.Split(string(p.Body), "\n") {
		if name, _, _ := strings.Cut(v, "="); name != "GOTRACEBACK" && name != "WANTED" && name != "GORACE" && name != "GODEBUG" {
			t.Errorf("the child has %q", v)
		}
	}
	if !strings.Contains(string(p.Body), "WANTED=yes") {
		t.Error("a wanted variable is missing")
	}
	if os.Geteuid() != 0 {
		t.Skip("only root may see the files of the process")
	}
	dir := fmt.Sprintf("/proc/%d/fd", c.PID())
	files, err := os.ReadDir(dir)
	must(t, err)
	for _, f := range files {
		to, _ := os.Readlink(filepath.Join(dir, f.Name()))
		n, _ := strconv.Atoi(f.Name())
		// Go's runtime has files for its waits, and for the limits of its control group.
		if n > 2 && !strings.HasPrefix(to, "socket:") && !strings.HasPrefix(to, "anon_inode:[event") && !strings.HasPrefix(to, "/sys/fs/cgroup/") {
			t.Errorf("file %d is %s", n, to)
		}
	}
	if cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", c.PID())); cwd != "/" || err != nil {
		t.Errorf("directory %s, %v", cwd, err)
	}
}

// TestLog: lines are passed on whole, cleaned and bounded, and those of a crash too.
func TestLog(t *testing.T) {
	lines := make(chan string, 10000)
	c, conn := begin(t, Options{Log: func(line []byte) { lines <- string(line) }})
	must(t, conn.Post(kindLog, []byte("one\ntwo \x1b[2J\n")))
	if a, b := <-lines, <-lines; a != "one" || b != "two ?[2J" {
		t.Errorf("lines %q, %q", a, b)
	}
	flood := []byte(strings.Repeat(strings.Repeat("x", 999)+"\n", 60))
	for range 3 * logBurst / len(flood) {
		must(t, conn.Post(kindLog, flood))
	}
	must(t, conn.Post(kindPanic, nil))
	<-c.Done()
	if c.LogLost() < 1000 {
		t.Errorf("%d lines were dropped", c.LogLost())
	}
	if got := c.Err().Error(); !strings.Contains(got, "exit status 2") {
		t.Errorf("end: %v", got)
	}
}

// TestLimits: the limits of a child are those of Begin.
func TestLimits(t *testing.T) {
	c, _ := begin(t, Options{})
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", c.PID()))
	must(t, err)
	got := map[string]string{}
	for line := range strings.Lines(string(b)) {
		for _, name := range []string{"Max open files", "Max file size", "Max processes"} {
			if rest, ok := strings.CutPrefix(line, name); ok {
				got[name] = strings.Join(strings.Fields(rest)[:2], " ")
			}
		}
	}
	want := map[string]string{"Max open files": "100 100", "Max file size": "4096 4096", "Max processes": fmt.Sprintf("%d %d", childTasks, childTasks)}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestCrash(t *testing.T) {
	lines := make(chan string, 10000)
	c, conn := begin(t, Options{Log: func(line []byte) { lines <- string(line) }})
	must(t, conn.Post(kindPanic, nil))
	<-c.Done()
	close(lines)
	var all []string
	for l := range lines {
		all = append(all, l)
	}
	if text := strings.Join(all, "\n"); !strings.Contains(text, "panic: as told") || !strings.Contains(text, "goroutine") {
		t.Errorf("the log of a crash: %s", text)
	}
}

// TestEnds: a child ends by Kill, and when its socket does.
func TestEnds(t *testing.T) {
	c, _ := begin(t, Options{})
	c.Kill()
	<-c.Done()
	c.Kill()
	if got := c.Err().Error(); !strings.Contains(got, "killed") {
		t.Errorf("end: %v", got)
	}
	c, conn := begin(t, Options{})
	must(t, unix.Kill(c.PID(), unix.SIGTERM)) // has no effect
	_, err := conn.Call(t.Context(), kindEnv, nil)
	must(t, err)
	conn.Close()
	<-c.Done()
}

// TestOrphan: a child is killed when its parent is.
func TestOrphan(t *testing.T) {
	parent := exec.Command("/proc/self/exe", "parent")
	parent.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := parent.StdoutPipe()
	must(t, err)
	must(t, parent.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	must(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	must(t, err)
	fd, err := unix.PidfdOpen(pid, 0)
	must(t, err)
	defer unix.Close(fd)
	must(t, parent.Process.Kill())
	_ = parent.Wait()
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 60000); n != 1 {
		t.Errorf("the child lives: %d, %v", n, err)
	}
}

// TestByHand: the command of a child cannot be called.
func TestByHand(t *testing.T) {
	out, err := exec.Command("/proc/self/exe", "child").CombinedOutput()
	if err == nil || !strings.Contains(string(out), ErrNotSpawned.Error()) {
		t.Errorf("%v: %s", err, out)
	}
}

// TestEndsBeforeItsParent: when memory is short the kernel ends a child first.
func TestEndsBeforeItsParent(t *testing.T) {
	c, _ := begin(t, Options{})
	order := func(pid int) (n int) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid))
		must(t, err)
		_, err = fmt.Sscan(string(b), &n)
		must(t, err)
		return n
	}
	if ours, childs := order(os.Getpid()), order(c.PID()); childs != min(ours+oomStep, 1000) {
		t.Errorf("oom_score_adj is %d, and of the parent %d", childs, ours)
	}
}
