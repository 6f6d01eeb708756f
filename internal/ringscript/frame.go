// SPDX-License-Identifier: Apache-2.0

package ringscript

import (
	"crypto/sha256"
	"fmt"
	"strconv"

	"github.com/netbackd/netbackd/internal/packettest"
)

// Frames come from an address that nobody has, and are of an EtherType for
// experiments (IEEE 802): no kernel answers them.
const (
	typeTest = 0x88b5
	minFrame = 1
	minTCP   = 54 // Ethernet, IPv4 and TCP headers
	ethLen   = 14
)

// frameSpec says what a frame is like. The same spec is the same octets, in the
// guest and on the host.
type frameSpec struct {
	name   string
	length int
	dst    [6]byte // zero: an address that nobody has
	tcp    bool    // TCP over IPv4, its checksum left blank
	mss    uint16  // to be segmented, with tcp
}

// frame is a frame.
type frame struct {
	frameSpec
	octets []byte
}

// make makes the frame. Its payload depends on the name, so that frames can be
// told apart.
func (s frameSpec) make() *frame {
	f := packettest.Frame{EtherType: typeTest, Dst: s.dst}
	head := ethLen
	if s.tcp {
		f = packettest.Frame{IPv4: &packettest.IPv4{}, TCP: &packettest.TCP{Flags: packettest.ACK}, Partial: true}
		head = minTCP
	}
	f.Payload = packettest.Pattern(max(s.length-head, 0))
	for i := range f.Payload {
		if i < len(s.name) {
			f.Payload[i] = s.name[i]
		}
	}
	return &frame{s, f.Bytes()[:s.length]}
}

// words are the spec as part of a question.
func (s frameSpec) words() string {
	return fmt.Sprintf("%s %d %x %t %d", strconv.Quote(s.name), s.length, s.dst, s.tcp, s.mss)
}

// readSpec is the inverse of words.
func readSpec(w []string) (s frameSpec, err error) {
	if len(w) != 5 {
		return s, fmt.Errorf("%q is no frame", w)
	}
	s.name = w[0]
	var dst []byte
	for _, f := range []func() error{
		func() (err error) { s.length, err = strconv.Atoi(w[1]); return err },
		func() (err error) { _, err = fmt.Sscanf(w[2], "%x", &dst); return err },
		func() (err error) { s.tcp, err = strconv.ParseBool(w[3]); return err },
		func() error {
			n, err := strconv.ParseUint(w[4], 10, 16)
			s.mss = uint16(n)
			return err
		},
	} {
		if err := f(); err != nil {
			return s, fmt.Errorf("frame %q: %w", w, err)
		}
	}
	if len(dst) != len(s.dst) || s.length < minFrame || s.length > 0xffff || s.tcp && s.length < minTCP {
		return s, fmt.Errorf("%q is no frame", w)
	}
	copy(s.dst[:], dst)
	return s, nil
}

// mark stands for octets: their number and the begin of their hash.
func mark(b []byte) string {
	sum := sha256.Sum256(b)
	return fmt.Sprintf("%d/%x", len(b), sum[:8])
}
