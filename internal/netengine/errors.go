// SPDX-License-Identifier: Apache-2.0

package netengine

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/procwire"
	"github.com/netbackd/netbackd/pkg/evtchn"
)

var (
	// ErrDied is returned if the packet process of a link has ended, or is not running at
	// the moment. The vif tries again.
	ErrDied = errors.New("the packet process does not run")

	// ErrFault is returned if a packet process had an internal error that concerns one
	// link. The vif is quarantined.
	ErrFault = errors.New("internal error of the packet process")
)

// remoteError is an error that a packet process has answered. It has the causes that the vif
// asks for. The text may be a guest's.
type remoteError struct {
	text   string
	causes []error
}

func (e *remoteError) Error() string { return e.text }

// Unwrap returns the causes, for errors.Is and errors.As.
func (e *remoteError) Unwrap() []error { return e.causes }

// Flags of an encoded error.
const (
	errFailed = 1 << iota
	errBind   // an event channel could not be bound
	errClosed // the data path is closed
	errFault  // ErrFault
	errFlags  = 1<<iota - 1
)

// maxErrno bounds the numbers of Linux's errors (MAX_ERRNO).
const maxErrno = 4095

// putError appends an error to the body of an answer; nil is one, too.
func putError(w *procwire.Writer, err error) {
	if err == nil {
		w.U8(0)
		return
	}
	flags := uint8(errFailed)
	var bind *evtchn.Error
	if errors.As(err, &bind) && bind.Op == "bind" {
		flags |= errBind
	}
	if errors.Is(err, dataplane.ErrClosed) {
		flags |= errClosed
	}
	if errors.Is(err, ErrFault) {
		flags |= errFault
	}
	var errno unix.Errno
	errors.As(err, &errno)
	w.U8(flags)
	w.U16(uint16(min(errno, maxErrno)))
	w.Blob([]byte(cut(err.Error())))
}

// cut cuts a text to maxText bytes.
func cut(text string) string { return text[:min(len(text), maxText)] }

// takeError reads an error of putError.
func takeError(r *procwire.Reader) error {
	flags := r.U8()
	if flags == 0 {
		return nil
	}
	errno := unix.Errno(r.U16())
	text := r.Blob(maxText)
	if flags&errFailed == 0 || flags&^errFlags != 0 || errno > maxErrno {
		r.Fail()
	}
	e := &remoteError{text: clean(text)}
	if errno != 0 {
		e.causes = append(e.causes, errno)
	}
	if flags&errBind != 0 {
		e.causes = append(e.causes, &evtchn.Error{Op: "bind", Err: errno})
	}
	if flags&errClosed != 0 {
		e.causes = append(e.causes, dataplane.ErrClosed)
	}
	if flags&errFault != 0 {
		e.causes = append(e.causes, ErrFault)
	}
	return e
}

// clean returns a text of a packet process without bytes that are no printable characters.
func clean(text []byte) string {
	b := make([]byte, 0, len(text))
	for _, c := range string(text) {
		if c < ' ' || c == 0x7f || c == '\uFFFD' {
			c = '?'
		}
		b = append(b, string(c)...)
	}
	return string(b)
}
