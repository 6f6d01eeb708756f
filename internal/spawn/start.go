// SPDX-License-Identifier: Apache-2.0

package spawn

import (
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/procwire"
)

// socketFile is the child's descriptor of the socket.
const socketFile = 3

// Options describe a child.
type Options struct {
	Args []string // after the name of the program

	// Env has the names of variables that the child gets, beside those of Go's runtime.
	Env []string

	// Log is called for each line that the child writes to its standard error, without the
	// line's end and with control characters replaced. nil: the child has the standard error
	// of this process.
	Log func(line []byte)
}

// runtimeEnv has the names of the variables that a child always gets. They are no secrets.
var runtimeEnv = []string{"GODEBUG", "GOMEMLIMIT", "GORACE", "GOTRACEBACK"}

// Child is a process that was started.
type Child struct {
	socket int
	proc   *os.Process
	relay  *relay // nil: the child has the standard error of this process

	done chan struct{}
	err  error // of the end; valid once done is closed
}

// Start starts the own program. The caller owns the child's socket, and calls Kill if it
// cannot use it.
func Start(o Options) (*Child, error) {
	ours, theirs, err := procwire.Pair()
	if err != nil {
		return nil, fmt.Errorf("start a process: %w", err)
	}
	socket := os.NewFile(uintptr(theirs), "socket")
	c := &Child{socket: ours, done: make(chan struct{})}
	cmd := &exec.Cmd{
		Path: "/proc/self/exe", Args: append([]string{os.Args[0]}, o.Args...),
		Dir: "/", Env: environment(o.Env), Stderr: os.Stderr, ExtraFiles: []*os.File{socket},
		SysProcAttr: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setsid: true},
	}
	var logEnd *os.File
	if o.Log != nil {
		var r *os.File
		if r, logEnd, err = os.Pipe(); err != nil {
			return nil, errors.Join(fmt.Errorf("start a process: %w", err), unix.Close(ours), socket.Close())
		}
		c.relay = newRelay(r, o.Log)
		cmd.Stderr = logEnd
	}
	started := make(chan error)
	go c.run(cmd, started)
	err = errors.Join(<-started, socket.Close())
	if c.proc != nil {
		giveLimits(c.proc.Pid)
	}
	if logEnd != nil {
		err = errors.Join(err, logEnd.Close())
	}
	if err == nil {
		return c, nil
	}
	if c.proc != nil {
		c.Kill()
		<-c.done
	} else if c.relay != nil {
		c.relay.wait()
	}
	return nil, errors.Join(fmt.Errorf("start a process: %w", err), unix.Close(ours))
}

// environment returns the variables that a child gets.
func environment(names []string) []string {
	env := []string{}
	for _, list := range [][]string{runtimeEnv, names} {
		for _, name := range list {
			if v, ok := os.LookupEnv(name); ok {
				env = append(env, name+"="+v)
			}
		}
	}
	return env
}

// run starts cmd and waits for its end. The kernel kills the child when the thread that has
// started it ends, and gives it the rights of that thread. So a thread of its own gives up all
// rights, and lives as long as the child. It ends with the goroutine, which never unlocks it.
func (c *Child) run(cmd *exec.Cmd, started chan<- error) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// The main thread must keep its rights: it stands for the process in /proc.
		locked := make(chan struct{})
		go func() {
			runtime.LockOSThread()
			close(locked)
			c.runHere(cmd, started)
		}()
		<-locked
		runtime.UnlockOSThread()
		return
	}
	c.runHere(cmd, started)
}

// runHere is run on a thread that may give up its rights.
func (c *Child) runHere(cmd *exec.Cmd, started chan<- error) {
	if err := shed(); err != nil {
		started <- err
		return
	}
	// No file of this process is meant to be inherited, also if the process that started this
	// one left some open. Before Linux 5.11 there is no such call.
	_ = unix.CloseRange(socketFile, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
	err := cmd.Start()
	if err == nil {
		c.proc = cmd.Process
	}
	started <- err
	if err != nil {
		return
	}
	c.err = ended(cmd.Wait())
	if c.relay != nil {
		c.relay.wait()
	}
	close(c.done)
}

// ended describes the end of a child.
func ended(err error) error {
	if err == nil {
		return errors.New("the process has ended")
	}
	return fmt.Errorf("the process has ended: %w", err)
}

// Socket returns the descriptor of the socket, which is the caller's.
func (c *Child) Socket() int { return c.socket }

// PID returns the number of the process.
func (c *Child) PID() int { return c.proc.Pid }

// Done is closed when the process has ended and its last lines have been passed on.
func (c *Child) Done() <-chan struct{} { return c.done }

// Err returns how the process ended, never nil. It may be called once Done is closed.
func (c *Child) Err() error { return c.err }

// LogLost returns the number of lines of the child that were dropped.
func (c *Child) LogLost() uint64 {
	if c.relay == nil {
		return 0
	}
	return c.relay.lost.Load()
}

// Kill ends the process at once. It does not wait, and may be called again.
func (c *Child) Kill() { _ = c.proc.Kill() } // the only failure is that it has ended
