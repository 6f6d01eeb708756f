// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/netns"
)

// Process is a running part of the lab. Its standard error is kept.
type Process struct {
	Name string
	cmd  *exec.Cmd
	log  *logBuffer
	done chan struct{} // closed when the process has ended
	err  error         // of Wait; set before done is closed
}

// readyTimeout limits the start of a part. It is long, so that a busy machine does not
// fail.
const readyTimeout = 30 * time.Second

// raceEnv configures the race detector of a program built with it: a race ends the
// program, and the program does not wait a second for further reports at its end.
const raceEnv = "GORACE=halt_on_error=1 exitcode=66 atexit_sleep_ms=0"

// start starts a process with the command line args of exe and collects its output.
// launch chooses its namespaces.
func start(name, exe string, args []string, launch func(*exec.Cmd) error) (*Process, error) {
	p := &Process{Name: name, cmd: exec.Command(exe, args...), log: newLogBuffer(), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	p.cmd.Env = append(os.Environ(), raceEnv)
	if err := launch(p.cmd); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// Start starts a program in the namespaces of the caller and collects its output.
func Start(name, exe string, args ...string) (*Process, error) {
	return start(name, exe, args, netns.StartHere)
}

// StartReady starts a program with further environment variables, and waits until its log
// contains ready.
func StartReady(ctx context.Context, name, exe, ready string, env []string, args ...string) (*Process, error) {
	return LaunchReady(ctx, name, exe, ready, nil, env, args...)
}

// LaunchReady is StartReady with a function that starts the process; nil means
// [netns.StartHere].
func LaunchReady(ctx context.Context, name, exe, ready string, launch func(*exec.Cmd) error, env []string, args ...string) (*Process, error) {
	if launch == nil {
		launch = netns.StartHere
	}
	p, err := start(name, exe, args, func(cmd *exec.Cmd) error {
		cmd.Env = append(cmd.Env, env...)
		return launch(cmd)
	})
	if err != nil {
		return nil, err
	}
	return await(ctx, p, ready)
}

// SessionEnv is a variable of the environment that gives each program of a lab a session of its
// own. The kernel divides processors by session, if it has autogroups, as a hypervisor does by
// domain: so a guest with many threads takes no more from the others.
const SessionEnv = "NETBACKD_LAB_SESSION"

// Session obeys SessionEnv. A program calls it at its start.
func Session() {
	if os.Getenv(SessionEnv) != "" {
		_, _ = unix.Setsid() // the leader of a group has one already
	}
}

// RaceEnv is the setting of the race detector for the programs of a lab.
const RaceEnv = raceEnv

// Ended reports whether the process has ended.
func (p *Process) Ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// Signal sends a signal. To a process that has ended it does nothing.
func (p *Process) Signal(s syscall.Signal) { _ = p.cmd.Process.Signal(s) }

// PID returns its process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done returns a channel that is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Stop sends SIGTERM and waits for the end of the process. It returns the process's error.
// After 10 s it sends SIGQUIT, after 5 s more SIGKILL, and returns an error.
func (p *Process) Stop() error {
	p.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(10 * time.Second):
		p.Signal(syscall.SIGQUIT) // a Go program prints its stacks
		select {
		case <-p.done:
		case <-time.After(5 * time.Second):
			p.Kill()
		}
		return fmt.Errorf("%s did not end when asked to:\n%s", p.Name, p.log.tail(60))
	}
	if p.err != nil {
		return fmt.Errorf("%s: %w:\n%s", p.Name, p.err, p.log.tail(60))
	}
	return nil
}

// Kill ends the process with SIGKILL.
func (p *Process) Kill() {
	p.Signal(syscall.SIGKILL)
	<-p.done
}

// Log returns the process's output so far.
func (p *Process) Log() string { return p.log.String() }

// WaitLog waits until the process's whole log contains text.
func (p *Process) WaitLog(ctx context.Context, text string) error {
	for {
		seen, changed := p.log.watch()
		if strings.Contains(seen, text) {
			return nil
		}
		select {
		case <-changed:
		case <-p.done:
			if strings.Contains(p.log.String(), text) {
				return nil
			}
			return fmt.Errorf("%s ended before it said %q (%w):\n%s", p.Name, text, p.err, p.log.tail(40))
		case <-ctx.Done():
			return fmt.Errorf("%s did not say %q in time:\n%s", p.Name, text, p.log.tail(40))
		}
	}
}

// logBuffer keeps a process's output, up to maxLog bytes.
type logBuffer struct {
	mu      sync.Mutex // guards all below
	buf     bytes.Buffer
	changed chan struct{}
}

// maxLog is far more than a healthy process writes, in bytes.
const maxLog = 8 << 20

func newLogBuffer() *logBuffer { return &logBuffer{changed: make(chan struct{})} }

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if room := maxLog - l.buf.Len(); room > 0 {
		l.buf.Write(b[:min(room, len(b))])
	}
	close(l.changed)
	l.changed = make(chan struct{})
	return len(b), nil
}

func (l *logBuffer) watch() (string, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String(), l.changed
}

func (l *logBuffer) String() string {
	s, _ := l.watch()
	return s
}

// tail returns the last n lines.
func (l *logBuffer) tail(n int) string {
	lines := strings.Split(strings.TrimRight(l.String(), "\n"), "\n")
	return strings.Join(lines[max(len(lines)-n, 0):], "\n")
}
