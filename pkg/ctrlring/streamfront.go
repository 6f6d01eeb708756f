// SPDX-License-Identifier: Apache-2.0

package ctrlring

import (
	"encoding/binary"
	"fmt"

	"github.com/netbackd/netbackd/pkg/netif"
)

// StreamFront is the frontend's end of a byte-stream ring.
type StreamFront struct {
	// Chunk bounds the bytes written per Turn, for tests of messages in pieces. 0: no
	// bound.
	Chunk int

	page    page
	reqProd uint32
	rspCons uint32
	out     []byte     // bytes still to be written
	typ     StreamType // of the message without response; 0: none
	in      [streamReply]byte
	have    int // bytes of in
	rsp     Response
	done    bool
}

func initStream(mem []byte) (*StreamFront, error) {
	p, err := newPage(mem)
	if err != nil {
		return nil, err
	}
	clear(mem)
	return &StreamFront{page: p}, nil
}

// Protocol returns Stream.
func (f *StreamFront) Protocol() Protocol { return Stream }

// Send implements [Front]. The protocol has messages for hash types, key and table.
func (f *StreamFront) Send(r Request) error {
	var payload []byte
	var typ StreamType
	switch r.Type {
	case netif.CtrlGetHashFlags:
		typ = StreamGetFlags
	case netif.CtrlSetHashFlags:
		typ = StreamSetFlags
		payload = binary.LittleEndian.AppendUint64(nil, uint64(r.Data[0]))
	case netif.CtrlSetHashKey:
		typ = StreamSetKey
		payload = r.Key
	case netif.CtrlSetHashMapping:
		typ = StreamSetMapping
		for _, q := range r.Queues {
			payload = binary.LittleEndian.AppendUint64(payload, uint64(q))
		}
	default:
		return fmt.Errorf("ctrlring: a byte-stream ring has no message for %v", r.Type)
	}
	return f.SendMessage(typ, payload)
}

// SendMessage begins to send a message of any type and payload.
func (f *StreamFront) SendMessage(typ StreamType, payload []byte) error {
	if f.typ != 0 || len(f.out) > 0 {
		return errBusy
	}
	f.typ, f.have, f.done = typ, 0, false
	f.out = append(appendHeader(nil, typ, len(payload)), payload...)
	return nil
}

// SendBytes begins to send bytes, which need not be a complete message, behind the
// bytes that are still to be sent, and makes Turn wait for a response. Like
// [StreamFront.SetReqProd] it is for tests that play a frontend which breaks off or
// does not wait.
func (f *StreamFront) SendBytes(b []byte) {
	f.out = append(f.out, b...)
	f.typ, f.have, f.done = StreamAck, 0, false
}

// ReqProd returns the number of bytes written so far.
func (f *StreamFront) ReqProd() uint32 { return f.reqProd }

// SetRspCons writes rsp_cons without checks.
func (f *StreamFront) SetRspCons(v uint32) {
	f.rspCons = v
	f.page.publish(wRspCons, v)
}

// RspCons returns the number of bytes read so far.
func (f *StreamFront) RspCons() uint32 { return f.rspCons }

// SetReqProd writes req_prod without checks, for tests that play a frontend which breaks
// the protocol.
func (f *StreamFront) SetReqProd(v uint32) {
	f.reqProd = v
	f.page.publish(wReqProd, v)
}

// Turn implements [Front].
func (f *StreamFront) Turn() (notify bool, err error) {
	wrote, err := f.write()
	if err != nil {
		return false, &Error{Protocol: Stream, Err: err}
	}
	incomplete, err := f.read()
	if err != nil {
		return wrote, &Error{Protocol: Stream, Err: err}
	}
	return wrote || incomplete, nil
}

// write writes as much as fits, and reports whether it has written something.
func (f *StreamFront) write() (bool, error) {
	used := f.reqProd - f.page.load(wReqCons)
	if used > streamRing {
		return false, ErrReqCons
	}
	n := min(streamRing-int(used), len(f.out))
	if f.Chunk > 0 {
		n = min(n, f.Chunk)
	}
	if n == 0 {
		return false, nil
	}
	from := f.out[:n]
	k := copy(f.page.mem[reqBuffer+f.reqProd%streamRing:reqBuffer+streamRing], from)
	copy(f.page.mem[reqBuffer:], from[k:])
	f.out = f.out[n:]
	f.reqProd += uint32(n)
	f.page.publish(wReqProd, f.reqProd)
	return true, nil
}

// read takes the available bytes of the response, and reports whether it took a part of
// an incomplete one.
func (f *StreamFront) read() (incomplete bool, err error) {
	out := f.page.load(wRspProd) - f.rspCons
	if out > streamRing {
		return false, netif.ErrRspOverflow
	}
	if f.typ == 0 || out == 0 {
		return false, nil
	}
	left, h := int(out), streamHeader
	left -= f.take(min(left, max(h-f.have, 0)))
	if f.have >= h {
		typ, size := readHeader(f.in[:])
		if typ != StreamAck || size != streamValue && size != 2*streamValue {
			return false, fmt.Errorf("%w: %v of %d bytes to %v", ErrResponse, typ, size, f.typ)
		}
		f.take(min(left, h+int(size)-f.have))
		f.done = f.have == h+int(size)
	}
	f.page.publish(wRspCons, f.rspCons)
	if !f.done {
		return true, nil
	}
	f.rsp = Response{Status: netif.CtrlStatus(binary.LittleEndian.Uint32(f.in[h:]))}
	if f.have > h+streamValue {
		f.rsp.Data = binary.LittleEndian.Uint32(f.in[h+streamValue:])
	}
	f.typ = 0
	return false, nil
}

// take copies n bytes off the ring to the end of in.
func (f *StreamFront) take(n int) int {
	to := f.in[f.have : f.have+n]
	k := copy(to, f.page.mem[rspBuffer+f.rspCons%streamRing:rspBuffer+streamRing])
	copy(to[k:], f.page.mem[rspBuffer:])
	f.have += n
	f.rspCons += uint32(n)
	return n
}

// Response implements [Front].
func (f *StreamFront) Response() (Response, bool) {
	done := f.done
	f.done = false
	return f.rsp, done
}
