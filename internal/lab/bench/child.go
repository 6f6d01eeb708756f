// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Op is an operation of a [Child] on its TAP queue.
type Op uint32

// The operations. The numbers are those of test/benchpeer/peer.c.
const (
	OpLoad   Op = 0 // take a frame, with the vnet header before it
	OpWrite  Op = 1 // write(2) it from private memory
	OpWritev Op = 2 // writev(2) it from pages, header apart
	OpRead   Op = 3 // read(2) into private memory
	OpReadv  Op = 4 // readv(2) into pages, header apart

	OpForwardTx Op = 5 // send what is in a tx ring
	OpForwardRx Op = 6 // deliver what the TAP has to an rx ring
	OpVhost     Op = 7 // have the kernel's vhost-net write from pages
)

// MaxBatch is the most packets a Child handles with one command.
const MaxBatch = 128

// Child is a process that reads and writes the same TAP queue with bare system
// calls. It gets commands over a pipe and times itself. test/benchpeer/peer.c is
// such a program.
//
// A command is three 32-bit words: the operation, the number of packets, and for
// OpLoad the number of bytes that follow. The answer is two 64-bit words:
// nanoseconds, and the packets done or a negative errno. All are in the machine's
// byte order.
type Child struct {
	cmd     *exec.Cmd
	to      *os.File
	from    int
	command [12]byte
	answer  [16]byte
}

// StartChild runs a program that speaks the protocol of a Child: commands come on
// standard input, answers go to standard output, and the TAP queue is file
// descriptor 3. It runs on the CPUs of the calling thread.
func StartChild(tapFD int, path string, args ...string) (_ *Child, err error) {
	fd, err := unix.Dup(tapFD)
	if err != nil {
		return nil, err
	}
	tap := os.NewFile(uintptr(fd), "tap")
	defer tap.Close()
	c := &Child{cmd: exec.Command(path, args...)}
	c.cmd.Stderr = os.Stderr
	c.cmd.ExtraFiles = []*os.File{tap}
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var in, out *os.File
	if in, c.to, err = os.Pipe(); err != nil {
		return nil, err
	}
	defer in.Close()
	pipe := make([]int, 2)
	// Not an os.File: waiting for an answer then costs one read and no poll.
	if err := unix.Pipe2(pipe, unix.O_CLOEXEC); err != nil {
		return nil, err
	}
	c.from, out = pipe[0], os.NewFile(uintptr(pipe[1]), "answers")
	defer out.Close()
	c.cmd.Stdin, c.cmd.Stdout = in, out
	if err := c.cmd.Start(); err != nil {
		return nil, errors.Join(err, c.to.Close(), unix.Close(c.from))
	}
	return c, nil
}

// Load gives the child the frame that later writes send.
func (c *Child) Load(frame []byte) error {
	if _, err := c.do(OpLoad, len(frame), frame); err != nil {
		return fmt.Errorf("load a frame: %w", err)
	}
	return nil
}

// Run does op for n packets, at most MaxBatch, and returns the duration.
func (c *Child) Run(op Op, n int) (time.Duration, error) { return c.do(op, n, nil) }

func (c *Child) do(op Op, n int, data []byte) (time.Duration, error) {
	ne := binary.NativeEndian
	ne.PutUint32(c.command[0:], uint32(op))
	ne.PutUint32(c.command[4:], uint32(n))
	ne.PutUint32(c.command[8:], uint32(len(data)))
	if _, err := c.to.Write(c.command[:]); err != nil {
		return 0, err
	}
	if len(data) > 0 {
		if _, err := c.to.Write(data); err != nil {
			return 0, err
		}
	}
	for got := 0; got < len(c.answer); {
		k, err := unix.Read(c.from, c.answer[got:])
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 0, err
		case k == 0:
			return 0, io.ErrUnexpectedEOF
		default:
			got += k
		}
	}
	done := int64(ne.Uint64(c.answer[8:]))
	if done < 0 {
		return 0, fmt.Errorf("peer: %w", unix.Errno(-done))
	}
	if done != int64(n) {
		return 0, fmt.Errorf("peer did %d packets of %d", done, n)
	}
	return time.Duration(ne.Uint64(c.answer[0:])), nil
}

// Close ends the child.
func (c *Child) Close() error {
	return errors.Join(c.to.Close(), c.cmd.Wait(), unix.Close(c.from))
}
