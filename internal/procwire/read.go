// SPDX-License-Identifier: Apache-2.0

package procwire

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"
)

// read takes frames until the connection ends.
func (c *Conn) read() {
	defer close(c.work)
	limit := rate.NewLimiter(rate.Inf, 0)
	if c.cfg.Rate > 0 {
		limit = rate.NewLimiter(c.cfg.Rate, max(c.cfg.Burst, 1))
	}
	frame := make([]byte, headerSize+MaxBody+1) // one byte more shows a frame that is too long
	oob := make([]byte, unix.CmsgSpace(4*(MaxFiles+1)))
	for {
		if limit.Wait(c.ctx) != nil {
			return // the connection has ended
		}
		n, files, err := c.receive(frame, oob)
		if err == nil {
			err = c.take(frame[:n], &files)
		}
		files.Close()
		if err != nil {
			c.fail(err)
			return
		}
	}
}

// receive reads a frame and its files. The kernel makes the files close-on-exec.
func (c *Conn) receive(frame, oob []byte) (int, Files, error) {
	n, oobn, flags, _, err := c.sock.ReadMsgUnix(frame, oob)
	fds, bad := rights(oob[:oobn])
	files := Files{fds: fds}
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET), errors.Is(err, net.ErrClosed), err == nil && n == 0:
		return 0, files, ErrClosed
	case err != nil:
		return 0, files, fmt.Errorf("message of the other process: %w", err)
	case bad != nil:
		return 0, files, bad
	case flags&unix.MSG_TRUNC != 0:
		return 0, files, violation("a frame of more than %d bytes", headerSize+MaxBody)
	case flags&unix.MSG_CTRUNC != 0:
		return 0, files, violation("files of a message were lost: too many, or the limit of open files is reached (LimitNOFILE= in the unit)")
	}
	return n, files, nil
}

// rights returns the descriptors in ancillary data. Other ancillary data is an error.
func rights(oob []byte) (fds []int, err error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, violation("ancillary data: %v", err)
	}
	for i := range msgs {
		got, parseErr := unix.ParseUnixRights(&msgs[i])
		if parseErr != nil {
			err = violation("ancillary data of type %d", msgs[i].Header.Type)
			continue
		}
		fds = append(fds, got...)
	}
	return fds, err
}

// take hands a frame to the handler or to the Call that waits for it. It takes the files out
// of files.
func (c *Conn) take(frame []byte, files *Files) error {
	h, body, err := decode(frame, files.Len())
	if err != nil {
		return err
	}
	if err := check(&h, c.cfg.In, c.cfg.Out); err != nil {
		return err
	}
	if h.class == classAnswer || h.class == classFailure {
		return c.answer(&h, body, files)
	}
	if h.class == classRequest {
		if err := c.owe(h.id); err != nil {
			return err
		}
	}
	m := &Message{Kind: h.kind, Body: bytes.Clone(body), Files: *files, conn: c, id: h.id}
	*files = Files{}
	select {
	case c.work <- m:
	case <-c.ctx.Done():
		m.Close()
	}
	return nil
}

// owe enters a request of the other side.
func (c *Conn) owe(id uint32) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, used := c.owed[id]; used {
		return violation("request %d again before its answer", id)
	}
	if len(c.owed) >= c.cfg.Pending {
		return violation("more than %d requests at once", c.cfg.Pending)
	}
	c.owed[id] = struct{}{}
	return nil
}

// answer hands an answer to the Call that waits for it.
func (c *Conn) answer(h *header, body []byte, files *Files) error {
	var p Reply
	if h.class == classFailure {
		remote, err := readFailure(h.kind, body)
		if err != nil {
			return err
		}
		p.err = remote
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return nil // the Call has its error
	}
	w := c.waiting[h.id]
	if w == nil || w.kind != h.kind {
		return violation("an answer of kind %d to request %d, which is not open", h.kind, h.id)
	}
	delete(c.waiting, h.id)
	if w.gaveUp {
		return nil
	}
	if h.class == classAnswer {
		p.Body, p.Files = bytes.Clone(body), *files
		*files = Files{}
	}
	w.reply <- p // it has room for one
	return nil
}

// handle calls the handler for each message, also for those that came before the other side
// ended the connection.
func (c *Conn) handle() {
	for m := range c.work {
		c.mu.Lock()
		closed := c.closed
		c.mu.Unlock()
		if !closed && c.cfg.Handle != nil {
			c.cfg.Handle(m)
		}
		m.Close()
	}
}
