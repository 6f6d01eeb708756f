// SPDX-License-Identifier: Apache-2.0

package procwire

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Kind names a message. The kinds are the caller's.
type Kind uint16

const (
	// MaxBody bounds the body of a message, in bytes.
	MaxBody = 64 << 10

	// MaxFiles bounds the files of a message (SCM_MAX_FD of Linux).
	MaxFiles = 253

	headerSize = 16

	// maxText bounds the text of a failure, in bytes.
	maxText = 1024
)

// class tells requests, answers and notices apart.
type class uint8

const (
	classNotice class = iota + 1
	classRequest
	classAnswer
	classFailure
)

// ErrProtocol matches the errors about frames that break the rules. The connection has ended.
var ErrProtocol = errors.New("the other process broke the protocol")

func violation(format string, v ...any) error {
	return fmt.Errorf("%w: %s", ErrProtocol, fmt.Sprintf(format, v...))
}

// header is the first part of a frame: kind, class, number of files, id of the request, and
// the length of the body, little-endian; the last four bytes are 0.
type header struct {
	kind  Kind
	class class
	files int
	id    uint32
	body  int
}

func (h *header) append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint16(b, uint16(h.kind))
	b = append(b, byte(h.class), byte(h.files))
	b = binary.LittleEndian.AppendUint32(b, h.id)
	b = binary.LittleEndian.AppendUint32(b, uint32(h.body))
	return append(b, 0, 0, 0, 0)
}

// decode reads a frame that came with a number of files. It checks what does not depend on
// the kind.
func decode(frame []byte, files int) (h header, body []byte, err error) {
	if len(frame) < headerSize {
		return h, nil, violation("a frame of %d bytes", len(frame))
	}
	le := binary.LittleEndian
	h = header{
		kind: Kind(le.Uint16(frame)), class: class(frame[2]), files: int(frame[3]),
		id: le.Uint32(frame[4:]),
	}
	size, rest := le.Uint32(frame[8:]), le.Uint32(frame[12:])
	body = frame[headerSize:]
	switch {
	case uint64(size) != uint64(len(body)) || size > MaxBody:
		return h, nil, violation("a body of %d bytes, announced as %d", len(body), size)
	case rest != 0:
		return h, nil, violation("reserved bytes of the header are %#x", rest)
	case h.files != files:
		return h, nil, violation("kind %d came with %d files, announced as %d", h.kind, files, h.files)
	case h.class < classNotice || h.class > classFailure:
		return h, nil, violation("class %d", h.class)
	case (h.class == classNotice) != (h.id == 0):
		return h, nil, violation("class %d with id %d", h.class, h.id)
	}
	h.body = len(body)
	return h, body, nil
}

// Size bounds a message: at most Body bytes, and from Files to MaxFiles files. MaxFiles below
// Files means exactly Files.
type Size struct{ Body, Files, MaxFiles int }

func (s Size) check(h *header) error {
	most := max(s.Files, s.MaxFiles)
	switch {
	case h.body > s.Body:
		return violation("kind %d has a body of %d bytes, at most %d are allowed", h.kind, h.body, s.Body)
	case h.files < s.Files || h.files > most:
		return violation("kind %d has %d files, want %d to %d", h.kind, h.files, s.Files, most)
	}
	return nil
}

// Rule bounds the messages of a kind. A kind with Notice is sent without an answer, any other
// is a request.
type Rule struct {
	Notice bool
	Ask    Size // the notice or the request
	Answer Size
}

// Rules has the rule of each kind that one side may send.
type Rules map[Kind]Rule

// check returns the rule for a frame of the other side, which it may send if in has its kind,
// or if it answers one of out.
func check(h *header, in, out Rules) error {
	switch h.class {
	case classNotice, classRequest:
		r, ok := in[h.kind]
		if !ok {
			return violation("kind %d is not known", h.kind)
		}
		if r.Notice != (h.class == classNotice) {
			return violation("kind %d has class %d", h.kind, h.class)
		}
		return r.Ask.check(h)
	case classAnswer:
		r, ok := out[h.kind]
		if !ok {
			return violation("an answer of kind %d, which was not sent", h.kind)
		}
		return r.Answer.check(h)
	default:
		return Size{Body: failureSize}.check(h)
	}
}
