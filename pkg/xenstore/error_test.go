// SPDX-License-Identifier: Apache-2.0

package xenstore

import (
	"errors"
	"io/fs"
	"syscall"
	"testing"
)

func TestErrnoNamesRoundTrip(t *testing.T) {
	for _, e := range wireErrors {
		if got := ErrnoName(e.errno); got != e.name {
			t.Errorf("ErrnoName(%d) = %q, want %q", int(e.errno), got, e.name)
		}
		if got, ok := ParseErrno(e.name); !ok || got != e.errno {
			t.Errorf("ParseErrno(%q) = %v %t", e.name, got, ok)
		}
	}
	if got := ErrnoName(syscall.EXDEV); got != "EINVAL" {
		t.Errorf("an errno outside the table is sent as %q", got)
	}
	for _, name := range []string{"", "EXDEV", "enoent", "ENOENT "} {
		if got, ok := ParseErrno(name); ok {
			t.Errorf("ParseErrno(%q) = %v", name, got)
		}
	}
	if got, ok := ParseErrno("EQUOTA"); !ok || got != syscall.ENOSPC {
		t.Errorf("oxenstored's quota error is %v", got)
	}
}

func TestErrorsMatchTheirSentinels(t *testing.T) {
	for errno, want := range map[syscall.Errno]error{
		syscall.ENOENT: ErrNotExist,
		syscall.EEXIST: ErrExist,
		syscall.EACCES: ErrPermission,
		syscall.EPERM:  ErrPermission,
		syscall.EINVAL: ErrInvalid,
		syscall.EAGAIN: ErrAgain,
		syscall.ENOSPC: ErrQuota,
		syscall.E2BIG:  ErrTooBig,
		syscall.ENOSYS: ErrNotSupported,
	} {
		err := error(&Error{Op: "READ", Path: "/a", Err: errno})
		if !errors.Is(err, want) || !errors.Is(err, errno) {
			t.Errorf("%v does not match", err)
		}
	}
	if !errors.Is(&Error{Err: syscall.ENOENT}, fs.ErrNotExist) {
		t.Error("ENOENT is not fs.ErrNotExist")
	}
	if errors.Is(&Error{Err: syscall.ENOENT}, ErrPermission) {
		t.Error("ENOENT is ErrPermission")
	}
}

func TestErrorText(t *testing.T) {
	for want, err := range map[string]*Error{
		"xenstore: READ /a/b: no such file or directory": {Op: "READ", Path: "/a/b", Err: syscall.ENOENT},
		"xenstore: CONTROL: connection closed":           {Op: "CONTROL", Err: ErrClosed},
	} {
		if got := err.Error(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
