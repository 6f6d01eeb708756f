// SPDX-License-Identifier: Apache-2.0

package simclient

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"
)

// ParentFD is the file descriptor Launch gives a simulation for its
// xensim.Options.Parent.
const ParentFD = 3

// stopGrace is how long a simulation may take to end. It has nothing to save.
const stopGrace = 5 * time.Second

// Process is a simulation in a process of its own.
type Process struct {
	cmd    *exec.Cmd
	line   *os.File // the simulation ends when it closes
	exited chan struct{}
	err    error // of cmd.Wait; valid after exited is closed
}

// Launch starts a simulation and returns when it can be joined. cmd is to run
// xensim.Run with file descriptor [ParentFD] as its Parent; it must not have
// been started, nor have ExtraFiles. The simulation ends with this process.
func Launch(cmd *exec.Cmd) (*Process, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("embedded Xen: %w", err)
	}
	line, theirs := os.NewFile(uintptr(fds[0]), "parent"), os.NewFile(uintptr(fds[1]), "parent")
	cmd.ExtraFiles = []*os.File{theirs}
	err = cmd.Start()
	_ = theirs.Close()
	if err != nil {
		_ = line.Close()
		return nil, fmt.Errorf("embedded Xen: %w", err)
	}
	p := &Process{cmd: cmd, line: line, exited: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.exited)
	}()
	if _, err := line.Read(make([]byte, 1)); err != nil {
		_ = p.Stop()
		return nil, errors.Join(fmt.Errorf("embedded Xen: %v ended before it was ready", cmd.Args), p.err)
	}
	return p, nil
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.exited }

// PID is the simulation's process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Stop ends the simulation and waits for that. It may be called again.
func (p *Process) Stop() error {
	_ = p.line.Close()
	grace := time.NewTimer(stopGrace)
	defer grace.Stop()
	select {
	case <-p.exited:
	case <-grace.C:
		_ = p.cmd.Process.Kill()
		<-p.exited
	}
	if p.err != nil {
		return fmt.Errorf("embedded Xen: %w", p.err)
	}
	return nil
}
