// SPDX-License-Identifier: Apache-2.0

package evtchn

import (
	"errors"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/xen"
)

var (
	// ErrClosed is the error of the methods of a closed Device.
	ErrClosed = os.ErrClosed

	// ErrOverflow is the error of Pending after events were lost, until Reset.
	ErrOverflow = errors.New("events were lost")
)

// Error is the error of every operation of this package. errors.Is finds Err.
type Error struct {
	// Op is "open", "bind", "offer", "unbind", "notify", "restrict",
	// "pending", "unmask", "reset" or "close".
	Op string
	// Domid is the other domain of a bind, offer or restrict.
	Domid xen.Domid
	// Port is the port of the operation, 0 if it had none: the remote one for a
	// bind, the local one otherwise.
	Port Port
	// Err is the errno, [ErrClosed] or [ErrOverflow].
	Err error
	// Hint is a remedy for the user or the caller; it may be empty.
	Hint string
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("evtchn: " + e.Op)
	switch e.Op {
	case "bind", "offer", "restrict":
		b.WriteString(": domid " + strconv.Itoa(int(e.Domid)))
	}
	if e.Port != 0 {
		b.WriteString(": port " + strconv.FormatUint(uint64(e.Port), 10))
	}
	b.WriteString(": " + e.Err.Error())
	if e.Hint != "" {
		b.WriteString("; " + e.Hint)
	}
	return b.String()
}

// Unwrap makes errors.Is and errors.As reach the errno.
func (e *Error) Unwrap() error { return e.Err }

const noPort = "0 is never a port"

// BindError returns the error of a bind to a port of another domain, or of an offer to
// one (port 0). It is exported for other implementations of the device.
func BindError(op string, domid xen.Domid, port Port, err error) *Error {
	hint := bindHint(err)
	if op == "bind" && port == 0 {
		hint = noPort
	}
	return &Error{Op: op, Domid: domid, Port: port, Err: err, Hint: hint}
}

// bindHint returns the reason why Xen did not make a port, or "".
func bindHint(err error) string {
	switch {
	case errors.Is(err, unix.EACCES):
		return "this device is restricted: it may only bind ports of the one domain"
	case errors.Is(err, unix.EINVAL):
		return "the domain has no such port, or did not offer it to us, or it is in use already"
	case errors.Is(err, unix.ESRCH):
		return "there is no such domain"
	case errors.Is(err, unix.ENOSPC):
		return "this domain has no event channel left"
	}
	return ""
}

// portHint returns the fault of a local port, or "". Unbind returns EINVAL for
// numbers that no port can have.
func portHint(err error) string {
	if errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.EINVAL) {
		return "the port is not bound through this device"
	}
	return ""
}

// restrictHint returns the reason why a device cannot be restricted, or "".
func restrictHint(err error) string {
	switch {
	case errors.Is(err, unix.EACCES):
		return "the device is restricted already"
	case errors.Is(err, unix.EINVAL):
		return "domain 0 and reserved ids cannot be named"
	case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.ENOTTY):
		return "this kernel cannot restrict a device: run a newer one"
	}
	return ""
}
