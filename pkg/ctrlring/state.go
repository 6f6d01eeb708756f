// SPDX-License-Identifier: Apache-2.0

package ctrlring

import (
	"encoding/binary"
	"fmt"
	"slices"
)

// StateSize is the largest number of bytes of an encoded State.
const StateSize = stateHeader + streamReply + streamHeader + streamPayload

// State holds the part of a control ring's state that a successor of a killed daemon
// cannot read off the ring: the protocol, the message that was taken in part, and the
// answer to a message that was carried out.
type State struct {
	Protocol Protocol

	recorded bool
	index    uint32 // slot: of the message; stream: req_cons
	rsp      uint32 // stream: rsp_prod where reply begins
	skip     uint32 // stream: bytes still to be dropped
	message  []byte // stream: the bytes taken of a message, header included
	reply    []byte // the response, in slot or stream form; empty: none
}

const (
	stateMagic  = 0x3172636e // "ncr1"
	stateHeader = 24

	slotReply = 12 // bytes of a response in a State
)

// MarshalBinary encodes a State in at most [StateSize] bytes.
func (s State) MarshalBinary() ([]byte, error) {
	b := make([]byte, 0, stateHeader+len(s.reply)+len(s.message))
	b = binary.LittleEndian.AppendUint32(b, stateMagic)
	b = append(b, byte(s.Protocol), streamHeader, 0, byte(len(s.reply)))
	if s.recorded {
		b[6] = 1
	}
	b = binary.LittleEndian.AppendUint32(b, s.index)
	b = binary.LittleEndian.AppendUint32(b, s.rsp)
	b = binary.LittleEndian.AppendUint32(b, s.skip)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(s.message)))
	b = append(b, s.reply...)
	return append(b, s.message...), nil
}

// UnmarshalBinary decodes a State that MarshalBinary has encoded.
func (s *State) UnmarshalBinary(b []byte) error {
	bad := func(what string) error {
		return fmt.Errorf("ctrlring: %w: %s", ErrState, what)
	}
	if len(b) < stateHeader || binary.LittleEndian.Uint32(b) != stateMagic {
		return bad("no record")
	}
	reply, message := int(b[7]), uint64(binary.LittleEndian.Uint32(b[20:]))
	if len(b) > StateSize || uint64(len(b)) != stateHeader+uint64(reply)+message {
		return bad("length")
	}
	if b[5] != streamHeader && b[5] != 0 {
		return bad("header size")
	}
	if b[6] > 1 {
		return bad("flags")
	}
	*s = State{
		Protocol: Protocol(b[4]),
		recorded: b[6] == 1,
		index:    binary.LittleEndian.Uint32(b[8:]),
		rsp:      binary.LittleEndian.Uint32(b[12:]),
		skip:     binary.LittleEndian.Uint32(b[16:]),
		reply:    slices.Clone(b[stateHeader:][:reply]),
		message:  slices.Clone(b[stateHeader+reply:]),
	}
	return nil
}
