// SPDX-License-Identifier: Apache-2.0

package xenstore

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"
)

// Errors of xenstored, for errors.Is. They are the errnos that the names on the wire
// stand for, so errors.Is(err, syscall.ENOENT) and errors.Is(err, fs.ErrNotExist) are
// true as well.
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
	// ErrClosed is returned by every call after the end of the connection. The
	// reason is wrapped beside it; Client.Err returns it as well.
	ErrClosed = errors.New("connection closed")

	// ErrProtocol: the peer broke the protocol. If messages cannot be matched any
	// more, the connection is closed.
	ErrProtocol = errors.New("protocol error")

	// ErrTimeout: a request was not answered in time. The connection is closed.
	ErrTimeout = errors.New("no answer from xenstored")

	// ErrTooLong: the request does not fit one message of this connection. Nothing
	// was sent.
	ErrTooLong = errors.New("request too long")

	// ErrPath: no xenstored accepts the path. Nothing was sent.
	ErrPath = errors.New("invalid path")

	// ErrMalformed: the node exists, but its value does not have the requested
	// type.
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

// badReply returns the error of a call whose answer is not valid.
func badReply(typ MessageType, path string, payload []byte) error {
	return &Error{Op: typ.String(), Path: path, Err: fmt.Errorf("%w: reply %.80q", ErrProtocol, payload)}
}

// isErr is a short form of errors.Is.
func isErr(err, target error) bool { return errors.Is(err, target) }

// wireErrors is xsd_errors of xs_wire.h. The payload of an ERROR message is one of
// these names, because the numbers differ between operating systems.
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

// ErrnoName returns the name of errno on the wire. An errno that is not in the table
// is sent as EINVAL, as by xenstored.
func ErrnoName(errno syscall.Errno) string {
	for _, e := range wireErrors {
		if e.errno == errno {
			return e.name
		}
	}
	return "EINVAL"
}

// ParseErrno returns the errno that a name on the wire stands for. It returns false
// for a name that is not in the table.
func ParseErrno(name string) (syscall.Errno, bool) {
	for _, e := range wireErrors {
		if e.name == name {
			return e.errno, true
		}
	}
	// oxenstored has its own name for a quota that is used up.
	if name == "EQUOTA" {
		return syscall.ENOSPC, true
	}
	return 0, false
}
