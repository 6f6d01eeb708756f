// SPDX-License-Identifier: Apache-2.0

package xenstore

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
)

// MessageType is the type field of a message: enum xsd_sockmsg_type of
// xen/include/public/io/xs_wire.h.
type MessageType uint32

// The message types. A reply carries the type of its request, or MsgError.
const (
	MsgControl            MessageType = 0  // XS_CONTROL (once XS_DEBUG)
	MsgDirectory          MessageType = 1  // XS_DIRECTORY
	MsgRead               MessageType = 2  // XS_READ
	MsgGetPerms           MessageType = 3  // XS_GET_PERMS
	MsgWatch              MessageType = 4  // XS_WATCH
	MsgUnwatch            MessageType = 5  // XS_UNWATCH
	MsgTransactionStart   MessageType = 6  // XS_TRANSACTION_START
	MsgTransactionEnd     MessageType = 7  // XS_TRANSACTION_END
	MsgIntroduce          MessageType = 8  // XS_INTRODUCE
	MsgRelease            MessageType = 9  // XS_RELEASE
	MsgGetDomainPath      MessageType = 10 // XS_GET_DOMAIN_PATH
	MsgWrite              MessageType = 11 // XS_WRITE
	MsgMkdir              MessageType = 12 // XS_MKDIR
	MsgRemove             MessageType = 13 // XS_RM
	MsgSetPerms           MessageType = 14 // XS_SET_PERMS
	MsgWatchEvent         MessageType = 15 // XS_WATCH_EVENT, sent by xenstored only
	MsgError              MessageType = 16 // XS_ERROR, sent by xenstored only
	MsgIsDomainIntroduced MessageType = 17 // XS_IS_DOMAIN_INTRODUCED
	MsgResume             MessageType = 18 // XS_RESUME
	MsgSetTarget          MessageType = 19 // XS_SET_TARGET
	MsgRestrict           MessageType = 20 // XS_RESTRICT, removed from Xen: answered with ENOSYS
	MsgResetWatches       MessageType = 21 // XS_RESET_WATCHES
	MsgDirectoryPart      MessageType = 22 // XS_DIRECTORY_PART
	MsgGetFeature         MessageType = 23 // XS_GET_FEATURE
	MsgSetFeature         MessageType = 24 // XS_SET_FEATURE
	MsgGetQuota           MessageType = 25 // XS_GET_QUOTA
	MsgSetQuota           MessageType = 26 // XS_SET_QUOTA

	// MsgInvalid is XS_INVALID: guaranteed never to become a valid type.
	MsgInvalid MessageType = 0xffff
)

// messageNames holds the names by value. xenstored prints the same names in its
// trace.
var messageNames = [...]string{
	MsgControl:            "CONTROL",
	MsgDirectory:          "DIRECTORY",
	MsgRead:               "READ",
	MsgGetPerms:           "GET_PERMS",
	MsgWatch:              "WATCH",
	MsgUnwatch:            "UNWATCH",
	MsgTransactionStart:   "TRANSACTION_START",
	MsgTransactionEnd:     "TRANSACTION_END",
	MsgIntroduce:          "INTRODUCE",
	MsgRelease:            "RELEASE",
	MsgGetDomainPath:      "GET_DOMAIN_PATH",
	MsgWrite:              "WRITE",
	MsgMkdir:              "MKDIR",
	MsgRemove:             "RM",
	MsgSetPerms:           "SET_PERMS",
	MsgWatchEvent:         "WATCH_EVENT",
	MsgError:              "ERROR",
	MsgIsDomainIntroduced: "IS_DOMAIN_INTRODUCED",
	MsgResume:             "RESUME",
	MsgSetTarget:          "SET_TARGET",
	MsgRestrict:           "RESTRICT",
	MsgResetWatches:       "RESET_WATCHES",
	MsgDirectoryPart:      "DIRECTORY_PART",
	MsgGetFeature:         "GET_FEATURE",
	MsgSetFeature:         "SET_FEATURE",
	MsgGetQuota:           "GET_QUOTA",
	MsgSetQuota:           "SET_QUOTA",
}

// String returns the name xs_wire.h gives the type, without the XS_ prefix.
func (t MessageType) String() string {
	if uint64(t) < uint64(len(messageNames)) {
		return messageNames[t]
	}
	return fmt.Sprintf("unknown(%d)", uint32(t))
}

// Limits of the wire, in bytes.
const (
	// HeaderSize is sizeof(struct xsd_sockmsg).
	HeaderSize = 16

	// MaxPayload is XENSTORE_PAYLOAD_MAX, the longest payload in either
	// direction. xenstored and Client close the connection of a peer that announces
	// more.
	MaxPayload = 4096

	// MaxPayloadXenbus is the longest request payload /dev/xen/xenbus takes:
	// its buffer of XENSTORE_PAYLOAD_MAX bytes holds the header as well
	// (xenbus_dev_frontend.c, struct xenbus_file_priv). Replies read from the
	// device may still be MaxPayload long.
	MaxPayloadXenbus = MaxPayload - HeaderSize

	// MaxAbsPath and MaxRelPath are XENSTORE_ABS_PATH_MAX and
	// XENSTORE_REL_PATH_MAX, the longest absolute and relative path.
	MaxAbsPath = 3072
	MaxRelPath = 2048
)

// Header is struct xsd_sockmsg: four native-endian 32-bit words in front of
// every message in either direction.
type Header struct {
	Type  MessageType
	ReqID uint32 // chosen by the client, echoed in the reply
	TxID  uint32 // transaction, 0 for none
	Len   uint32 // bytes of payload that follow
}

// AppendTo appends the 16 bytes of h to b.
func (h Header) AppendTo(b []byte) []byte {
	b = binary.NativeEndian.AppendUint32(b, uint32(h.Type))
	b = binary.NativeEndian.AppendUint32(b, h.ReqID)
	b = binary.NativeEndian.AppendUint32(b, h.TxID)
	return binary.NativeEndian.AppendUint32(b, h.Len)
}

// DecodeHeader reads the header at the start of b. It fails with
// io.ErrShortBuffer when b holds less than HeaderSize bytes, and with
// ErrProtocol when the header announces more than MaxPayload.
//
// The type is not checked: a server answers an unknown type with ENOSYS.
func DecodeHeader(b []byte) (Header, error) {
	if len(b) < HeaderSize {
		return Header{}, io.ErrShortBuffer
	}
	h := Header{
		Type:  MessageType(binary.NativeEndian.Uint32(b[0:])),
		ReqID: binary.NativeEndian.Uint32(b[4:]),
		TxID:  binary.NativeEndian.Uint32(b[8:]),
		Len:   binary.NativeEndian.Uint32(b[12:]),
	}
	if h.Len > MaxPayload {
		return h, fmt.Errorf("%w: %v announces %d bytes of payload, at most %d are allowed",
			ErrProtocol, h.Type, h.Len, MaxPayload)
	}
	return h, nil
}

// AppendMessage appends a whole message to b. It sets h.Len from the payload. The
// caller has checked the payload's length.
func AppendMessage(b []byte, h Header, payload []byte) []byte {
	h.Len = uint32(len(payload))
	return append(h.AppendTo(b), payload...)
}

// MessageReader cuts a byte stream into messages. Reads of the stream may
// return parts of a message or several messages at once. Its memory is one
// message of the greatest size.
type MessageReader struct {
	buf  *bufio.Reader
	last int // length of the message handed out, dropped by the next call
}

// NewMessageReader returns a MessageReader of r.
func NewMessageReader(r io.Reader) *MessageReader {
	return &MessageReader{buf: bufio.NewReaderSize(r, HeaderSize+MaxPayload)}
}

// Next returns the next message. The payload is valid until the next call.
//
// The error is io.EOF when the stream ends between two messages,
// io.ErrUnexpectedEOF when it ends inside one, ErrProtocol when a header
// announces more than MaxPayload, else the error of the underlying reader. No
// message follows an error.
func (r *MessageReader) Next() (Header, []byte, error) {
	if r.last > 0 {
		// Cannot fail: this much was peeked at.
		_, _ = r.buf.Discard(r.last)
		r.last = 0
	}
	b, err := r.buf.Peek(HeaderSize)
	if err != nil {
		return Header{}, nil, inMessage(err, len(b) > 0)
	}
	h, err := DecodeHeader(b)
	if err != nil {
		return h, nil, err
	}
	b, err = r.buf.Peek(HeaderSize + int(h.Len))
	if err != nil {
		return h, nil, inMessage(err, true)
	}
	r.last = len(b)
	return h, b[HeaderSize:], nil
}

// inMessage returns err, or io.ErrUnexpectedEOF for an end of the stream inside a
// message.
func inMessage(err error, inside bool) error {
	if err == io.EOF && inside {
		return io.ErrUnexpectedEOF
	}
	return err
}

// AppendStrings appends each string with a NUL after it, the form of most
// payloads. The strings must not hold a NUL themselves.
func AppendStrings(b []byte, ss ...string) []byte {
	for _, s := range ss {
		b = append(append(b, s...), 0)
	}
	return b
}

// SplitStrings splits a payload that AppendStrings has made. It returns false if the
// last string is not terminated. An empty payload is an empty list.
func SplitStrings(b []byte) ([]string, bool) {
	if len(b) == 0 {
		return nil, true
	}
	if b[len(b)-1] != 0 {
		return nil, false
	}
	ss := make([]string, 0, bytes.Count(b, []byte{0}))
	for len(b) > 0 {
		s, rest, _ := bytes.Cut(b, []byte{0})
		ss, b = append(ss, string(s)), rest
	}
	return ss, true
}

// CutString returns the NUL-terminated string at the start of b and the bytes behind
// it: the form of WRITE, whose value is not terminated and may have any bytes. It
// returns false if there is no NUL.
func CutString(b []byte) (s string, rest []byte, ok bool) {
	head, rest, ok := bytes.Cut(b, []byte{0})
	if !ok {
		return "", nil, false
	}
	return string(head), rest, true
}
