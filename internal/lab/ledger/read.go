// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrForeign is returned for a frame that is not of a ledger, such as one of the host's kernel.
var ErrForeign = errors.New("ledger: not a frame of a ledger")

// Packet is a packet that arrived.
type Packet struct {
	Flow Flow
	Seq  uint64
}

// Read finds the packets in a frame and checks every byte of it. partial tells that the
// checksum of TCP or UDP is still to be completed. The result is appended to p.
func Read(p []Packet, frame []byte, partial bool) ([]Packet, error) {
	if len(frame) < ethLen+ipLen+udpLen || frame[0] != 2 || frame[1] != 0x6c || binary.BigEndian.Uint16(frame[12:]) != 0x0800 {
		return p, ErrForeign
	}
	ip := frame[ethLen:]
	h := ethLen + ipLen + udpLen
	if ip[9] == protoTCP {
		h = ethLen + ipLen + tcpLen
	}
	if n := int(binary.BigEndian.Uint16(ip[2:])); n != len(ip) || len(frame) < h+recordLen {
		return p, fmt.Errorf("ledger: a frame of %d bytes, the IP header says %d", len(frame), n)
	}
	if s := fold(sum(ip[:ipLen])); s != 0xffff {
		return p, fmt.Errorf("ledger: sum %#04x of the IP header", s)
	}
	if err := checkSum(ip, partial); err != nil {
		return p, err
	}
	first := binary.BigEndian.Uint32(ip[ipLen+4:]) // of TCP
	for rest := frame[h:]; len(rest) > 0; {
		k, n, seq, flow, err := readRecord(rest)
		if err != nil {
			return p, fmt.Errorf("at byte %d of %d: %w", len(frame)-len(rest), len(frame), err)
		}
		flow.ToGuest = frame[2] == 1
		if err := flow.checkRecord(k, seq, rest[:n]); err != nil {
			return p, err
		}
		if err := flow.checkHead(k, frame[:h]); err != nil {
			return p, err
		}
		if at := binary.BigEndian.Uint32(rest[16:]); k == Small && at != 0 || k != Small && at != first+uint32(len(frame)-h-len(rest)) {
			return p, fmt.Errorf("ledger: packet %d of %+v was at %d of the stream, and is at %d", seq, flow, at, first)
		}
		p = append(p, Packet{flow, seq})
		rest = rest[n:]
	}
	return p, nil
}

// readRecord reads the head of a record: kind, size with the head, number and flow.
func readRecord(b []byte) (k Kind, n int, seq uint64, f Flow, err error) {
	e := binary.BigEndian
	if len(b) < recordLen || e.Uint32(b) != magic {
		return 0, 0, 0, f, fmt.Errorf("ledger: no record: % x", b[:min(len(b), recordLen)])
	}
	f = Flow{Run: e.Uint32(b[4:]), Vif: e.Uint16(b[8:]), Number: e.Uint16(b[10:])}
	k, n, seq = Kind(b[13]), int(e.Uint16(b[14:])), e.Uint64(b[20:])
	if b[12] != 0 || k > Large || n < recordLen || n > len(b) {
		return 0, 0, 0, f, fmt.Errorf("ledger: a record of kind %d and %d bytes in %d", k, n, len(b))
	}
	return k, n, seq, f, nil
}

// checkRecord compares a record with what the flow's source made.
func (f Flow) checkRecord(k Kind, seq uint64, b []byte) error {
	if n := f.size(k, seq); n != len(b) {
		return fmt.Errorf("ledger: packet %d of %+v has %d bytes, it had %d", seq, f, len(b), n)
	}
	if want := f.content(seq, len(b)); !bytes.Equal(want, b[recordLen:]) {
		i := 0
		for want[i] == b[recordLen+i] {
			i++
		}
		return fmt.Errorf("ledger: packet %d of %+v: byte %d of %d is wrong", seq, f, recordLen+i, len(b))
	}
	return nil
}

// checkHead compares the headers with those of the flow, but for what differs between packets.
func (f Flow) checkHead(k Kind, got []byte) error {
	want := f.head(k)
	if len(want) != len(got) {
		return fmt.Errorf("ledger: %d bytes of headers for %+v", len(got), f)
	}
	clean := bytes.Clone(got)
	clear(clean[ethLen+2 : ethLen+6])   // length, id
	clear(clean[ethLen+10 : ethLen+12]) // checksum
	l4 := clean[ethLen+ipLen:]
	if k == Small {
		clear(l4[4:8]) // length, checksum
	} else {
		clear(l4[4:8])   // sequence
		clear(l4[16:18]) // checksum
	}
	if !bytes.Equal(clean, want) {
		return fmt.Errorf("ledger: headers of %+v are % x, were % x", f, clean, want)
	}
	return nil
}

// checkSum checks the checksum of TCP or UDP, and the length of UDP.
func checkSum(ip []byte, partial bool) error {
	l4 := ip[ipLen:]
	at := 6
	if ip[9] == protoTCP {
		at = 16
	} else if n := int(binary.BigEndian.Uint16(l4[4:])); n != len(l4) {
		return fmt.Errorf("ledger: the UDP header says %d bytes of %d", n, len(l4))
	}
	p := pseudo(ip, len(l4))
	if partial {
		if got, want := binary.BigEndian.Uint16(l4[at:]), fold(p); got != want {
			return fmt.Errorf("ledger: sum %#04x of the pseudo header, want %#04x", got, want)
		}
		return nil
	}
	if s := fold(p + sum(l4)); s != 0xffff {
		return fmt.Errorf("ledger: the sum of a packet is %#04x", s)
	}
	return nil
}
