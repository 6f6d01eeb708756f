// SPDX-License-Identifier: Apache-2.0

package procs

import (
	"bytes"
	"encoding/json"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/procwire"
	"github.com/netbackd/netbackd/pkg/evtchn"
)

// MaxText bounds the texts of messages, and MaxJSON their values for status output, in bytes.
// AnswerSize is the size of an answer that is an error or nothing.
const (
	MaxText    = 1024
	MaxJSON    = 32 << 10
	AnswerSize = MaxText + 16
)

// Causes are the errors of an engine that an answer tells apart, beside errnos and failures to
// bind an event channel: six at most.
type Causes []error

// remoteError is an error that a process has answered. It has the causes that a device asks
// for. The text may be a guest's.
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
	errCause  // the first of Causes
)

// maxErrno bounds the numbers of Linux's errors (MAX_ERRNO).
const maxErrno = 4095

// Put appends an error to the body of an answer; nil is one, too.
func (c Causes) Put(w *procwire.Writer, err error) {
	if err == nil {
		w.U8(0)
		return
	}
	flags := uint8(errFailed)
	var bind *evtchn.Error
	if errors.As(err, &bind) && bind.Op == "bind" {
		flags |= errBind
	}
	for i, cause := range c {
		if errors.Is(err, cause) {
			flags |= errCause << i
		}
	}
	var errno unix.Errno
	errors.As(err, &errno)
	w.U8(flags)
	w.U16(uint16(min(errno, maxErrno)))
	w.Blob([]byte(Cut(err.Error())))
}

// Cut cuts a text to MaxText bytes.
func Cut(text string) string { return text[:min(len(text), MaxText)] }

// Take reads an error of Put.
func (c Causes) Take(r *procwire.Reader) error {
	flags := r.U8()
	if flags == 0 {
		return nil
	}
	errno := unix.Errno(r.U16())
	text := r.Blob(MaxText)
	if flags&errFailed == 0 || int(flags) >= errCause<<len(c) || errno > maxErrno {
		r.Fail()
	}
	e := &remoteError{text: Clean(text)}
	if errno != 0 {
		e.causes = append(e.causes, errno)
	}
	if flags&errBind != 0 {
		e.causes = append(e.causes, &evtchn.Error{Op: "bind", Err: errno})
	}
	for i, cause := range c {
		if flags&(errCause<<i) != 0 {
			e.causes = append(e.causes, cause)
		}
	}
	return e
}

// Clean returns a text of a process without bytes that are no printable characters.
func Clean(text []byte) string {
	b := make([]byte, 0, len(text))
	for _, c := range string(text) {
		if c < ' ' || c == 0x7f || c == '\uFFFD' {
			c = '?'
		}
		b = append(b, string(c)...)
	}
	return string(b)
}

// PutJSON encodes a value of strings and numbers that is shown.
func PutJSON(w *procwire.Writer, v any) {
	b, err := json.Marshal(v)
	if err != nil || len(b) > MaxJSON {
		b = []byte("{}")
	}
	w.Blob(b)
}

// TakeJSON reads a value of PutJSON.
func TakeJSON(r *procwire.Reader, v any) {
	d := json.NewDecoder(bytes.NewReader(r.Blob(MaxJSON)))
	d.DisallowUnknownFields()
	if d.Decode(v) != nil || d.More() {
		r.Fail()
	}
}
