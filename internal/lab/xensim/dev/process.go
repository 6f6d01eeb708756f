// SPDX-License-Identifier: Apache-2.0

package dev

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// Process is the process that has a file open, by its pid: the memory that
// system calls on the file copy from and to.
type Process int

// Read copies len(b) bytes at addr of the process to b.
func (p Process) Read(b []byte, addr uint64) error {
	local := []unix.Iovec{{Base: &b[0]}}
	local[0].SetLen(len(b))
	n, err := unix.ProcessVMReadv(int(p), local, []unix.RemoteIovec{{Base: uintptr(addr), Len: len(b)}}, 0)
	if err == nil && n != len(b) {
		err = unix.EFAULT
	}
	return err
}

// Probe reads one word. It fails if reading the process is not allowed.
func (p Process) Probe(addr uint64) (uint32, error) {
	b := make([]byte, 4)
	if err := p.Read(b, addr); err != nil {
		return 0, err
	}
	return binary.NativeEndian.Uint32(b), nil
}

// transfer is a list of copies between our memory and memory of the process, carried out
// by one system call.
type transfer struct {
	ours   []unix.Iovec
	theirs []unix.RemoteIovec
	bytes  int
}

func (t *transfer) add(ours []byte, theirs uint64) {
	v := unix.Iovec{Base: &ours[0]}
	v.SetLen(len(ours))
	t.ours = append(t.ours, v)
	t.theirs = append(t.theirs, unix.RemoteIovec{Base: uintptr(theirs), Len: len(ours)})
	t.bytes += len(ours)
}

// run carries the list out and empties it. EFAULT means that some memory of the process
// was not mapped, or not writable.
func (t *transfer) run(p Process, fromProcess bool) error {
	var n int
	var err error
	if fromProcess {
		n, err = unix.ProcessVMReadv(int(p), t.ours, t.theirs, 0)
	} else {
		n, err = unix.ProcessVMWritev(int(p), t.ours, t.theirs, 0)
	}
	if err == nil && n != t.bytes {
		err = unix.EFAULT
	}
	t.ours, t.theirs, t.bytes = t.ours[:0], t.theirs[:0], 0
	return err
}
