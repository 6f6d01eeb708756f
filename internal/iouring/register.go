// SPDX-License-Identifier: Apache-2.0

package iouring

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// RegisterBuffers pins memory for ReadFixed and WriteFixed: buffer i is mem[i]. A fixed
// operation must be within one buffer. The memory must be anonymous and not on the Go
// heap, such as a gntdev.Arena; mappings of guests' grants cannot be pinned. Without
// CAP_IPC_LOCK it counts against RLIMIT_MEMLOCK. Call it once per ring; Close unpins.
func (r *Ring) RegisterBuffers(mem ...[]byte) error {
	if r.fd < 0 {
		return ErrClosed
	}
	if err := registerMemory(r.fd, mem); err != nil {
		return err
	}
	r.buffers = slices.Clone(mem)
	return nil
}

// registerMemory registers the buffers mem with the ring fd.
func registerMemory(fd int, mem [][]byte) error {
	if len(mem) == 0 {
		return errors.New("register buffers: none given")
	}
	iov := make([]unix.Iovec, len(mem))
	for i, m := range mem {
		if len(m) == 0 {
			return fmt.Errorf("register buffers: buffer %d is empty", i)
		}
		iov[i].Base = &m[0]
		iov[i].SetLen(len(m))
	}
	errno := register(fd, registerBuffers, &iov[0], len(iov))
	switch errno {
	case 0:
		return nil
	case unix.ENOMEM:
		return fmt.Errorf("register buffers: %w%s", errno, memlockHint)
	case unix.EBUSY:
		return fmt.Errorf("register buffers: done before: %w", errno)
	}
	return fmt.Errorf("register buffers: %w", threadError(errno))
}

// RegisterFiles makes a table of n empty file slots. Call it once per ring.
func (r *Ring) RegisterFiles(n int) error {
	if r.fd < 0 {
		return ErrClosed
	}
	if err := registerTable(r.fd, n); err != nil {
		return err
	}
	r.rwFlags = make([]uint32, n)
	for i := range r.rwFlags {
		r.rwFlags[i] = unix.RWF_NOWAIT
	}
	return nil
}

// registerTable registers a table of n empty file slots with the ring fd.
func registerTable(fd, n int) error {
	if n < 1 || n > MaxEntries {
		return fmt.Errorf("register %d files: want 1 to %d", n, MaxEntries)
	}
	fds := make([]int32, n)
	for i := range fds {
		fds[i] = -1
	}
	errno := register(fd, registerFiles, &fds[0], n)
	switch errno {
	case 0:
		return nil
	case unix.EMFILE:
		return fmt.Errorf("register %d files: %w (raise the open files limit, LimitNOFILE= in the unit)", n, errno)
	case unix.EBUSY:
		return fmt.Errorf("register files: done before: %w", errno)
	}
	return fmt.Errorf("register %d files: %w", n, threadError(errno))
}

// SetFile puts a file into a slot, and replaces the slot's old file. The slot has its own
// reference, so the file stays open if fd is closed. The file must be non-blocking. The
// ring must be idle: without queued operations and untaken completions.
func (r *Ring) SetFile(slot, fd int) error {
	if fd < 0 {
		return fmt.Errorf("set file in slot %d: fd %d: %w", slot, fd, unix.EBADF)
	}
	if err := r.update(slot, fd); err != nil {
		return err
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err == nil && flags&unix.O_NONBLOCK == 0 {
		err = errors.New("the file is not non-blocking")
	}
	if err == nil {
		r.rwFlags[slot], err = r.probeNoWait(slot)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("set file in slot %d: %w", slot, err), r.update(slot, -1))
	}
	return nil
}

// NoWait reports whether operations on the file in slot fail when they would have to
// wait (RWF_NOWAIT). Otherwise an empty read is set up to wait and then cancelled, which
// costs several times as much as a system call.
func (r *Ring) NoWait(slot int) bool {
	return uint(slot) < uint(len(r.rwFlags)) && r.rwFlags[slot] != 0
}

// ClearFile empties a slot. Operations on it complete with -EBADF. The ring must
// be idle.
//
// The kernel drops its reference before ClearFile returns; Linux before 6.4 does so up
// to some seconds later. A TAP whose last file this is exists until then, unless it is
// deleted by netlink.
func (r *Ring) ClearFile(slot int) error { return r.update(slot, -1) }

// update sets a slot to fd, or with -1 clears it.
func (r *Ring) update(slot, fd int) error {
	switch {
	case r.fd < 0:
		return ErrClosed
	case slot < 0 || slot >= len(r.rwFlags):
		return fmt.Errorf("file slot %d: the table has %d", slot, len(r.rwFlags))
	case r.owed != 0:
		return ErrBusy
	}
	r.rwFlags[slot] = unix.RWF_NOWAIT // an empty slot answers at once
	value := int32(fd)
	if errno := register(r.fd, registerFilesUpdate, &filesUpdate{offset: uint32(slot), fds: &value}, 1); errno != 0 {
		return fmt.Errorf("update file slot %d: %w", slot, threadError(errno))
	}
	return nil
}
