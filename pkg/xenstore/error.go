// SPDX-License-Identifier: Apache-2.0

package xenstore

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"
)

// Errors of xenstored, to be used with errors.Is. They are the errnos the
// names on the wire stand for, so errors.Is(err, syscall.ENOENT) and
// errors.Is(err, fs.ErrNotExist) hold as well.
var (
	ErrNotExist     error = syscall.ENOENT   // no such node
	ErrExist        error = syscall.EEXIST   // such a watch exists already
	ErrPermission         = fs.ErrPermission // EACCES or EPERM
	ErrInvalid      error = syscall.EINVAL   // malformed request
	ErrAgain        error = syscall.EAGAIN   // transaction lost against another writer
	ErrQuota        error = syscall.ENOSPC   // a quota of the domain is used up
	ErrTooBig       error = syscall.E2BIG    // the reply does not fit one message
	ErrNotSupported error = syscall.ENOSYS   // this xenstored does not know the request
)

// Errors of the client.
var (
	// ErrClosed is returned by every call once the connection is gone. The
	// reason is wrapped beside it; Client.Err returns it as well.
	ErrClosed = errors.New("connection closed")

	// ErrProtocol says that the peer broke the protocol. The stream has lost
	// its step, so the connection is closed.
	ErrProtocol = errors.New("protocol error")

	// ErrTimeout says that a request was not answered in time. The connection
	// is closed: a late answer would meet a new request.
	ErrTimeout = errors.New("no answer from xenstored")

	// ErrTooLong is returned before anything is sent, when a request does not
	// fit one message of this connection.
	ErrTooLong = errors.New("request too long")

	// ErrPath is returned before anything is sent, for a path no xenstored
	// accepts.
	ErrPath = errors.New("invalid path")

	// ErrMalformed says that a node exists but does not hold what was asked
	// for.
	ErrMalformed = errors.New("malformed value")

	// ErrTxDone is returned by the methods of a Tx whose transaction has ended.
	ErrTxDone = errors.New("transaction has ended")
)

// Error is the error of one request.
type Error struct {
	Op   string // name of the message type
	Path string // the node, "" if the request names none
	Err  error  // a syscall.Errno from xenstored, the error of a context, or one of this package
}

func (e *Error) Error() string {
	if e.Path == "" {
		return "xenstore: " + e.Op + ": " + e.Err.Error()
	}
	return "xenstore: " + e.Op + " " + e.Path + ": " + e.Err.Error()
}

// Unwrap returns e.Err.
func (e *Error) Unwrap() error { return e.Err }

// badReply returns the error of a call that was answered with something it cannot
// mean.
func badReply(typ MessageType, path string, payload []byte) error {
	return &Error{Op: typ.String(), Path: path, Err: fmt.Errorf("%w: reply %.80q", ErrProtocol, payload)}
}

// isErr is errors.Is, short for use beside the sentinels above.
func isErr(err, target error) bool { return errors.Is(err, target) }

// wireErrors is xsd_errors of xs_wire.h: the payload of an ERROR message is
// one of these names, since the numbers differ between operating systems.
var wireErrors = [...]struct {
	errno syscall.Errno
	name  string
}{
	{syscall.EINVAL, "EINVAL"},
	{syscall.EACCES, "EACCES"},
	{syscall.EEXIST, "EEXIST"},
	{syscall.EISDIR, "EISDIR"},
	{syscall.ENOENT, "ENOENT"},
	{syscall.ENOMEM, "ENOMEM"},
	{syscall.ENOSPC, "ENOSPC"},
	{syscall.EIO, "EIO"},
	{syscall.ENOTEMPTY, "ENOTEMPTY"},
	{syscall.ENOSYS, "ENOSYS"},
	{syscall.EROFS, "EROFS"},
	{syscall.EBUSY, "EBUSY"},
	{syscall.EAGAIN, "EAGAIN"},
	{syscall.EISCONN, "EISCONN"},
	{syscall.E2BIG, "E2BIG"},
	{syscall.EPERM, "EPERM"},
}

// ErrnoName returns the name of errno on the wire. What the table lacks is
// sent as EINVAL, as xenstored does.
func ErrnoName(errno syscall.Errno) string {
	for _, e := range wireErrors {
		if e.errno == errno {
			return e.name
		}
	}
	return "EINVAL"
}

// ParseErrno returns the errno a name on the wire stands for. It reports false
// for a name outside the table.
func ParseErrno(name string) (syscall.Errno, bool) {
	for _, e := range wireErrors {
		if e.name == name {
			return e.errno, true
		}
	}
	// oxenstored has a name of its own for a quota that is used up.
	if name == "EQUOTA" {
		return syscall.ENOSPC, true
	}
	return 0, false
}
