// SPDX-License-Identifier: Apache-2.0

package ctrlring

import (
	"encoding/binary"
	"errors"
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/pkg/netif"
)

// slotRing is the front end of a slot ring's rig, for tests that put several
// messages on it.
func slotRing(r *rig) *netif.CtrlFront { return r.front.(*SlotFront).Ring() }

func responses(t *testing.T, f *netif.CtrlFront) (rsp []netif.CtrlResponse) {
	t.Helper()
	n, err := f.Responses()
	if err != nil {
		t.Fatal(err)
	}
	for range n {
		rsp = append(rsp, f.Response(f.RspCons()))
		f.Take(1)
	}
	return rsp
}

// TestIDsAreEchoed: the id means nothing to us, and requests are answered in
// order with any ids.
func TestIDsAreEchoed(t *testing.T) {
	r := newRig(t, Slot)
	f := slotRing(r)
	ids := []uint16{0, 0, math.MaxUint16, 7, 7, 1, 0x8000}
	var want []netif.CtrlResponse
	for i, id := range ids {
		typ := netif.CtrlType(4 * (i % 2)) // invalid, get-hash-mapping-size
		f.Put(netif.CtrlRequest{ID: id, Type: typ})
		w := netif.CtrlResponse{ID: id, Type: typ, Status: notSupported}
		if typ != 0 {
			w.Status, w.Data = success, 128
		}
		want = append(want, w)
	}
	f.Push()
	r.serve()
	if diff := cmp.Diff(want, responses(t, f)); diff != "" {
		t.Errorf("responses (-want +got):\n%s", diff)
	}
}

// TestSlotWraps: messages go on across the ring's end.
func TestSlotWraps(t *testing.T) {
	r := newRig(t, Slot)
	for i := range 3 * netif.CtrlRingSize {
		if got := r.call(request(netif.CtrlGetHashMappingSize)); got != (Response{Data: 128}) {
			t.Fatalf("call %d: %v", i, got)
		}
	}
}

// TestOneMessageAtATime: until a message is answered and the answer is flushed
// there is no other, however many wait.
func TestOneMessageAtATime(t *testing.T) {
	for _, p := range []Protocol{Slot, Stream} {
		t.Run(p.String(), func(t *testing.T) {
			r := newRig(t, p)
			switch f := r.front.(type) {
			case *SlotFront:
				f.Ring().Put(netif.CtrlRequest{Type: netif.CtrlGetHashFlags})
				f.Ring().Put(netif.CtrlRequest{Type: netif.CtrlGetHashFlags})
				f.Ring().Push()
			case *StreamFront:
				f.typ, f.out = StreamGetFlags, words32(uint32(StreamGetFlags), 0, uint32(StreamGetFlags), 0)
				if _, err := f.Turn(); err != nil {
					t.Fatal(err)
				}
			}
			next := func(want bool) {
				t.Helper()
				if _, ok, err := r.back.Next(); ok != want || err != nil {
					t.Fatalf("next: %v, %v; want %v", ok, err, want)
				}
			}
			next(true)
			next(false)
			if notify, err := r.back.Flush(); err != nil || p == Slot && notify {
				t.Fatalf("flush before the answer: %v, %v", notify, err)
			}
			next(false)
			r.back.Reply(Response{})
			r.back.Reply(Response{Status: invalidParam}) // too late: nothing is open
			next(false)
			if notify, err := r.back.Flush(); !notify || err != nil {
				t.Fatalf("flush of the answer: %v, %v", notify, err)
			}
			next(true)
			r.back.Reply(Response{})
			if _, err := r.back.Flush(); err != nil {
				t.Fatal(err)
			}
			next(false)
			if p == Slot {
				for _, rsp := range responses(t, slotRing(r)) {
					if rsp.Status != success {
						t.Error("the late answer was sent")
					}
				}
			}
		})
	}
}

// TestEventsAreHeldOff: the frontend is sent events as its rsp_event asks for.
func TestEventsAreHeldOff(t *testing.T) {
	r := newRig(t, Slot)
	f := slotRing(r)
	if _, err := f.ArmFor(3); err != nil {
		t.Fatal(err)
	}
	for i, want := range []int{0, 0, 1, 1} {
		f.Put(netif.CtrlRequest{})
		f.Push()
		r.serve()
		if r.events != want {
			t.Errorf("after response %d: %d events, want %d", i+1, r.events, want)
		}
	}
}

// TestSlotBreach: indices out of bounds end the control ring, for good, with an
// error that says so; nothing is written to the page any more.
func TestSlotBreach(t *testing.T) {
	for _, tt := range []struct {
		name string
		prod netif.Index
	}{
		{"one more than a ring", netif.CtrlRingSize + 3},
		{"far ahead", 1 << 31},
		{"behind what was taken", 1},
		{"behind the start", math.MaxUint32},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, Slot)
			f := slotRing(r)
			f.Put(netif.CtrlRequest{})
			f.Put(netif.CtrlRequest{})
			f.Push()
			r.serve()
			before := f.State()
			f.SetReqProd(tt.prod)
			err := r.server.serve()
			var e *Error
			if !errors.As(err, &e) || e.Protocol != Slot || !errors.Is(err, netif.ErrOverflow) {
				t.Fatalf("served: %v", err)
			}
			f.SetReqProd(2) // it is too late to repent
			if _, _, again := r.back.Next(); again != err {
				t.Errorf("next: %v", again)
			}
			r.back.Reply(Response{})
			if _, again := r.back.Flush(); again != err {
				t.Errorf("flush: %v", again)
			}
			if after := f.State(); after.RspProd != before.RspProd || after.ReqEvent != before.ReqEvent {
				t.Errorf("page after the breach: %+v, before: %+v", after, before)
			}
		})
	}
	t.Run("from the start", func(t *testing.T) {
		r := newRig(t, Slot)
		slotRing(r).SetReqProd(netif.CtrlRingSize + 1)
		_, err := Attach(r.mem, Slot)
		var e *Error
		if !errors.As(err, &e) || !errors.Is(err, netif.ErrOverflow) {
			t.Errorf("attached: %v", err)
		}
	})
	t.Run("while a message is carried out", func(t *testing.T) {
		r := newRig(t, Slot)
		f := slotRing(r)
		f.Put(netif.CtrlRequest{ID: 5})
		f.Push()
		if _, ok, err := r.back.Next(); !ok || err != nil {
			t.Fatal(ok, err)
		}
		f.SetReqProd(1 << 20)
		r.back.Reply(Response{})
		if _, err := r.back.Flush(); err != nil {
			t.Errorf("the answer to a good message: %v", err)
		}
		if _, _, err := r.back.Next(); !errors.Is(err, netif.ErrOverflow) {
			t.Errorf("next: %v", err)
		}
	})
}

// TestSlotFrontJudges: the frontend notices a backend that answers wrong.
func TestSlotFrontJudges(t *testing.T) {
	for _, tt := range []struct {
		name string
		rsp  netif.CtrlResponse
		ok   bool
	}{
		{"right", netif.CtrlResponse{ID: 1, Type: 4, Data: 9}, true},
		{"wrong id", netif.CtrlResponse{ID: 2, Type: 4}, false},
		{"wrong type", netif.CtrlResponse{ID: 1, Type: 5}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			mem := newMem()
			f, err := Init(mem, Slot)
			if err != nil {
				t.Fatal(err)
			}
			b, err := netif.AttachCtrl(mem)
			if err != nil {
				t.Fatal(err)
			}
			if err := f.Send(request(4)); err != nil {
				t.Fatal(err)
			}
			if err := f.Send(request(4)); !errors.Is(err, errBusy) {
				t.Errorf("second message: %v", err)
			}
			if notify, err := f.Turn(); !notify || err != nil {
				t.Fatal(notify, err)
			}
			b.Consume(1)
			b.Commit([]netif.CtrlResponse{tt.rsp})
			_, err = f.Turn()
			rsp, done := f.Response()
			if tt.ok != (err == nil) || done != tt.ok || !tt.ok && !errors.Is(err, ErrResponse) {
				t.Errorf("%v, %v, %v", rsp, done, err)
			}
			if tt.ok && rsp.Data != 9 {
				t.Errorf("response %v", rsp)
			}
			if _, again := f.Response(); again {
				t.Error("the same response twice")
			}
		})
	}
	t.Run("rsp_prod out of bounds", func(t *testing.T) {
		r := newRig(t, Slot)
		if err := r.front.Send(request(4)); err != nil {
			t.Fatal(err)
		}
		if _, err := r.front.Turn(); err != nil {
			t.Fatal(err)
		}
		binary.LittleEndian.PutUint32(r.mem[8:], 2)
		if _, err := r.front.Turn(); !errors.Is(err, netif.ErrRspOverflow) {
			t.Errorf("turn: %v", err)
		}
	})
	t.Run("ids are never 0", func(t *testing.T) {
		r := newRig(t, Slot)
		f := r.front.(*SlotFront)
		f.id = math.MaxUint16 - 1
		for range 3 {
			r.call(request(4))
			if f.id == 0 {
				t.Error("id 0")
			}
		}
	})
}

// TestSniff: what a frontend left in the page when it connected.
func TestSniff(t *testing.T) {
	for _, tt := range []struct {
		name          string
		second, fourt uint32 // words at 4 and at 12
		want          Protocol
	}{
		{"a new slot ring", 1, 1, Slot},
		{"a new byte-stream ring", 0, 0, Stream},
		{"a byte-stream ring with a header in it", 8, 0, Stream},
		{"a byte-stream ring, full", 1024, 0, Stream},
		{"a slot ring that was in use", 5, 5, 0},
		{"a slot ring that only the backend used", 5, 1, 0},
		{"a slot ring that only the frontend used", 1, 2, 0},
		{"a byte-stream ring that was in use", 8, 16, 0},
		{"anything", 0xffffffff, 0xffffffff, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			mem := newMem()
			binary.LittleEndian.PutUint32(mem[4:], tt.second)
			binary.LittleEndian.PutUint32(mem[12:], tt.fourt)
			got, err := Sniff(mem)
			if got != tt.want || (err != nil) != (tt.want == 0) {
				t.Errorf("%v, %v; want %v", got, err, tt.want)
			}
			var e *Error
			if err != nil && (!errors.Is(err, ErrProtocol) || !errors.As(err, &e)) {
				t.Errorf("error %v", err)
			}
		})
	}
	t.Run("with the first request on it", func(t *testing.T) {
		for _, p := range []Protocol{Slot, Stream} {
			mem := newMem()
			f, err := Init(mem, p)
			if err != nil {
				t.Fatal(err)
			}
			if err := f.Send(request(netif.CtrlGetHashFlags)); err != nil {
				t.Fatal(err)
			}
			if _, err := f.Turn(); err != nil {
				t.Fatal(err)
			}
			if got, err := Sniff(mem); got != p || err != nil {
				t.Errorf("%v, %v; want %v", got, err, p)
			}
		}
	})
}

// TestBadArguments of those who are trusted.
func TestBadArguments(t *testing.T) {
	mem := newMem()
	for name, f := range map[string]func() error{
		"short page to Sniff":        func() error { _, err := Sniff(mem[:100]); return err },
		"unaligned page to Sniff":    func() error { _, err := Sniff(make([]byte, netif.PageSize+8)[1:][:netif.PageSize]); return err },
		"short page to Attach":       func() error { _, err := Attach(mem[:8], Slot); return err },
		"short page to a stream":     func() error { _, err := Attach(mem[:8], Stream); return err },
		"short page to Restore":      func() error { _, err := Restore(nil, State{Protocol: Stream}); return err },
		"short page to slot Restore": func() error { _, err := Restore(nil, State{Protocol: Slot}); return err },
		"short page to Init":         func() error { _, err := Init(mem[:8], Stream); return err },
		"short page to slot Init":    func() error { _, err := Init(mem[:8], Slot); return err },
		"no protocol to Attach":      func() error { _, err := Attach(mem, 0); return err },
		"no protocol to Restore":     func() error { _, err := Restore(mem, State{}); return err },
		"no protocol to Init":        func() error { _, err := Init(mem, 3); return err },
	} {
		if err := f(); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}
