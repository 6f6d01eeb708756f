// SPDX-License-Identifier: Apache-2.0

package tap

import (
	"errors"
	"io/fs"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

var (
	// ErrBusy: another process has queues of the device open.
	ErrBusy = errors.New("device is in use")
	// ErrMismatch: the name belongs to a device that cannot be adopted: it is not a
	// TAP, or has other flags.
	ErrMismatch = errors.New("name is taken by another kind of device")
	// ErrGone: another program has deleted the device.
	ErrGone = errors.New("device is gone")
	// ErrElsewhere: the device is in a network namespace that this process may not
	// enter, and the call can succeed only there.
	ErrElsewhere = errors.New("device is in another network namespace")
	// ErrNotSupported: the kernel does not have the feature.
	ErrNotSupported = errors.New("not supported by this kernel")
	// ErrClosed is the error of the methods of a closed Device.
	ErrClosed = os.ErrClosed

	errNoEthtool = errors.New("no ethtool by netlink") // before Linux 5.6

	errQueues  = errors.New("number of queues is out of range")
	errOffload = errors.New("segmentation offload needs checksum offload")
	errPlain   = errors.New("offloads need a vnet header")
	errRenamed = errors.New("device was renamed during each attempt")
	errName    = errors.New("not a valid interface name")
)

// ErrAgain is returned by [Queue.Read] and [Queue.Readv] when no frame is
// waiting, and by [Queue.Write] and [Queue.Writev] when another program has
// bounded the device's send buffer (TUNSETSNDBUF) and it is full. It is compared
// with ==.
var ErrAgain error = unix.EAGAIN

// Error is the error of every function and method of this package, except for those of
// [Queue] and [VnetHdr].
type Error struct {
	// Op is the failed operation, such as "create" or "set queues".
	Op string
	// Name is the device's name, or empty if it is not known.
	Name string
	// Err is a sentinel of this package, an errno, or wraps one. A missing
	// or forbidden /dev/net/tun is fs.ErrNotExist or fs.ErrPermission.
	Err error
	// Hint is a remedy for the user; it may be empty.
	Hint string
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("tap: " + e.Op)
	if e.Name != "" {
		b.WriteString(" " + e.Name)
	}
	b.WriteString(": " + e.Err.Error())
	if e.Hint != "" {
		b.WriteString("; " + e.Hint)
	}
	return b.String()
}

func (e *Error) Unwrap() error { return e.Err }

// hinted is an error with the Hint of the *Error that fail makes of it.
type hinted struct {
	error
	hint string
}

func (e *hinted) Unwrap() error { return e.error }

func withHint(err error, hint string) error { return &hinted{err, hint} }

// fail makes err an *Error. nil stays nil.
func fail(op, name string, err error) error {
	if err == nil {
		return nil
	}
	e := &Error{Op: op, Name: name, Err: err}
	var h *hinted
	switch {
	case errors.As(err, &h):
		e.Hint = h.hint
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE):
		e.Hint = openHint(err)
	}
	return e
}

// isGone reports whether err, of an operation on a device, means that the device was
// deleted: EBADFD comes from a queue, the others from netlink.
func isGone(err error) bool {
	return errors.Is(err, unix.EBADFD) || errors.Is(err, unix.ENODEV) ||
		errors.As(err, new(netlink.LinkNotFoundError))
}

// openHint returns a remedy if /dev/net/tun cannot be opened, or "".
func openHint(err error) string {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return "load the driver with `modprobe tun`; in a container, pass " + tunPath + " in"
	case errors.Is(err, fs.ErrPermission):
		return "run as root or `chmod 666 " + tunPath + "`; under systemd, check DeviceAllow="
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE):
		return "raise the limit of open files (LimitNOFILE=)"
	}
	return ""
}

// attachHint returns a remedy if the kernel refuses a queue of a device, or "".
func attachHint(err error) string {
	switch {
	case errors.Is(err, unix.EPERM):
		return "CAP_NET_ADMIN is needed to create a device, and to adopt one of another user"
	case errors.Is(err, unix.E2BIG):
		return "the kernel allows 256 queues per device"
	}
	return ""
}
