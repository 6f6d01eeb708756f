// SPDX-License-Identifier: Apache-2.0

package iouring

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// RegisterFiles makes a table of n empty file slots. Call it once per ring. Operations on
// an empty slot complete with -EBADF.
func (a *Async) RegisterFiles(n int) error {
	switch {
	case a.fd < 0:
		return ErrClosed
	case a.files != 0:
		return fmt.Errorf("register files: done before: %w", unix.EBUSY)
	}
	if err := registerTable(a.fd, n); err != nil {
		return err
	}
	a.files = n
	return nil
}

// SetFile puts a file into a slot, and replaces the slot's old file; with fd -1 it empties
// the slot. The slot has its own reference: a lock on the file lasts until the slot is
// empty. The file must not be non-blocking. No operation may be under way.
func (a *Async) SetFile(slot, fd int) error {
	switch {
	case a.fd < 0:
		return ErrClosed
	case slot < 0 || slot >= a.files:
		return fmt.Errorf("file slot %d: the table has %d", slot, a.files)
	case a.owed != 0:
		return ErrBusy
	case fd >= 0:
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		if err == nil && flags&unix.O_NONBLOCK != 0 {
			err = errors.New("the file is non-blocking, so its operations would fail with EAGAIN")
		}
		if err != nil {
			return fmt.Errorf("set file in slot %d: %w", slot, err)
		}
	}
	value := int32(max(fd, -1))
	if errno := register(a.fd, registerFilesUpdate, &filesUpdate{offset: uint32(slot), fds: &value}, 1); errno != 0 {
		return fmt.Errorf("update file slot %d: %w", slot, threadError(errno))
	}
	return nil
}

// RegisterBuffers pins memory for ReadFixed and WriteFixed, as Ring.RegisterBuffers does.
func (a *Async) RegisterBuffers(mem ...[]byte) error {
	if a.fd < 0 {
		return ErrClosed
	}
	if err := registerMemory(a.fd, mem); err != nil {
		return err
	}
	a.buffers = slices.Clone(mem)
	return nil
}
