// SPDX-License-Identifier: Apache-2.0

package sdnotify

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Environment variables of the protocols.
const (
	envSocket       = "NOTIFY_SOCKET"
	envWatchdogUsec = "WATCHDOG_USEC"
	envWatchdogPID  = "WATCHDOG_PID"
	envListenPID    = "LISTEN_PID"
	envListenFDs    = "LISTEN_FDS"
	envListenNames  = "LISTEN_FDNAMES"
)

// sendTimeout bounds the time that a message may wait for the manager, which queues some
// hundred messages and may be busy. At the end of a service a few messages wait in a row,
// and the service is killed after some seconds (TimeoutStopSec).
const sendTimeout = time.Second

// Notifier sends messages to the service manager. It is safe for concurrent use.
// All methods of a nil Notifier succeed and do nothing.
type Notifier struct {
	addr     string // a path, or a name with an "@" before it
	watchdog time.Duration
}

// FromEnv reads the service manager's variables from the environment, and removes them,
// so that no child inherits them. It returns a Notifier, which is nil if there is no manager
// or the manager expects no messages, and the files that the manager passes on, which the
// caller owns. With an error it returns the valid part of these.
func FromEnv() (*Notifier, []File, error) {
	defer func() {
		for _, key := range []string{envSocket, envWatchdogUsec, envWatchdogPID, envListenPID, envListenFDs, envListenNames} {
			_ = os.Unsetenv(key)
		}
	}()
	files, filesErr := listenFiles(os.Getpid(), firstFD, os.Getenv)
	n, err := parseSocket(os.Getenv(envSocket))
	if n == nil {
		return nil, files, errors.Join(err, filesErr)
	}
	n.watchdog, err = parseWatchdog(os.Getpid(), os.Getenv)
	return n, files, errors.Join(err, filesErr)
}

// parseSocket makes a Notifier of $NOTIFY_SOCKET: a path, or after an "@" a name
// in the abstract namespace.
func parseSocket(path string) (*Notifier, error) {
	switch {
	case path == "":
		return nil, nil
	case path[0] == '/', path[0] == '@' && len(path) > 1:
		return &Notifier{addr: path}, nil
	}
	return nil, fmt.Errorf("$%s is %q, want a path or an abstract socket's name", envSocket, path)
}

// parseWatchdog returns the watchdog's period for the process pid; 0 if there is none.
func parseWatchdog(pid int, getenv func(string) string) (time.Duration, error) {
	usec := getenv(envWatchdogUsec)
	if usec == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(usec, 10, 63)
	if err != nil || n == 0 || n > uint64(1<<63-1)/uint64(time.Microsecond) {
		return 0, fmt.Errorf("$%s is %q, want microseconds", envWatchdogUsec, usec)
	}
	if p := getenv(envWatchdogPID); p != "" && p != strconv.Itoa(pid) {
		return 0, nil // for another process
	}
	return time.Duration(n) * time.Microsecond, nil
}

// Watchdog returns the period in which the manager expects Alive; 0 if it does not.
func (n *Notifier) Watchdog() time.Duration {
	if n == nil {
		return 0
	}
	return n.watchdog
}

// Ready reports that the service has started.
func (n *Notifier) Ready() error { return n.send("READY=1", -1) }

// Stopping reports that the service ends.
func (n *Notifier) Stopping() error { return n.send("STOPPING=1", -1) }

// Alive feeds the watchdog.
func (n *Notifier) Alive() error { return n.send("WATCHDOG=1", -1) }

// Status reports the state of the service as a line of free text.
func (n *Notifier) Status(text string) error {
	return n.send("STATUS="+strings.ReplaceAll(text, "\n", " "), -1)
}

// Store sends a copy of an open file to the manager, under a name. The manager passes it to
// the next process of the service, see [FromEnv], and keeps it open until Remove. It does
// not poll the file. It closes files beyond its limit without a message, so the next
// process must also work without them.
//
// A name has up to 255 bytes of printable ASCII without ':'. Files may share a name.
func (n *Notifier) Store(name string, fd int) error {
	if err := checkName(name); err != nil {
		return err
	}
	return n.send("FDSTORE=1\nFDPOLL=0\nFDNAME="+name, fd)
}

// Remove makes the manager close the files of that name, if there are any.
func (n *Notifier) Remove(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	return n.send("FDSTOREREMOVE=1\nFDNAME="+name, -1)
}

// Barrier waits until the manager has read all earlier messages.
func (n *Notifier) Barrier(ctx context.Context) error {
	if n == nil {
		return nil
	}
	ours, theirs, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("sdnotify: barrier: %w", err)
	}
	defer func() { _ = ours.Close() }()
	fd, err := dup(theirs)
	if err != nil {
		return fmt.Errorf("sdnotify: barrier: %w", errors.Join(err, theirs.Close()))
	}
	// The manager closes its end when it reads the message.
	err = n.send("BARRIER=1", fd)
	if err := errors.Join(err, unix.Close(fd), theirs.Close()); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = ours.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	_, err = ours.Read(make([]byte, 1))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("sdnotify: barrier: %w", ctx.Err())
	}
	return nil
}

// dup duplicates the descriptor of a file. Its method Fd would remove the file from the
// runtime's poller.
func dup(f *os.File) (int, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd, dupErr := -1, error(nil)
	err = conn.Control(func(theirs uintptr) { fd, dupErr = unix.FcntlInt(theirs, unix.F_DUPFD_CLOEXEC, 0) })
	return fd, errors.Join(err, dupErr)
}

// send sends one message, with a file unless fd is negative. Each message uses a new
// socket: messages are rare, and a manager that was executed again may have another socket.
// The socket is a blocking one, because the kernel does not wake pollers of the sender when
// the receiver's queue has room again.
func (n *Notifier) send(message string, fd int) (err error) {
	if n == nil {
		return nil
	}
	defer func() {
		if err != nil {
			what, _, _ := strings.Cut(message, "\n")
			err = fmt.Errorf("sdnotify: %s: %w", what, err)
		}
	}()
	sock, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(sock) }()
	limit := unix.NsecToTimeval(sendTimeout.Nanoseconds())
	if err := unix.SetsockoptTimeval(sock, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit); err != nil {
		return err
	}
	var rights []byte
	if fd >= 0 {
		rights = unix.UnixRights(fd)
	}
	for {
		// Sendmsg writes to the address, so each call has its own. It translates an "@"
		// to the abstract namespace.
		to := &unix.SockaddrUnix{Name: n.addr}
		err = unix.Sendmsg(sock, []byte(message), rights, to, unix.MSG_NOSIGNAL)
		if err != unix.EINTR {
			return err
		}
	}
}

// maxName is FDNAME_MAX.
const maxName = 255

// checkName follows systemd's fdname_is_valid.
func checkName(name string) error {
	ok := name != "" && len(name) <= maxName
	for _, c := range []byte(name) {
		ok = ok && c >= ' ' && c < 0x7f && c != ':'
	}
	if !ok {
		return fmt.Errorf("sdnotify: %q is not a valid name of a file", name)
	}
	return nil
}
