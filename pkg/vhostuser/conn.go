// SPDX-License-Identifier: Apache-2.0

package vhostuser

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// DefaultTimeout bounds how long the rest of a message that began may take, and how long
// an answer may wait for its reader.
const DefaultTimeout = 10 * time.Second

// conn is a unix socket with messages. One goroutine reads and writes.
type conn struct {
	c       *net.UnixConn
	timeout time.Duration
	in      [maxPayload]byte
	out     []byte
	oob     []byte
}

func newConn(c *net.UnixConn, timeout time.Duration) *conn {
	if timeout == 0 {
		timeout = DefaultTimeout
	}
	return &conn{c: c, timeout: timeout, oob: make([]byte, unix.CmsgSpace(4*maxFiles))}
}

// NewConn makes a connection of a stream socket, whose descriptor is its own from then on.
// A descriptor of a socket pair or one that a supervisor passed can be used.
func NewConn(fd int) (*net.UnixConn, error) {
	f := os.NewFile(uintptr(fd), "vhost-user")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("vhostuser: %w", err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(errors.New("vhostuser: the descriptor is no unix socket"), c.Close())
	}
	return u, nil
}

// receive reads the header and the payload of a message. Descriptors come with the first
// byte of the header; those that come later are an error. The caller closes them. io.EOF says that the other side closed the
// connection between two messages.
func (c *conn) receive() (h Header, payload []byte, files []int, err error) {
	defer func() {
		if err != nil {
			closeAll(files)
			files = nil
		}
	}()
	if err := c.c.SetReadDeadline(time.Time{}); err != nil {
		return h, nil, nil, err
	}
	var head [headerSize]byte
	n, files, err := c.read(head[:])
	if err != nil {
		return h, nil, files, err
	}
	if err := c.c.SetReadDeadline(time.Now().Add(c.timeout)); err != nil {
		return h, nil, files, err
	}
	if err := c.rest(head[n:]); err != nil {
		return h, nil, files, err
	}
	if h, err = decodeHeader(head[:]); err != nil {
		return h, nil, files, err
	}
	payload = c.in[:h.Size]
	return h, payload, files, c.rest(payload)
}

// rest fills p. What comes with it must be bytes.
func (c *conn) rest(p []byte) error {
	for len(p) > 0 {
		n, files, err := c.read(p)
		if len(files) > 0 {
			closeAll(files)
			return ErrFiles
		}
		if err == io.EOF {
			return io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// read reads at most len(p) bytes, at least one, and the descriptors that come with them.
func (c *conn) read(p []byte) (int, []int, error) {
	n, oobn, flags, _, err := c.c.ReadMsgUnix(p, c.oob)
	files, parseErr := rights(c.oob[:oobn])
	switch {
	case errors.Is(err, io.EOF):
		err = io.EOF
	case err != nil:
	case parseErr != nil:
		err = parseErr
	case flags&unix.MSG_CTRUNC != 0:
		err = ErrFiles
	case n == 0:
		err = io.EOF
	}
	return n, files, err
}

// rights returns the descriptors in ancillary data.
func rights(oob []byte) (files []int, err error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	for i := range msgs {
		if msgs[i].Header.Level != unix.SOL_SOCKET || msgs[i].Header.Type != unix.SCM_RIGHTS {
			continue
		}
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			return files, err
		}
		files = append(files, fds...)
	}
	return files, nil
}

// send writes a message with its descriptors, which stay the caller's.
func (c *conn) send(m *Message) error {
	c.out = m.Append(c.out[:0])
	var oob []byte
	if len(m.Files) > 0 {
		oob = unix.UnixRights(m.Files...)
	}
	if err := c.c.SetWriteDeadline(time.Now().Add(c.timeout)); err != nil {
		return err
	}
	for b := c.out; len(b) > 0; oob = nil {
		n, _, err := c.c.WriteMsgUnix(b, oob, nil)
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

func closeAll(files []int) {
	for _, fd := range files {
		_ = unix.Close(fd) // a descriptor that was received, never written to
	}
}
