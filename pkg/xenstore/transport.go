// SPDX-License-Identifier: Apache-2.0

package xenstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

// Kind is the transport of a connection to xenstored. The package documentation
// describes the differences.
type Kind int

// The kinds of connection.
const (
	Socket Kind = iota // unix socket of xenstored
	Xenbus             // /dev/xen/xenbus
)

// String returns "socket" or "xenbus".
func (k Kind) String() string {
	if k == Xenbus {
		return "xenbus"
	}
	return "socket"
}

// MaxRequest returns the longest payload of a request, in bytes.
func (k Kind) MaxRequest() int {
	if k == Xenbus {
		return MaxPayloadXenbus
	}
	return MaxPayload
}

// Places of xenstored. The environment variable replaces the device, as in
// libxenstore.
const (
	socketPath = "/run/xenstored/socket"
	devicePath = "/dev/xen/xenbus"
	pathEnv    = "XENSTORED_PATH"
)

// connectTimeout bounds connect(2), which waits if the backlog of the socket is full.
const connectTimeout = 10 * time.Second

// Open connects to xenstored at its usual places: the socket
// /run/xenstored/socket, else the path in $XENSTORED_PATH, else the device
// /dev/xen/xenbus. If no process listens at the socket, xenstored has died, and Open
// fails. The device could still be opened, but requests would wait for the next
// xenstored.
func Open(ctx context.Context, opts ...Option) (*Client, error) {
	second := devicePath
	if p := os.Getenv(pathEnv); p != "" {
		second = p
	}
	return dialFirst(ctx, []string{socketPath, second}, opts)
}

// dialFirst connects to the first path that answers.
func dialFirst(ctx context.Context, paths []string, opts []Option) (*Client, error) {
	var errs []error
	for _, p := range paths {
		c, err := Dial(ctx, p, opts...)
		if err == nil {
			return c, nil
		}
		errs = append(errs, err)
		if errors.Is(err, syscall.ECONNREFUSED) || ctx.Err() != nil {
			break
		}
	}
	return nil, fmt.Errorf("no xenstored found, is this a Xen domain and the Xen service started? %w",
		errors.Join(errs...))
}

// Dial connects to xenstored at path, a unix socket or a character device.
func Dial(ctx context.Context, path string, opts ...Option) (*Client, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("xenstore: %w", err)
	}
	conn, kind, err := dial(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("xenstore: %w", err)
	}
	return New(conn, kind, opts...), nil
}

func dial(ctx context.Context, path string) (io.ReadWriteCloser, Kind, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, Socket, err
	}
	switch {
	case st.Mode()&os.ModeSocket != 0:
		d := net.Dialer{Timeout: connectTimeout}
		conn, err := d.DialContext(ctx, "unix", path)
		return conn, Socket, err
	case st.Mode()&os.ModeCharDevice != 0:
		conn, err := openDevice(path)
		return conn, Xenbus, err
	}
	return nil, Socket, fmt.Errorf("%s is neither a socket nor a character device", path)
}

// openDevice opens a device whose reads wait in the runtime's poller, so that
// closing the file wakes them. It refuses a device that the kernel cannot poll: a read
// would hold its thread, and Close could not end it.
func openDevice(path string) (io.ReadWriteCloser, error) {
	f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if err := f.SetReadDeadline(time.Time{}); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("%s does not support poll, so it is not xenbus: %w", path, err)
	}
	return f, nil
}
