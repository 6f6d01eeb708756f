// SPDX-License-Identifier: Apache-2.0

package ctrlring

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/pkg/netif"
)

// rawStream is a frontend of a byte-stream ring that writes and reads bytes and
// does not care what they mean.
type rawStream struct {
	page    page
	prod    uint32
	cons    uint32
	pending []byte // to be written
	got     []byte // read
}

func newRawStream(t testing.TB, mem []byte) *rawStream {
	p, err := newPage(mem)
	if err != nil {
		t.Fatal(err)
	}
	return &rawStream{page: p, prod: p.load(wReqProd), cons: p.load(wRspCons)}
}

// write writes up to n pending bytes as far as there is room.
func (f *rawStream) write(n int) int {
	room := streamRing - int(f.prod-f.page.load(wReqCons))
	n = min(n, room, len(f.pending))
	for i := range n {
		f.page.mem[reqBuffer+(f.prod+uint32(i))%streamRing] = f.pending[i]
	}
	f.pending = f.pending[n:]
	f.prod += uint32(n)
	f.page.publish(wReqProd, f.prod)
	return n
}

// read reads up to n bytes.
func (f *rawStream) read(n int) int {
	n = min(n, int(f.page.load(wRspProd)-f.cons))
	for i := range n {
		f.got = append(f.got, f.page.mem[rspBuffer+(f.cons+uint32(i))%streamRing])
	}
	f.cons += uint32(n)
	f.page.publish(wRspCons, f.cons)
	return n
}

// streamRig is a byte-stream ring with a raw frontend.
func streamRig(t testing.TB) (*rig, *rawStream) {
	r := newRig(t, Stream)
	return r, newRawStream(t, r.mem)
}

func message(typ StreamType, payload ...byte) []byte {
	return append(words32(uint32(typ), uint32(len(payload))), payload...)
}

func ack(values ...uint64) []byte { return message(StreamAck, words64(values...)...) }

// exchange writes raw as the ring has room and returns all that comes back,
// with an event to the backend after each piece.
func exchange(r *rig, f *rawStream, raw []byte) []byte {
	r.t.Helper()
	f.pending, f.got = raw, nil
	for f.write(streamRing) > 0 {
		r.serve()
		f.read(streamRing)
	}
	return f.got
}

// TestStreamMessages is the table of the byte-stream ring's messages and of what
// its proposal leaves open, over a ring. Where a payload can be of several sizes
// the message after it shows that the stream is still in step.
func TestStreamMessages(t *testing.T) {
	def := hashState{Algorithm: netif.HashAlgorithmToeplitz, Table: []uint32{0}}
	with := func(f func(*hashState)) hashState {
		h := def.clone()
		f(&h)
		return h
	}
	table := func(n int) (payload []byte, want []uint32) {
		for i := range n {
			payload = append(payload, words64(uint64(i%queues))...)
			want = append(want, uint32(i%queues))
		}
		return payload, want
	}
	table1, want1 := table(1)
	table2, want2 := table(2)
	table128, want128 := table(128)
	table129, _ := table(129)
	table256, _ := table(256)
	table3, _ := table(3)
	tests := []struct {
		name string
		msg  []byte
		want []byte
		hash hashState
	}{
		{"get flags", message(StreamGetFlags), ack(0, 15), def},
		{"row 1: size is the second word of 4 bytes", append(words32(3, 8), words64(5)...), ack(0),
			with(func(h *hashState) { h.Types = 5 })},
		{"row 1: size of 65536", message(StreamSetKey, make([]byte, 1<<16)...), ack(3), def},
		{"row 1: type of more than 16 bits", message(1<<16|StreamGetFlags, 1, 2, 3), ack(1), def},
		{"row 2: the header is not counted", message(StreamSetKey, counting(40)...), ack(0),
			with(func(h *hashState) { h.Key = counting(40) })},
		{"row 5: ipv4 and tcp", message(StreamSetFlags, words64(1|2)...), ack(0), with(func(h *hashState) { h.Types = 3 })},
		{"row 5: ipv6 is bit 2", message(StreamSetFlags, words64(4)...), ack(0), with(func(h *hashState) { h.Types = 4 })},
		{"row 5: ipv6 tcp is bit 3", message(StreamSetFlags, words64(8)...), ack(0), with(func(h *hashState) { h.Types = 8 })},
		{"row 5: no other bit", message(StreamSetFlags, words64(16)...), ack(2), def},
		{"row 6: status and flags of 8 bytes", message(StreamGetFlags), message(StreamAck, 0, 0, 0, 0, 0, 0, 0, 0, 15, 0, 0, 0, 0, 0, 0, 0), def},
		{"row 6: set flags of 4 bytes", message(StreamSetFlags, words32(6)...), ack(0), with(func(h *hashState) { h.Types = 6 })},
		{"row 6: set flags, upper half not zero", message(StreamSetFlags, words32(6, 1)...), ack(2), def},
		{"row 7: entries of 8 bytes", message(StreamSetMapping, table2...), ack(0), with(func(h *hashState) { h.Table = want2 })},
		{"row 7: upper half of an entry not zero", message(StreamSetMapping, words64(0, 1<<32)...), ack(2), def},
		{"row 7: not a multiple of 8 bytes", message(StreamSetMapping, table2[:12]...), ack(2), def},
		{"row 8: no entries", message(StreamSetMapping), ack(2), def},
		{"row 8: one entry", message(StreamSetMapping, table1...), ack(0), with(func(h *hashState) { h.Table = want1 })},
		{"row 8: three entries", message(StreamSetMapping, table3...), ack(2), def},
		{"row 9: the last queue", message(StreamSetMapping, words64(queues-1)...), ack(0),
			with(func(h *hashState) { h.Table = []uint32{queues - 1} })},
		{"row 9: one more than the last queue", message(StreamSetMapping, words64(queues)...), ack(2), def},
		{"row 10: 128 entries", message(StreamSetMapping, table128...), ack(0), with(func(h *hashState) { h.Table = want128 })},
		{"row 10: 129 entries", message(StreamSetMapping, table129...), ack(3), def},
		{"row 10: 256 entries", message(StreamSetMapping, table256...), ack(3), def},
		{"row 11: a payload of the largest size", message(StreamSetKey, make([]byte, 1024)...), ack(2), def},
		{"row 11: one byte more", message(StreamSetKey, make([]byte, 1025)...), ack(3), def},
		{"row 11: a payload of ten rings", message(StreamSetMapping, make([]byte, 10*streamRing+5)...), ack(3), def},
		{"row 11: get flags with too much", message(StreamGetFlags, make([]byte, 5000)...), ack(3), def},
		{"row 12: key too short", message(StreamSetKey, counting(39)...), ack(2), def},
		{"row 12: key too long", message(StreamSetKey, counting(41)...), ack(2), def},
		{"row 12: no key", message(StreamSetKey), ack(2), def},
		{"row 12: get flags with a payload", message(StreamGetFlags, 1), ack(2), def},
		{"row 12: set flags without", message(StreamSetFlags), ack(2), def},
		{"row 12: set flags of 7 bytes", message(StreamSetFlags, make([]byte, 7)...), ack(2), def},
		{"row 12: set flags of 16 bytes", message(StreamSetFlags, make([]byte, 16)...), ack(2), def},
		{"row 13: a failure carries the status alone", message(StreamGetFlags, 1, 2), message(StreamAck, 2, 0, 0, 0, 0, 0, 0, 0), def},
		{"unknown: type 0", message(0), ack(1), def},
		{"unknown: ack from the frontend", message(StreamAck, words64(0)...), ack(1), def},
		{"unknown: type 6 with a payload", message(6, counting(100)...), ack(1), def},
		{"unknown: with a payload of ten rings", message(99, make([]byte, 10*streamRing)...), ack(1), def},
		{"row 22: flags 0 stop hashing", append(message(StreamSetFlags, words64(3)...), message(StreamSetFlags, words64(0)...)...), append(ack(0), ack(0)...), def},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, f := streamRig(t)
			// So that messages do not stand where the buffers begin.
			exchange(r, f, message(99, make([]byte, 1000)...))
			if got := exchange(r, f, tt.msg); !bytes.Equal(got, tt.want) {
				t.Errorf("answered % x, want % x", got, tt.want)
			}
			if diff := cmp.Diff(tt.hash, r.hash); diff != "" {
				t.Errorf("hashing (-want +got):\n%s", diff)
			}
			if got := exchange(r, f, message(StreamGetFlags)); !bytes.Equal(got, ack(0, 15)) {
				t.Errorf("the message after it is answered % x", got)
			}
		})
	}
}

// TestRow4WritesAtProducer: bytes are at the producer's place, modulo the
// buffer, however much the consumer has taken; the same across the wrap of the counters.
func TestRow4WritesAtProducer(t *testing.T) {
	for _, start := range []uint32{0, 1020, 1 << 31, math.MaxUint32 - 5, math.MaxUint32} {
		mem := newMem()
		p, err := newPage(mem)
		if err != nil {
			t.Fatal(err)
		}
		for i := range words {
			p.publish(i, start)
		}
		r := &rig{t: t, mem: mem}
		if r.back, err = Restore(mem, State{Protocol: Stream}); err != nil {
			t.Fatal(err)
		}
		r.calls = Calls{Hash: &r.hash}
		r.calls.Start(Stream)
		r.server = server{ring: r.back, do: r.calls.Do, notify: func() {}}
		f := newRawStream(t, mem)
		for i := range 100 {
			if got := exchange(r, f, message(StreamSetKey, counting(40)...)); !bytes.Equal(got, ack(0)) {
				t.Fatalf("from %d, message %d: % x", start, i, got)
			}
		}
	}
}

// TestRow14PipelinedMessages: a frontend that does not wait for responses gets
// them one after the other, and the next message is not looked at before the
// response to the last is all written.
func TestRow14PipelinedMessages(t *testing.T) {
	r, f := streamRig(t)
	const n = streamRing / 8
	for range n {
		f.pending = append(f.pending, message(StreamGetFlags)...)
	}
	f.write(streamRing)
	r.serve()
	full := streamRing / 24
	if got := f.page.load(wRspProd); got != streamRing {
		t.Fatalf("%d bytes of responses, want a full ring", got)
	}
	if got := f.page.load(wReqCons); got != uint32(full+1)*8 {
		t.Errorf("%d bytes of requests taken, want those of the %d answered and of the one half written", got, full)
	}
	for f.read(100) > 0 {
		r.serve()
	}
	var want []byte
	for range n {
		want = append(want, ack(0, 15)...)
	}
	if !bytes.Equal(f.got, want) {
		t.Errorf("%d bytes of responses, want %d", len(f.got), len(want))
	}
}

// TestRow15And20Breach: counters that cannot be end the ring, for good.
func TestRow15And20Breach(t *testing.T) {
	taken := func(f *rawStream, r *rig) {
		f.pending = counting(7)
		f.write(7)
		r.serve()
	}
	tests := []struct {
		name   string
		before func(*rawStream, *rig)
		word   int
		value  uint32
		want   error
	}{
		{"req_prod more than a ring ahead", nil, wReqProd, streamRing + 1, netif.ErrOverflow},
		{"req_prod far ahead", nil, wReqProd, 1 << 31, netif.ErrOverflow},
		{"req_prod behind", nil, wReqProd, math.MaxUint32, netif.ErrOverflow},
		{"req_prod behind what was taken", taken, wReqProd, 6, netif.ErrOverflow},
		{"rsp_cons ahead of rsp_prod", func(f *rawStream, _ *rig) { f.pending = message(StreamGetFlags); f.write(8) },
			wRspCons, 1, ErrRspCons},
		{"rsp_cons more than a ring behind", func(f *rawStream, _ *rig) { f.pending = message(StreamGetFlags); f.write(8) },
			wRspCons, math.MaxUint32 - streamRing, ErrRspCons},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, f := streamRig(t)
			if tt.before != nil {
				tt.before(f, r)
			}
			good := f.page.load(tt.word)
			f.page.publish(tt.word, tt.value)
			err := r.server.serve()
			var e *Error
			if !errors.As(err, &e) || e.Protocol != Stream || !errors.Is(err, tt.want) {
				t.Fatalf("served: %v, want %v", err, tt.want)
			}
			f.page.publish(tt.word, good)
			before := slices.Clone(r.mem)
			if _, _, again := r.back.Next(); again != err {
				t.Errorf("next: %v", again)
			}
			r.back.Reply(Response{})
			if _, again := r.back.Flush(); again != err {
				t.Errorf("flush: %v", again)
			}
			if !bytes.Equal(before, r.mem) {
				t.Error("the page was written after the breach")
			}
		})
	}
	t.Run("from the start", func(t *testing.T) {
		r, f := streamRig(t)
		f.page.publish(wReqProd, streamRing+1)
		if _, err := Attach(r.mem, Stream); !errors.Is(err, netif.ErrOverflow) {
			t.Errorf("attached: %v", err)
		}
	})
	t.Run("req_prod behind what was taken and not flushed", func(t *testing.T) {
		r, f := streamRig(t)
		f.pending = counting(7)
		f.write(7)
		if _, ok, err := r.back.Next(); ok || err != nil {
			t.Fatal(ok, err)
		}
		f.page.publish(wReqProd, 6)
		if _, _, err := r.back.Next(); !errors.Is(err, netif.ErrOverflow) {
			t.Errorf("next: %v", err)
		}
	})
	t.Run("row 20: a new connection begins at 0 with any words of the backend", func(t *testing.T) {
		r, f := streamRig(t)
		f.page.publish(wReqCons, 123456)
		f.pending = message(StreamGetFlags)
		for i, b := range f.pending {
			f.page.mem[reqBuffer+i] = b
		}
		f.page.publish(wReqProd, 8)
		r.serve()
		if f.read(100); !bytes.Equal(f.got, ack(0, 15)) {
			t.Errorf("answered % x", f.got)
		}
	})
}

// TestRow16Events: an event after each piece that leaves a message incomplete,
// and after each that was written; none when nothing moved.
func TestRow16Events(t *testing.T) {
	r, f := streamRig(t)
	f.pending = message(StreamSetKey, counting(40)...)
	for i, n := range []int{1, 6, 1, 1, 38, 1} {
		f.write(n)
		r.events = 0
		r.serve()
		if r.events != 1 {
			t.Errorf("piece %d: %d events", i, r.events)
		}
		r.events = 0
		r.serve()
		if r.events != 0 {
			t.Errorf("nothing new after piece %d: %d events", i, r.events)
		}
	}
	if f.read(100); !bytes.Equal(f.got, ack(0)) {
		t.Errorf("answered % x", f.got)
	}
	// A piece that is forgotten counts as well.
	f.pending = message(99, make([]byte, 3000)...)
	for len(f.pending) > 0 {
		f.write(streamRing)
		r.events = 0
		r.serve()
		if r.events != 1 {
			t.Errorf("%d left of a payload that is too long: %d events", len(f.pending), r.events)
		}
	}
}

// TestRow21Defaults: before there is a table all goes to queue 0.
func TestRow21Defaults(t *testing.T) {
	r, _ := streamRig(t)
	if diff := cmp.Diff(hashState{Algorithm: netif.HashAlgorithmToeplitz, Table: []uint32{0}}, r.hash); diff != "" {
		t.Errorf("at the start (-want +got):\n%s", diff)
	}
	s := newRig(t, Slot)
	if diff := cmp.Diff(hashState{}, s.hash); diff != "" {
		t.Errorf("a slot ring at the start (-want +got):\n%s", diff)
	}
}

// TestRequestsInPieces: however a message is cut, it is answered once and the
// same. The frontend is a real one, obedient to events.
func TestRequestsInPieces(t *testing.T) {
	for _, chunk := range []int{1, 3, 7, 8, 9, 100, 1023, 1024, 0} {
		t.Run(fmt.Sprintf("pieces of %d", chunk), func(t *testing.T) {
			r := newRig(t, Stream)
			r.front.(*StreamFront).Chunk = chunk
			table := make([]uint32, 128)
			for i := range table {
				table[i] = uint32(i % queues)
			}
			for range 3 {
				for _, q := range []Request{
					request(netif.CtrlSetHashFlags, 15),
					{Type: netif.CtrlSetHashKey, Key: counting(40)},
					{Type: netif.CtrlSetHashMapping, Queues: table},
				} {
					if got := r.call(q); got != (Response{}) {
						t.Fatalf("%v: %v", q, got)
					}
				}
				if got := r.call(request(netif.CtrlGetHashFlags)); got != (Response{Data: 15}) {
					t.Fatalf("get flags: %v", got)
				}
			}
			want := hashState{Algorithm: 1, Types: 15, Key: counting(40), Table: table}
			if diff := cmp.Diff(want, r.hash); diff != "" {
				t.Errorf("hashing (-want +got):\n%s", diff)
			}
		})
	}
}

// TestStreamFrontJudges: the frontend notices a backend that breaks the
// protocol, and what the protocol has no message for.
func TestStreamFrontJudges(t *testing.T) {
	respond := func(raw []byte) func(p page) {
		return func(p page) {
			copy(p.mem[rspBuffer:], raw)
			p.publish(wRspProd, uint32(len(raw)))
		}
	}
	for _, tt := range []struct {
		name string
		do   func(p page)
		want error
	}{
		{"not an ack", respond(message(StreamSetFlags, words64(0)...)), ErrResponse},
		{"ack without status", respond(message(StreamAck)), ErrResponse},
		{"ack of 4 GiB", respond(words32(1, math.MaxUint32)), ErrResponse},
		{"rsp_prod out of bounds", func(p page) { p.publish(wRspProd, streamRing+1) }, netif.ErrRspOverflow},
		{"req_cons out of bounds", func(p page) { p.publish(wReqCons, 9) }, ErrReqCons},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, Stream)
			if err := r.front.Send(request(netif.CtrlGetHashFlags)); err != nil {
				t.Fatal(err)
			}
			if _, err := r.front.Turn(); err != nil {
				t.Fatal(err)
			}
			f := r.front.(*StreamFront)
			tt.do(f.page)
			_, err := f.Turn()
			var e *Error
			if !errors.Is(err, tt.want) || !errors.As(err, &e) {
				t.Errorf("turn: %v, want %v", err, tt.want)
			}
			if _, done := f.Response(); done {
				t.Error("there is a response")
			}
		})
	}
	r := newRig(t, Stream)
	for typ := range netif.CtrlType(12) {
		err := r.front.Send(request(typ))
		switch typ {
		case netif.CtrlGetHashFlags, netif.CtrlSetHashFlags, netif.CtrlSetHashKey, netif.CtrlSetHashMapping:
			if err != nil {
				t.Errorf("%v: %v", typ, err)
			}
			if err := r.front.Send(request(typ)); !errors.Is(err, errBusy) {
				t.Errorf("second message: %v", err)
			}
			r.front, _ = Init(r.mem, Stream)
		default:
			if err == nil {
				t.Errorf("%v can be sent over a byte-stream ring", typ)
			}
		}
	}
	r.front.(*StreamFront).SetReqProd(5000)
	if got := binary.LittleEndian.Uint32(r.mem[4:]); got != 5000 {
		t.Errorf("req_prod %d", got)
	}
}

func TestStreamTypeNames(t *testing.T) {
	want := []string{"unknown(0)", "ack", "get-toeplitz-flags", "set-toeplitz-flags", "set-toeplitz-key", "set-toeplitz-mapping", "unknown(6)"}
	for i, w := range want {
		if got := StreamType(i).String(); got != w {
			t.Errorf("type %d is %q, want %q", i, got, w)
		}
	}
}
