// SPDX-License-Identifier: Apache-2.0

package procwire

import (
	"errors"
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Files are descriptors that came with a message, all close-on-exec. Those that are not taken
// are closed.
type Files struct{ fds []int }

// Len returns the number of files that came.
func (f *Files) Len() int { return len(f.fds) }

// Take returns descriptor i, which is the caller's from then on, or -1 if there is none or if
// it was taken before.
func (f *Files) Take(i int) int {
	if i < 0 || i >= len(f.fds) {
		return -1
	}
	fd := f.fds[i]
	f.fds[i] = -1
	return fd
}

// TakeAll returns the descriptors if there are exactly n and none was taken.
func (f *Files) TakeAll(n int) ([]int, error) {
	if len(f.fds) != n {
		return nil, violation("%d files, want %d", len(f.fds), n)
	}
	fds := f.fds
	f.fds = nil
	return fds, nil
}

// Close closes the files that were not taken.
func (f *Files) Close() {
	closeAll(f.fds)
	f.fds = nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		if fd >= 0 {
			_ = unix.Close(fd) // it was received and never used
		}
	}
}

// Message is a notice or a request of the other side.
type Message struct {
	Kind Kind
	Body []byte
	Files

	conn     *Conn
	id       uint32 // 0: a notice
	answered atomic.Bool
}

// Reader returns a reader of the body.
func (m *Message) Reader() *Reader { return NewReader(m.Body) }

// errAnswered is returned for a second answer, and for the answer to a notice.
var errAnswered = errors.New("procwire: no answer is due")

// Answer answers the request. The files stay the caller's. It may be called after the handler
// has returned, from any goroutine, once.
func (m *Message) Answer(body []byte, files ...int) error {
	if m.id == 0 || m.answered.Swap(true) {
		return errAnswered
	}
	size := m.conn.cfg.In[m.Kind].Answer
	h := header{kind: m.Kind, class: classAnswer, id: m.id, body: len(body), files: len(files)}
	return m.conn.finish(&h, size, body, files)
}

// Fail answers the request with an error. The other side gets its number, if it has one, and
// its text.
func (m *Message) Fail(err error) error {
	if m.id == 0 || m.answered.Swap(true) {
		return errAnswered
	}
	body := failure(err)
	h := header{kind: m.Kind, class: classFailure, id: m.id, body: len(body)}
	return m.conn.finish(&h, Size{Body: failureSize}, body, nil)
}

// RemoteError is a failure that the other side answered.
type RemoteError struct {
	Kind  Kind
	Errno unix.Errno // 0: the error had none
	Text  string
}

func (e *RemoteError) Error() string { return e.Text }

// Unwrap returns the errno, so that errors.Is finds it.
func (e *RemoteError) Unwrap() error {
	if e.Errno == 0 {
		return nil
	}
	return e.Errno
}

// failureSize bounds the body of a failure.
const failureSize = 2 + 4 + maxText

// maxErrno bounds the errors of Linux (MAX_ERRNO).
const maxErrno = 4095

func failure(err error) []byte {
	var w Writer
	var errno unix.Errno
	errors.As(err, &errno)
	w.U16(uint16(min(errno, maxErrno)))
	text := err.Error()
	w.String(text[:min(len(text), maxText)])
	return w.Bytes()
}

// readFailure reads the body of a failure. Its text may have been cut within a letter.
func readFailure(kind Kind, body []byte) (*RemoteError, error) {
	r := NewReader(body)
	errno := r.U16()
	text := r.Blob(maxText)
	if err := r.End(); err != nil || errno > maxErrno {
		return nil, violation("a failure that cannot be read")
	}
	return &RemoteError{Kind: kind, Errno: unix.Errno(errno), Text: printable(text)}, nil
}

// printable returns text without line ends and other control characters, for logs.
func printable(text []byte) string {
	s := fmt.Sprintf("%q", text)
	return s[1 : len(s)-1]
}
