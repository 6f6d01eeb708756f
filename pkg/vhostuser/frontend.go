// SPDX-License-Identifier: Apache-2.0

package vhostuser

import (
	"errors"
	"fmt"
	"net"
)

// ErrRefused: the back end acknowledged a message with an error.
var ErrRefused = errors.New("the back end refuses")

// Frontend is the other side of a [Backend], for tests and for programs that play a guest.
// It belongs to one goroutine.
type Frontend struct {
	conn     *conn
	protocol uint64 // accepted
}

// NewFrontend makes a session on a connection, which is its own from then on.
func NewFrontend(c *net.UnixConn) *Frontend { return &Frontend{conn: newConn(c, 0)} }

// Close closes the connection.
func (f *Frontend) Close() error { return f.conn.c.Close() }

// Do sends a request with its Files, which stay the caller's, and returns the answer, whose
// Files are the caller's too. It asks for an acknowledgement of each request that has no
// answer, if that was agreed; one that is not 0 is ErrRefused.
func (f *Frontend) Do(m Message) (Message, error) {
	answer := layouts[m.Request].reply != bodyNone || m.Request == SetLogBase && f.protocol&ProtocolLogShmFD != 0
	ack := !answer && f.protocol&ProtocolReplyAck != 0
	m.Flags = 0
	if ack {
		m.Flags = flagNeedReply
	}
	if err := f.conn.send(&m); err != nil {
		return Message{}, err
	}
	if m.Request == SetProtocolFeatures {
		f.protocol = m.U64
	}
	if !answer && !ack {
		return Message{}, nil
	}
	h, payload, files, err := f.conn.receive()
	if err != nil {
		return Message{}, err
	}
	reply, err := DecodeReply(h, payload)
	if err == nil && (h.Request != m.Request || !h.Reply()) {
		err = &MessageError{h.Request, errors.New("another answer was expected")}
	}
	if err == nil && (ack || m.Request == SetLogBase) && reply.U64 != 0 {
		err = &MessageError{m.Request, ErrRefused}
	}
	if err != nil {
		closeAll(files)
		return Message{}, err
	}
	reply.Files = files
	return reply, nil
}

// U64 sends a request whose payload is a number.
func (f *Frontend) U64(r Request, v uint64) error {
	_, err := f.Do(Message{Header: Header{Request: r}, U64: v})
	return err
}

// Get asks for a number.
func (f *Frontend) Get(r Request) (uint64, error) {
	m, err := f.Do(Message{Header: Header{Request: r}})
	return m.U64, err
}

// Negotiate accepts those of the features and protocol features that the back end offers,
// and returns them.
func (f *Frontend) Negotiate(features, protocol uint64) (uint64, uint64, error) {
	offered, err := f.Get(GetFeatures)
	if err != nil {
		return 0, 0, err
	}
	if offered&featureProtocol != 0 {
		have, err := f.Get(GetProtocolFeatures)
		if err != nil {
			return 0, 0, err
		}
		protocol &= have
		if err := f.U64(SetProtocolFeatures, protocol); err != nil {
			return 0, 0, err
		}
	} else {
		protocol = 0
	}
	if err := f.U64(SetOwner, 0); err != nil {
		return 0, 0, err
	}
	features &= offered
	return features, protocol, f.U64(SetFeatures, features|offered&featureProtocol)
}

// SetMemory sends a table of regions with a descriptor for each.
func (f *Frontend) SetMemory(regions []Region, files []int) error {
	_, err := f.Do(Message{Header: Header{Request: SetMemTable}, Regions: regions, Files: files})
	return err
}

// StartRing sends all that a ring needs, in the order of QEMU, and enables it. A descriptor
// that is -1 is not there.
func (f *Frontend) StartRing(addr VringAddr, size int, base uint32, kick, call int) error {
	i := addr.Index
	for _, m := range []Message{
		{Header: Header{Request: SetVringNum}, State: VringState{i, uint32(size)}},
		{Header: Header{Request: SetVringBase}, State: VringState{i, base}},
		{Header: Header{Request: SetVringAddr}, Addr: addr},
		eventMessage(SetVringKick, i, kick),
		eventMessage(SetVringCall, i, call),
		{Header: Header{Request: SetVringEnable}, State: VringState{i, 1}},
	} {
		if _, err := f.Do(m); err != nil {
			return fmt.Errorf("ring %d: %w", i, err)
		}
	}
	return nil
}

func eventMessage(r Request, index uint32, fd int) Message {
	m := Message{Header: Header{Request: r}, U64: uint64(index) | vringNoFD}
	if fd >= 0 {
		m.U64, m.Files = uint64(index), []int{fd}
	}
	return m
}

// StopRing stops a ring and returns its base.
func (f *Frontend) StopRing(index uint32) (base uint32, err error) {
	m, err := f.Do(Message{Header: Header{Request: GetVringBase}, State: VringState{Index: index}})
	return m.State.Num, err
}
