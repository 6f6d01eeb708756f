// SPDX-License-Identifier: Apache-2.0

package ctrlring

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/netbackd/netbackd/pkg/netif"
)

// The page of a byte-stream ring: four free-running counters and two buffers.
//
//	offset    0  req_cons  written by the backend
//	offset    4  req_prod  written by the frontend
//	offset    8  rsp_cons  written by the frontend
//	offset   12  rsp_prod  written by the backend
//	offset   16  req[1024]
//	offset 1040  rsp[1024]
const (
	wReqCons = 0
	wReqProd = 1
	wRspCons = 2
	wRspProd = 3

	streamRing = 1024 // bytes of a buffer, NETIF_CTRL_RING_SIZE
	reqBuffer  = 16
	rspBuffer  = reqBuffer + streamRing
	streamSize = rspBuffer + streamRing
)

// StreamType is the type of a message on a byte-stream ring
// (NETIF_CTRL_MSG_*).
type StreamType uint32

// Types of messages. Only the backend sends StreamAck.
const (
	StreamAck        StreamType = 1
	StreamGetFlags   StreamType = 2
	StreamSetFlags   StreamType = 3
	StreamSetKey     StreamType = 4
	StreamSetMapping StreamType = 5
)

func (t StreamType) String() string {
	switch t {
	case StreamAck:
		return "ack"
	case StreamGetFlags:
		return "get-toeplitz-flags"
	case StreamSetFlags:
		return "set-toeplitz-flags"
	case StreamSetKey:
		return "set-toeplitz-key"
	case StreamSetMapping:
		return "set-toeplitz-mapping"
	}
	return fmt.Sprintf("unknown(%d)", uint32(t))
}

// Sizes of payloads, in bytes.
const (
	streamValue   = 8 // of a status, of hash types, of a table's entry
	streamKey     = 40
	streamEntries = 128 // of a table, at most
	streamPayload = streamEntries * streamValue
	streamReply   = streamHeader + 2*streamValue // header, status, data
)

// streamHeader is the size of a message's header in bytes: type and size, 4 bytes
// each, as the proposal draws them. The struct beside the drawing has 2 bytes each.
const streamHeader = 8

// readHeader reads a header.
func readHeader(b []byte) (typ StreamType, size uint32) {
	return StreamType(binary.LittleEndian.Uint32(b)), binary.LittleEndian.Uint32(b[4:])
}

// appendHeader appends a header to b.
func appendHeader(b []byte, typ StreamType, size int) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(typ))
	return binary.LittleEndian.AppendUint32(b, uint32(size))
}

// StreamBack is the backend's end of a byte-stream ring.
type StreamBack struct {
	page    page
	reqCons uint32 // next byte to take
	reqSeen uint32 // req_cons in the page
	rspProd uint32 // rsp_prod in the page

	stage   stage
	message [streamHeader + streamPayload]byte
	have    int    // bytes of message
	skip    uint32 // bytes of its payload still to be read and dropped

	reply   [streamReply]byte
	replies int  // bytes of reply; 0: none
	sent    int  // of them
	flushed bool // the reply may be sent

	notify bool
	err    error
}

func attachStream(mem []byte) (*StreamBack, error) {
	p, err := newPage(mem)
	if err != nil {
		return nil, err
	}
	b := &StreamBack{page: p}
	if p.load(wReqProd) > streamRing {
		return nil, b.fail(netif.ErrOverflow)
	}
	return b, nil
}

func restoreStream(mem []byte, s State) (*StreamBack, error) {
	p, err := newPage(mem)
	if err != nil {
		return nil, err
	}
	b := &StreamBack{page: p, notify: true}
	b.rspProd = p.load(wRspProd)
	if !s.recorded {
		b.reqCons = p.load(wReqCons)
		b.reqSeen = b.reqCons
		return b, nil
	}
	if len(s.message) > len(b.message) || len(s.reply) > len(b.reply) || len(s.message) > 0 && len(s.reply) > 0 {
		return nil, b.fail(ErrState)
	}
	b.reqCons, b.skip = s.index, s.skip
	b.have = copy(b.message[:], s.message)
	b.replies = copy(b.reply[:], s.reply)
	b.flushed = true
	if !b.plausible() {
		return nil, b.fail(ErrState)
	}
	// rsp_prod is ours, but the frontend could have written it.
	if sent := b.rspProd - s.rsp; sent <= uint32(b.replies) {
		b.sent = int(sent)
	} else {
		return nil, b.fail(netif.ErrRspOverflow)
	}
	if b.sent == b.replies {
		b.replies, b.sent = 0, 0
	}
	// The predecessor may have been killed before it published the recorded state.
	b.reqSeen = b.reqCons
	p.publish(wReqCons, b.reqCons)
	return b, nil
}

// plausible reports whether the recorded bytes can be the start of a message.
func (b *StreamBack) plausible() bool {
	if b.have < streamHeader {
		return b.skip == 0
	}
	_, size := readHeader(b.message[:])
	if size > streamPayload {
		return b.have == streamHeader && b.skip <= size
	}
	return b.skip == 0 && b.have-streamHeader <= int(size)
}

// fail ends the use of the ring.
func (b *StreamBack) fail(err error) error {
	b.err = &Error{Protocol: Stream, Err: err}
	return b.err
}

// Protocol returns Stream.
func (b *StreamBack) Protocol() Protocol { return Stream }

// Next implements [Back].
func (b *StreamBack) Next() (Request, bool, error) {
	if b.err != nil || b.stage != idle {
		return Request{}, false, b.err
	}
	if b.replies > 0 && b.flushed {
		b.send()
	}
	if b.err != nil || b.replies > 0 {
		return Request{}, false, b.err
	}
	whole, err := b.collect()
	if err != nil || !whole {
		return Request{}, false, err
	}
	b.stage = open
	return b.request(), true, nil
}

// collect takes the available bytes of the current message and reports whether it is
// complete. Bytes behind the message stay on the ring.
func (b *StreamBack) collect() (whole bool, err error) {
	out := b.page.load(wReqProd) - b.reqSeen
	taken := b.reqCons - b.reqSeen
	if out > streamRing || out < taken {
		return false, b.fail(netif.ErrOverflow)
	}
	left := int(out - taken)
	if b.have < streamHeader {
		if left -= b.take(min(left, streamHeader-b.have)); b.have < streamHeader {
			return false, nil
		}
		if _, size := readHeader(b.message[:]); size > streamPayload {
			b.skip = size
		}
	}
	if _, size := readHeader(b.message[:]); size <= streamPayload {
		end := streamHeader + int(size)
		b.take(min(left, end-b.have))
		return b.have == end, nil
	}
	n := min(uint32(left), b.skip)
	b.skip -= n
	b.reqCons += n
	b.notify = b.notify || n > 0
	return b.skip == 0, nil
}

// take copies n bytes off the ring to the end of message.
func (b *StreamBack) take(n int) int {
	to := b.message[b.have : b.have+n]
	from := b.reqCons % streamRing
	k := copy(to, b.page.mem[reqBuffer+from:reqBuffer+streamRing])
	copy(to[k:], b.page.mem[reqBuffer:])
	b.have += n
	b.reqCons += uint32(n)
	// If the message is complete now, its response sends an event as well.
	b.notify = b.notify || n > 0
	return n
}

// ctrl returns the type of the message on a slot ring, CtrlInvalid if a frontend does
// not send it.
func (t StreamType) ctrl() netif.CtrlType {
	switch t {
	case StreamGetFlags:
		return netif.CtrlGetHashFlags
	case StreamSetFlags:
		return netif.CtrlSetHashFlags
	case StreamSetKey:
		return netif.CtrlSetHashKey
	case StreamSetMapping:
		return netif.CtrlSetHashMapping
	}
	return netif.CtrlInvalid
}

// request makes a Request of the message, which is complete.
func (b *StreamBack) request() Request {
	typ, size := readHeader(b.message[:])
	r := Request{Protocol: Stream, Type: typ.ctrl()}
	switch {
	case r.Type == netif.CtrlInvalid:
		r.Refused = netif.CtrlNotSupported
	case size > streamPayload:
		r.Refused = netif.CtrlBufferOverflow
	case !r.parse(b.message[streamHeader:b.have]):
		r = Request{Protocol: Stream, Type: r.Type, Refused: netif.CtrlInvalidParameter}
	}
	return r
}

// parse reads a payload and reports whether it has the form of its type.
func (r *Request) parse(payload []byte) bool {
	switch r.Type {
	case netif.CtrlGetHashFlags:
		return len(payload) == 0
	case netif.CtrlSetHashFlags:
		switch len(payload) {
		case 4:
			r.Data[0] = binary.LittleEndian.Uint32(payload)
			return true
		case streamValue:
			v := binary.LittleEndian.Uint64(payload)
			r.Data[0] = uint32(v)
			return v>>32 == 0
		}
		return false
	case netif.CtrlSetHashKey:
		if len(payload) != streamKey {
			return false
		}
		r.Key = slices.Clone(payload)
		return true
	case netif.CtrlSetHashMapping:
		n := len(payload) / streamValue
		if len(payload)%streamValue != 0 || n == 0 || n&(n-1) != 0 {
			return false
		}
		r.Queues = make([]uint32, n)
		for i := range r.Queues {
			v := binary.LittleEndian.Uint64(payload[i*streamValue:])
			if v>>32 != 0 {
				return false
			}
			r.Queues[i] = uint32(v)
		}
		return true
	}
	return false
}

// Reply implements [Back].
func (b *StreamBack) Reply(r Response) {
	if b.stage != open {
		return
	}
	typ, _ := readHeader(b.message[:])
	size := streamValue
	if typ == StreamGetFlags && r.Status == netif.CtrlSuccess {
		size += streamValue
	}
	to := appendHeader(b.reply[:0], StreamAck, size)
	to = binary.LittleEndian.AppendUint64(to, uint64(r.Status))
	if size > streamValue {
		to = binary.LittleEndian.AppendUint64(to, uint64(r.Data))
	}
	b.replies, b.sent, b.flushed = len(to), 0, false
	b.stage, b.have = idle, 0 // skip is 0 when a message is whole
}

// Unflushed implements [Back].
func (b *StreamBack) Unflushed() (State, bool) {
	if b.err != nil || !b.unflushed() {
		return State{}, false
	}
	return b.State(), true
}

// unflushed reports whether the frontend has not yet seen a message that was taken or
// answered.
func (b *StreamBack) unflushed() bool {
	return b.replies > 0 && !b.flushed || b.reqCons != b.reqSeen
}

// Flush implements [Back].
func (b *StreamBack) Flush() (notify bool, err error) {
	if b.err != nil {
		return false, b.err
	}
	if b.unflushed() {
		b.page.publish(wReqCons, b.reqCons)
		b.reqSeen = b.reqCons
		b.flushed = true
	}
	if b.replies > 0 {
		b.send()
	}
	if b.err != nil {
		return false, b.err
	}
	notify = b.notify
	b.notify = false
	return notify, nil
}

// send writes as much of the reply as fits.
func (b *StreamBack) send() {
	used := b.rspProd - b.page.load(wRspCons)
	if used > streamRing {
		_ = b.fail(ErrRspCons)
		return
	}
	n := min(streamRing-int(used), b.replies-b.sent)
	if n == 0 {
		return
	}
	from := b.reply[b.sent : b.sent+n]
	k := copy(b.page.mem[rspBuffer+b.rspProd%streamRing:rspBuffer+streamRing], from)
	copy(b.page.mem[rspBuffer:], from[k:])
	b.rspProd += uint32(n)
	b.page.publish(wRspProd, b.rspProd)
	b.notify = true
	if b.sent += n; b.sent == b.replies {
		b.replies, b.sent = 0, 0
	}
}

// State implements [Back].
func (b *StreamBack) State() State {
	s := State{
		Protocol: Stream, recorded: true,
		index: b.reqCons, rsp: b.rspProd - uint32(b.sent), skip: b.skip,
		reply: slices.Clone(b.reply[:b.replies]),
	}
	if b.replies == 0 {
		s.message = slices.Clone(b.message[:b.have])
	}
	return s
}
