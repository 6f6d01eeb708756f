// SPDX-License-Identifier: Apache-2.0

package procwire

import (
	"encoding/binary"
	"errors"
	"unicode/utf8"
)

// ErrBody matches the errors of [Reader]: the body of a message is not valid.
var ErrBody = errors.New("the body of a message is not valid")

// Writer appends values to a body. The zero value is an empty body.
type Writer struct{ b []byte }

// Bytes returns the body so far.
func (w *Writer) Bytes() []byte { return w.b }

// U8 appends a byte.
func (w *Writer) U8(v uint8) { w.b = append(w.b, v) }

// Bool appends a boolean, as 0 or 1.
func (w *Writer) Bool(v bool) {
	if v {
		w.U8(1)
	} else {
		w.U8(0)
	}
}

// U16 appends a number.
func (w *Writer) U16(v uint16) { w.b = binary.LittleEndian.AppendUint16(w.b, v) }

// U32 appends a number.
func (w *Writer) U32(v uint32) { w.b = binary.LittleEndian.AppendUint32(w.b, v) }

// U64 appends a number.
func (w *Writer) U64(v uint64) { w.b = binary.LittleEndian.AppendUint64(w.b, v) }

// I64 appends a number, such as a time.Duration.
func (w *Writer) I64(v int64) { w.U64(uint64(v)) }

// Raw appends bytes whose number the reader knows.
func (w *Writer) Raw(v []byte) { w.b = append(w.b, v...) }

// Blob appends bytes and their number.
func (w *Writer) Blob(v []byte) {
	w.U32(uint32(len(v)))
	w.b = append(w.b, v...)
}

// String appends a string and its length.
func (w *Writer) String(v string) {
	w.U32(uint32(len(v)))
	w.b = append(w.b, v...)
}

// Reader reads the values of a body in their order. After the first value that is not valid
// all are zero, and End returns the error.
type Reader struct {
	b   []byte
	bad bool
}

// NewReader makes a reader of a body. Blobs are parts of it.
func NewReader(body []byte) *Reader { return &Reader{b: body} }

// take returns the next n bytes, or nil.
func (r *Reader) take(n int) []byte {
	if r.bad || n < 0 || n > len(r.b) {
		r.bad = true
		return nil
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	return v
}

// Fail makes the body invalid, for a value that the caller does not accept.
func (r *Reader) Fail() { r.bad = true }

// U8 reads a byte.
func (r *Reader) U8() uint8 {
	if v := r.take(1); v != nil {
		return v[0]
	}
	return 0
}

// Bool reads a boolean, which must be 0 or 1.
func (r *Reader) Bool() bool {
	v := r.U8()
	if v > 1 {
		r.bad = true
	}
	return v == 1
}

// U16 reads a number.
func (r *Reader) U16() uint16 {
	if v := r.take(2); v != nil {
		return binary.LittleEndian.Uint16(v)
	}
	return 0
}

// U32 reads a number.
func (r *Reader) U32() uint32 {
	if v := r.take(4); v != nil {
		return binary.LittleEndian.Uint32(v)
	}
	return 0
}

// U64 reads a number.
func (r *Reader) U64() uint64 {
	if v := r.take(8); v != nil {
		return binary.LittleEndian.Uint64(v)
	}
	return 0
}

// I64 reads a number.
func (r *Reader) I64() int64 { return int64(r.U64()) }

// Raw reads n bytes.
func (r *Reader) Raw(n int) []byte { return r.take(n) }

// Blob reads bytes, at most the given number.
func (r *Reader) Blob(most int) []byte { return r.take(r.Count(most, 1)) }

// String reads a string of valid UTF-8, of at most the given number of bytes.
func (r *Reader) String(most int) string {
	v := r.Blob(most)
	if !utf8.Valid(v) {
		r.bad = true
		return ""
	}
	return string(v)
}

// Count reads the number of elements that follow, at most the given one. Each takes at least
// size bytes: a number that the rest of the body cannot hold is not valid, so a slice of that
// many may be made.
func (r *Reader) Count(most, size int) int {
	n := r.U32()
	if r.bad || uint64(n) > uint64(max(most, 0)) || uint64(n)*uint64(max(size, 0)) > uint64(len(r.b)) {
		r.bad = true
		return 0
	}
	return int(n)
}

// End returns an error if a value was not valid, or if bytes are left.
func (r *Reader) End() error {
	if r.bad || len(r.b) > 0 {
		return ErrBody
	}
	return nil
}
