// SPDX-License-Identifier: Apache-2.0

package ctrlring

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/pkg/netif"
)

var errKilled = errors.New("killed")

// daemon is a backend that can be killed. What it has written down is in record,
// which it shares with its successors.
type daemon struct {
	t        testing.TB
	mem      []byte
	protocol Protocol
	record   []byte // State, as marshalled
	kept     int    // of done, in the same record
	done     int    // messages carried out
	server   server
	notified bool
}

func (d *daemon) save(s State) error {
	b, err := s.MarshalBinary()
	if err != nil {
		d.t.Fatal(err)
	}
	if len(b) > StateSize {
		d.t.Fatalf("a state of %d bytes", len(b))
	}
	d.record, d.kept = b, d.done
	return nil
}

// start begins to serve a new connection.
func (d *daemon) start(do func(Request) Response) {
	b, err := Attach(d.mem, d.protocol)
	if err != nil {
		d.t.Fatal(err)
	}
	d.server = server{ring: b, do: do, save: d.save, notify: func() { d.notified = true }}
	_ = d.save(b.State())
}

// restart is a successor that goes on from the record.
func (d *daemon) restart() {
	var s State
	if err := s.UnmarshalBinary(d.record); err != nil {
		d.t.Fatal(err)
	}
	b, err := Restore(d.mem, s)
	if err != nil {
		d.t.Fatal(err)
	}
	if b.Protocol() != d.protocol {
		d.t.Fatalf("restored a %v ring", b.Protocol())
	}
	d.server.ring, d.done = b, d.kept
	d.notified = false
}

func (d *daemon) serve() {
	d.t.Helper()
	if err := d.server.serve(); err != nil {
		d.t.Fatal(err)
	}
}

// kill ends the daemon at one of the moments there are, and starts a successor.
// The daemon gets there only if there is a message to take.
func (d *daemon) kill(moment int) {
	d.t.Helper()
	ring := d.server.ring
	step := func(err error) {
		if err != nil && !errors.Is(err, errKilled) {
			d.t.Fatal(err)
		}
	}
	if moment > 0 {
		q, ok, err := ring.Next()
		step(err)
		switch {
		case !ok && moment < 4:
			_, err := flush(ring, func(s State) error {
				if moment > 1 {
					_ = d.save(s)
				}
				return errKilled
			})
			step(err)
		case !ok:
			_, err := flush(ring, d.save)
			step(err)
		case moment == 1: // before it is carried out
		default: // after
			ring.Reply(d.server.do(q))
			if moment == 3 { // recorded, not seen by the frontend
				_, err := flush(ring, func(s State) error { _ = d.save(s); return errKilled })
				step(err)
			}
			if moment == 4 { // seen, but its event is lost
				_, err := flush(ring, d.save)
				step(err)
			}
			if moment == 5 { // written, rsp_prod not published
				p, err := newPage(d.mem)
				step(err)
				rspProd := wRspProd
				if d.protocol == Slot {
					rspProd = 2
				}
				before := p.load(rspProd)
				_, err = flush(ring, d.save)
				step(err)
				p.publish(rspProd, before)
			}
		}
	}
	d.restart()
}

const moments = 6

// TestKilledAtAnyMoment kills the daemon once at each moment of each message of a
// conversation. Every message gets one response, the right one, and with the
// effects in the same record as the state none is counted twice.
func TestKilledAtAnyMoment(t *testing.T) {
	for _, p := range []Protocol{Slot, Stream} {
		for moment := range moments {
			for victim := range 4 {
				mem := newMem()
				f, err := Init(mem, p)
				if err != nil {
					t.Fatal(err)
				}
				d := &daemon{t: t, mem: mem, protocol: p}
				d.start(func(q Request) Response {
					d.done++
					return Response{Data: uint32(d.done)}
				})
				for i := range 4 {
					if err := f.Send(request(netif.CtrlGetHashFlags)); err != nil {
						t.Fatal(err)
					}
					if notify, err := f.Turn(); err != nil || !notify {
						t.Fatal(notify, err)
					}
					if i == victim {
						d.kill(moment)
					}
					d.notified = false
					d.serve()
					if !d.notified {
						t.Errorf("%v ring, moment %d, message %d: no event", p, moment, i)
					}
					if _, err := f.Turn(); err != nil {
						t.Fatal(err)
					}
					rsp, done := f.Response()
					if !done || rsp != (Response{Data: uint32(i + 1)}) {
						t.Fatalf("%v ring, killed at moment %d of message %d: message %d is answered %v, %v", p, moment, victim, i, rsp, done)
					}
				}
			}
		}
	}
}

// TestRecordFails: what cannot be written down does not happen, and happens once
// it can.
func TestRecordFails(t *testing.T) {
	for _, p := range []Protocol{Slot, Stream} {
		r := newRig(t, p)
		full := errors.New("disk full")
		r.server.save = func(State) error { return full }
		if err := r.front.Send(request(netif.CtrlGetHashFlags)); err != nil {
			t.Fatal(err)
		}
		if _, err := r.front.Turn(); err != nil {
			t.Fatal(err)
		}
		before := slices.Clone(r.mem)
		var e *Error
		if err := r.server.serve(); !errors.Is(err, full) || errors.As(err, &e) {
			t.Errorf("%v ring: %v", p, err)
		}
		if !bytes.Equal(before, r.mem) {
			t.Errorf("%v ring: the frontend sees what was not recorded", p)
		}
		r.server.save = nil
		r.serve()
		if _, err := r.front.Turn(); err != nil {
			t.Fatal(err)
		}
		if _, done := r.front.Response(); !done || r.events != 1 {
			t.Errorf("%v ring: not answered later", p)
		}
	}
}

// TestRecordFailsWithMoreToCome: once it can be written down, what came after it
// is not left lying either.
func TestRecordFailsWithMoreToCome(t *testing.T) {
	r := newRig(t, Slot)
	full := errors.New("disk full")
	r.server.save = func(State) error { return full }
	f := slotRing(r)
	f.Put(netif.CtrlRequest{ID: 1})
	f.Put(netif.CtrlRequest{ID: 2})
	f.Push()
	if err := r.server.serve(); !errors.Is(err, full) {
		t.Fatal(err)
	}
	r.server.save = nil
	r.serve()
	if n := len(responses(t, f)); n != 2 {
		t.Errorf("%d responses, want 2", n)
	}
}

// TestRestoreHalfSent: a response that the frontend had room for in part goes on
// where it stopped.
func TestRestoreHalfSent(t *testing.T) {
	r, f := streamRig(t)
	for range streamRing / 8 {
		f.pending = append(f.pending, message(StreamGetFlags)...)
	}
	f.write(streamRing)
	r.serve()
	s := r.back.State()
	if n := len(s.reply); n == 0 || f.page.load(wRspProd)-s.rsp >= uint32(n) {
		t.Fatalf("no response is half sent: %+v", s)
	}
	var err error
	if r.server.ring, err = Restore(r.mem, s); err != nil {
		t.Fatal(err)
	}
	for f.read(100) > 0 {
		r.serve()
	}
	if want := bytes.Repeat(ack(0, 15), streamRing/8); !bytes.Equal(f.got, want) {
		t.Errorf("%d bytes of responses, want %d", len(f.got), len(want))
	}
}

// TestNothingIsRecordedForNothing: a wake that finds nothing writes nothing down.
func TestNothingIsRecordedForNothing(t *testing.T) {
	for _, p := range []Protocol{Slot, Stream} {
		r := newRig(t, p)
		saves := 0
		r.server.save = func(State) error { saves++; return nil }
		r.serve()
		r.call(request(netif.CtrlGetHashFlags))
		if saves != 1 {
			t.Errorf("%v ring: one message, %d records", p, saves)
		}
		r.serve()
		if saves != 1 {
			t.Errorf("%v ring: a spurious event is recorded", p)
		}
	}
}

// TestRestoreRefuses records that no daemon has written for this ring, without
// harm from a frontend that changed what is the backend's.
func TestRestoreRefuses(t *testing.T) {
	stream := func(f func(*State)) State {
		s := State{Protocol: Stream, recorded: true}
		f(&s)
		return s
	}
	for _, tt := range []struct {
		name string
		s    State
		want error
	}{
		{"a message longer than any", stream(func(s *State) { s.message = make([]byte, 2000) }), ErrState},
		{"a response longer than any", stream(func(s *State) { s.reply = make([]byte, 25) }), ErrState},
		{"message and response", stream(func(s *State) { s.reply, s.message = make([]byte, 8), make([]byte, 8) }), ErrState},
		{"more than the message", stream(func(s *State) { s.message = append(message(3, 1), 2, 3) }), ErrState},
		{"bytes to forget of no message", stream(func(s *State) { s.skip = 7 }), ErrState},
		{"bytes to forget of a short message", stream(func(s *State) { s.message, s.skip = message(3, 1), 7 }), ErrState},
		{"more bytes to forget than there are", stream(func(s *State) { s.message, s.skip = words32(3, 2000), 2001 }), ErrState},
		{"rsp_prod is behind the response", stream(func(s *State) { s.rsp = 1 }), netif.ErrRspOverflow},
		{"rsp_prod is beyond the response", stream(func(s *State) { s.rsp, s.reply = 0xffffff00, ack(0) }), netif.ErrRspOverflow},
		{"slot response of another size", State{Protocol: Slot, reply: ack(0)}, ErrState},
	} {
		t.Run(tt.name, func(t *testing.T) {
			mem := newMem()
			if _, err := Init(mem, tt.s.Protocol); err != nil {
				t.Fatal(err)
			}
			_, err := Restore(mem, tt.s)
			var e *Error
			if !errors.Is(err, tt.want) || !errors.As(err, &e) {
				t.Errorf("restored: %v, want %v", err, tt.want)
			}
		})
	}
	t.Run("slot ring whose frontend moved req_prod away", func(t *testing.T) {
		r := newRig(t, Slot)
		slotRing(r).SetReqProd(1 << 20)
		if _, err := Restore(r.mem, State{Protocol: Slot}); !errors.Is(err, netif.ErrOverflow) {
			t.Errorf("restored: %v", err)
		}
	})
	t.Run("slot response to a request that was taken back", func(t *testing.T) {
		r := newRig(t, Slot)
		s := State{Protocol: Slot, recorded: true, reply: make([]byte, slotReply)}
		b, err := Restore(r.mem, s)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Flush(); err != nil {
			t.Fatal(err)
		}
		if n := len(responses(t, slotRing(r))); n != 0 {
			t.Errorf("%d responses to nothing", n)
		}
	})
}

// TestLostRecord: with nothing but the protocol known a ring goes on between two
// messages.
func TestLostRecord(t *testing.T) {
	for _, p := range []Protocol{Slot, Stream} {
		r := newRig(t, p)
		r.call(request(netif.CtrlSetHashFlags, 3))
		var err error
		if r.server.ring, err = Restore(r.mem, State{Protocol: p}); err != nil {
			t.Fatal(err)
		}
		r.hash.Algorithm = 1
		if got := r.call(request(netif.CtrlGetHashFlags)); got != (Response{Data: 15}) {
			t.Errorf("%v ring: %v", p, got)
		}
	}
}

// TestStateIsWrittenDown and read back the same.
func TestStateIsWrittenDown(t *testing.T) {
	for _, s := range []State{
		{},
		{Protocol: Slot, recorded: true, index: 7},
		{Protocol: Slot, recorded: true, index: 0xffffffff, reply: counting(slotReply)},
		{Protocol: Stream},
		{Protocol: Stream, recorded: true, index: 1, rsp: 2, skip: 0xfffffffe, message: counting(8)},
		{Protocol: Stream, recorded: true, message: counting(1032), reply: counting(24)},
	} {
		b, err := s.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		var got State
		if err := got.UnmarshalBinary(b); err != nil {
			t.Fatal(err)
		}
		if len(s.message) == 0 {
			s.message = []byte{}
		}
		if len(s.reply) == 0 {
			s.reply = []byte{}
		}
		if diff := cmp.Diff(s, got, cmp.AllowUnexported(State{})); diff != "" {
			t.Errorf("state (-want +got):\n%s", diff)
		}
		for i := range b {
			if err := got.UnmarshalBinary(b[:i]); err == nil {
				t.Errorf("%d of %d bytes are taken for a state", i, len(b))
			}
		}
		if err := got.UnmarshalBinary(append(b, 0)); err == nil {
			t.Error("one byte too many is taken for a state")
		}
	}
}
