// SPDX-License-Identifier: Apache-2.0

package systrace_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/systrace"
)

// envDir tells the test's program, which is this one, its directory.
const envDir = "SYSTRACE_TEST_DIR"

func TestMain(m *testing.M) {
	systrace.Enter()
	if dir := os.Getenv(envDir); dir != "" {
		program(dir)
		return
	}
	os.Exit(m.Run())
}

// program writes and reads a file, from several threads, and prints what it got.
func program(dir string) {
	name := filepath.Join(dir, "file-17")
	fmt.Println("write:", os.WriteFile(name, []byte("0123456789"), 0o600))
	var wg sync.WaitGroup
	said := make([]string, 4)
	for i := range said {
		wg.Go(func() {
			fd, err := unix.Open(name, unix.O_RDONLY, 0)
			if err != nil {
				said[i] = err.Error()
				return
			}
			b := make([]byte, 16)
			n, err := unix.Read(fd, b)
			said[i] = fmt.Sprintf("%q %v", b[:max(n, 0)], err)
			_ = unix.Close(fd)
		})
	}
	wg.Wait()
	for _, s := range said {
		fmt.Println("read:", s)
	}
}

// run runs the program with a handler and returns what it printed.
func run(t *testing.T, handler func(*systrace.Call) systrace.Verdict) (string, error) {
	t.Helper()
	tracer := systrace.New(handler, unix.SYS_OPENAT, unix.SYS_READ, unix.SYS_WRITE)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), envDir+"="+t.TempDir())
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := tracer.Launch(cmd); err != nil {
		if strings.Contains(err.Error(), "may not be traced") && os.Geteuid() != 0 {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	err := cmd.Wait()
	return out.String(), err
}

func TestVerdicts(t *testing.T) {
	good := "write: <nil>\n" + strings.Repeat("read: \"0123456789\" <nil>\n", 4)
	for _, tt := range []struct {
		name    string
		kind    string
		nth     int // 0: every call
		verdict systrace.Verdict
		want    string
	}{
		{name: "nothing", want: good},
		{name: "open fails", kind: "openat file-N", nth: 1, verdict: systrace.Verdict{Errno: unix.EMFILE},
			want: "write: open DIR: too many open files\n" + strings.Repeat("read: no such file or directory\n", 4)},
		{name: "short write", kind: "write file-N", nth: 1, verdict: systrace.Verdict{Short: true}, want: good},
		{name: "lost write", kind: "write file-N", nth: 1, verdict: systrace.Verdict{Fake: true, Return: 10}, want: "write: <nil>\n" + strings.Repeat("read: \"\" <nil>\n", 4)},
		{name: "reads fail", kind: "read file-N", verdict: systrace.Verdict{Errno: unix.EIO}, want: "write: <nil>\n" + strings.Repeat("read: \"\" input/output error\n", 4)},
		{name: "other data", kind: "read file-N", verdict: systrace.Verdict{Fake: true, Data: []byte("abc")}, want: "write: <nil>\n" + strings.Repeat("read: \"abc\" <nil>\n", 4)},
		{name: "short reads", kind: "read file-N", verdict: systrace.Verdict{Rewrite: func(b []byte) []byte { return b[:3] }},
			want: "write: <nil>\n" + strings.Repeat("read: \"012\" <nil>\n", 4)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			seen := 0
			got, err := run(t, func(c *systrace.Call) systrace.Verdict {
				if c.Kind() != tt.kind || tt.kind == "" {
					return systrace.Verdict{}
				}
				if seen++; tt.nth != 0 && seen != tt.nth {
					return systrace.Verdict{}
				}
				return tt.verdict
			})
			if err != nil {
				t.Fatal(err)
			}
			if i := strings.Index(got, "open /"); i >= 0 {
				got = got[:i] + "open DIR" + got[i+strings.Index(got[i:], ": "):]
			}
			if got != tt.want {
				t.Errorf("the program said:\n%swant:\n%s", got, tt.want)
			}
		})
	}
}

func TestKill(t *testing.T) {
	got, err := run(t, func(c *systrace.Call) systrace.Verdict {
		return systrace.Verdict{Kill: c.Kind() == "read file-N"}
	})
	state, _ := err.(*exec.ExitError)
	if state == nil || !state.Sys().(syscall.WaitStatus).Signaled() || strings.Contains(got, "read:") {
		t.Errorf("ended with %v and said %q", err, got)
	}
}
