// SPDX-License-Identifier: Apache-2.0

package foreign

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Recorder stands between a front end and a back end of vhost-user. It passes on what one
// sends, message by message, with the file descriptors, and keeps a transcript of each
// connection.
type Recorder struct {
	l       *net.UnixListener
	dial    string
	reverse bool // the back end connects
	wg      sync.WaitGroup

	mu       sync.Mutex
	sessions []*session      // guarded by mu
	open     []*net.UnixConn // guarded by mu
	closed   bool            // guarded by mu
}

// session is the transcript of one connection. Both directions add to it.
type session struct {
	mu    sync.Mutex
	lines []string // guarded by mu
}

// NewRecorder listens on one socket and, for each connection there, connects to another.
// The front end connects to listen, or, if reverse is true, the back end does.
func NewRecorder(listen, dial string, reverse bool) (*Recorder, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: listen, Net: "unix"})
	if err != nil {
		return nil, err
	}
	r := &Recorder{l: l, dial: dial, reverse: reverse}
	r.wg.Go(r.serve)
	return r, nil
}

// Close ends all connections.
func (r *Recorder) Close() error {
	err := r.l.Close()
	r.mu.Lock()
	r.closed = true
	for _, c := range r.open {
		_ = c.Close()
	}
	r.mu.Unlock()
	r.wg.Wait()
	return err
}

// Transcripts returns the messages of each connection so far, oldest first.
func (r *Recorder) Transcripts() (all [][]string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.sessions {
		s.mu.Lock()
		all = append(all, append([]string(nil), s.lines...))
		s.mu.Unlock()
	}
	return all
}

func (r *Recorder) serve() {
	for {
		a, err := r.l.AcceptUnix()
		if err != nil {
			return
		}
		b, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: r.dial, Net: "unix"})
		if err != nil {
			_ = a.Close() // the other side tries again
			continue
		}
		s := &session{}
		r.mu.Lock()
		r.sessions = append(r.sessions, s)
		r.open = append(r.open, a, b)
		closed := r.closed
		r.mu.Unlock()
		if closed {
			_, _ = a.Close(), b.Close()
			return
		}
		front, back := a, b
		if r.reverse {
			front, back = b, a
		}
		r.wg.Go(func() { s.pass(front, back, true) })
		r.wg.Go(func() { s.pass(back, front, false) })
	}
}

// pass passes on the messages of a until a or b is closed, and then closes both.
//
// Descriptors belong to the first byte of a message, and one read could return the end of a
// message and the descriptors of the next. So header and payload are read one by one.
func (s *session) pass(a, b *net.UnixConn, front bool) {
	defer func() { _, _ = a.Close(), b.Close() }()
	buf, oob := make([]byte, 64<<10), make([]byte, unix.CmsgSpace(253*4))
	for {
		n, oobn, _, _, err := a.ReadMsgUnix(buf[:headerSize], oob)
		if err != nil || n == 0 {
			return
		}
		files, err := descriptors(oob[:oobn])
		m := buf[:headerSize]
		if err == nil {
			_, err = io.ReadFull(a, m[n:])
		}
		if err == nil {
			m = buf[:headerSize+min(int(header(m).Size), len(buf)-headerSize)]
			_, err = io.ReadFull(a, m[headerSize:])
		}
		if err == nil {
			s.add(line(front, m, len(files))) // before the other side can answer
			var rights []byte
			if len(files) > 0 {
				rights = unix.UnixRights(files...)
			}
			_, _, err = b.WriteMsgUnix(m, rights, nil)
		}
		for _, f := range files {
			_ = unix.Close(f)
		}
		if err != nil {
			return
		}
	}
}

// add adds a line to the transcript.
func (s *session) add(line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines = append(s.lines, line)
}

// descriptors returns the descriptors in a control message.
func descriptors(oob []byte) (files []int, err error) {
	msgs, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("control message: %w", err)
	}
	for _, m := range msgs {
		f, ferr := syscall.ParseUnixRights(&m)
		files, err = append(files, f...), errors.Join(err, ferr)
	}
	return files, err
}
