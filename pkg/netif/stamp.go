// SPDX-License-Identifier: Apache-2.0

package netif

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
)

// Stamp identifies one connection. A backend writes it to the spare bytes of the
// header of each ring that it serves. A frontend that makes a ring anew clears it:
// SHARED_RING_INIT (ring.h) sets pad, or __pad, to 0, and frontends without that macro
// use a cleared page. So a ring that still has the stamp is the one that was served,
// even if its grefs, its channels and its domain have the same numbers as others
// before.
//
// The guest can write it. A guest that forges it harms only itself: its new rings are
// served as if they were the old ones.
type Stamp [stampWords]uint32

const stampWords = 4

// wStamp is the first word of the stamp. It is in the bytes that Xen calls __pad since
// 2007, and Linux pad. The bytes of pvt before it had other uses.
const wStamp = 8

const _ = uint(wRing - wStamp - stampWords) // it fits

// NewStamp makes a stamp that no ring has. It is never zero.
func NewStamp() (s Stamp) {
	var b [4 * stampWords]byte
	for s == (Stamp{}) {
		_, _ = rand.Read(b[:]) // never fails
		for i := range s {
			s[i] = binary.NativeEndian.Uint32(b[4*i:])
		}
	}
	return s
}

// IsZero reports whether there is no stamp, as in a ring that was just made.
func (s Stamp) IsZero() bool { return s == Stamp{} }

// errStamp is the error for a text that MarshalText has not made.
var errStamp = errors.New("netif: a stamp is 32 hexadecimal digits")

// MarshalText writes a stamp as hexadecimal digits.
func (s Stamp) MarshalText() ([]byte, error) {
	b := make([]byte, 0, 4*stampWords)
	for _, w := range s {
		b = binary.BigEndian.AppendUint32(b, w)
	}
	return hex.AppendEncode(nil, b), nil
}

// UnmarshalText parses a text that MarshalText has made.
func (s *Stamp) UnmarshalText(text []byte) error {
	var b [4 * stampWords]byte
	if len(text) != hex.EncodedLen(len(b)) {
		return errStamp
	}
	if _, err := hex.Decode(b[:], text); err != nil {
		return errStamp
	}
	for i := range s {
		s[i] = binary.BigEndian.Uint32(b[4*i:])
	}
	return nil
}

// Header holds the words of a ring's header that record its service so far.
type Header struct {
	RspProd Index // of the next response; 0 in a ring that was just made
	Stamp   Stamp
}

// ReadHeader reads the header of the ring in page, each word once.
func ReadHeader(page []byte) (h Header, err error) {
	p, err := newPage(page)
	if err != nil {
		return h, err
	}
	h.RspProd = Index(p.load(wRspProd))
	for i := range h.Stamp {
		h.Stamp[i] = p.load(wStamp + uint32(i))
	}
	return h, nil
}

// WriteStamp writes a stamp to the ring in page.
func WriteStamp(page []byte, s Stamp) error {
	p, err := newPage(page)
	if err != nil {
		return err
	}
	for i, w := range s {
		p.publish(wStamp+uint32(i), w)
	}
	return nil
}
