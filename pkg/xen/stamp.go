// SPDX-License-Identifier: Apache-2.0

package xen

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
type Stamp [StampWords]uint32

// StampWords is the size of a [Stamp] in 32-bit words.
const StampWords = 4

// StampWord is the number of the first word of the stamp in a ring's header. It is in the
// bytes that Xen calls __pad since 2007, and Linux pad. The bytes of pvt before it had
// other uses.
const StampWord = 8

// NewStamp makes a stamp that no ring has. It is never zero.
func NewStamp() (s Stamp) {
	var b [4 * StampWords]byte
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
var errStamp = errors.New("a stamp is 32 hexadecimal digits")

// MarshalText writes a stamp as hexadecimal digits.
func (s Stamp) MarshalText() ([]byte, error) {
	b := make([]byte, 0, 4*StampWords)
	for _, w := range s {
		b = binary.BigEndian.AppendUint32(b, w)
	}
	return hex.AppendEncode(nil, b), nil
}

// UnmarshalText parses a text that MarshalText has made.
func (s *Stamp) UnmarshalText(text []byte) error {
	var b [4 * StampWords]byte
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
