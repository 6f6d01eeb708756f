// SPDX-License-Identifier: Apache-2.0

package systrace

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Call is a system call that is about to run. Its methods are for its handler.
type Call struct {
	t    *Tracer
	TID  int // the thread
	Nr   int
	Args [6]uint64
	IP   uint64 // address of the instruction

	kind  string
	named bool // kind is known
}

// Name returns the name of the call, such as "read".
func (c *Call) Name() string {
	if name := names[c.Nr]; name != "" {
		return name
	}
	return "syscall " + strconv.Itoa(c.Nr)
}

// TGID returns the id of the process, 0 if it has ended.
func (c *Call) TGID() int {
	c.t.mu.Lock()
	defer c.t.mu.Unlock()
	return c.tgid()
}

// tgid is TGID for a caller that holds the tracer's mutex.
func (c *Call) tgid() int {
	if n := c.t.tgids[c.TID]; n != 0 {
		return n
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.TID))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), "\nTgid:\t")
	line, _, _ := strings.Cut(rest, "\n")
	n, _ := strconv.Atoi(line)
	c.t.tgids[c.TID] = n
	return n
}

// Process returns the id of the process, in a handler.
func (c *Call) Process() int { return c.tgid() }

// Link returns the target of a descriptor's link in /proc, "" if it is not open.
func (c *Call) Link(fd int) string {
	s, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", c.TID, fd))
	if err != nil {
		return ""
	}
	return s
}

// Read returns n bytes of the program's memory, fewer if there are no more.
func (c *Call) Read(addr uint64, n int) []byte {
	f, err := os.Open(fmt.Sprintf("/proc/%d/mem", c.TID))
	if err != nil {
		return nil
	}
	defer func() { _ = f.Close() }()
	b := make([]byte, n)
	n, _ = f.ReadAt(b, int64(addr)) // the number says how much could be read
	return b[:max(n, 0)]
}

// Write writes to the program's memory.
func (c *Call) Write(addr uint64, b []byte) error {
	f, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", c.TID), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	_, err = f.WriteAt(b, int64(addr))
	return err
}

// sender writes the address of a recvfrom's sender.
func (c *Call) sender(from []byte) error {
	if c.Nr != unix.SYS_RECVFROM || c.Args[4] == 0 || from == nil {
		return nil
	}
	n := binary.NativeEndian.AppendUint32(nil, uint32(len(from)))
	return errors.Join(c.Write(c.Args[4], from), c.Write(c.Args[5], n))
}

// text returns the string at an address.
func (c *Call) text(addr uint64) string {
	for n := 64; ; n *= 4 {
		b := c.Read(addr, n)
		if i := strings.IndexByte(string(b), 0); i >= 0 {
			return string(b[:i])
		}
		if len(b) < n || n >= unix.PathMax {
			return ""
		}
	}
}

// open returns a descriptor of the program's file fd.
func (c *Call) open(fd int) (int, error) {
	pidfd, err := unix.PidfdOpen(c.TGID(), 0)
	if err != nil {
		return -1, err
	}
	defer func() { _ = unix.Close(pidfd) }()
	return unix.PidfdGetfd(pidfd, fd, 0)
}

// perform runs a read or recvfrom of n bytes on the program's file and returns its data.
func (c *Call) perform(n int) ([]byte, error) {
	fd, err := c.open(int(c.Args[0]))
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(fd) }()
	b := make([]byte, min(n, 1<<20))
	if c.Nr == unix.SYS_RECVFROM {
		n, _, err = unix.Recvfrom(fd, b, int(c.Args[3]))
	} else {
		n, err = unix.Read(fd, b)
	}
	return b[:max(n, 0)], err
}

// writeHalf writes the first half of the data of a write, a byte at least.
func (c *Call) writeHalf() (int, error) {
	fd, err := c.open(int(c.Args[0]))
	if err != nil {
		return 0, err
	}
	defer func() { _ = unix.Close(fd) }()
	return unix.Write(fd, c.Read(c.Args[1], max(int(c.Args[2]/2), 1)))
}

// Runtime reports whether Go's runtime makes the call for itself, or code that is not Go.
// No program can go on when these fail.
func (c *Call) Runtime() bool {
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", c.TID))
	if err != nil {
		return false
	}
	s := c.t.symbols[exe]
	if s == nil {
		s = readSymbols(exe)
		c.t.symbols[exe] = s
	}
	name := s.function(c.IP)
	return name == "" || strings.HasPrefix(name, "runtime.")
}
