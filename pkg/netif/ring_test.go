// SPDX-License-Identifier: Apache-2.0

package netif

import (
	"encoding/binary"
	"errors"
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/netbackd/netbackd/pkg/xen"
)

func newMem() []byte { return make([]byte, PageSize) }

func word(mem []byte, i int) uint32       { return binary.LittleEndian.Uint32(mem[4*i:]) }
func setWord(mem []byte, i int, v uint32) { binary.LittleEndian.PutUint32(mem[4*i:], v) }

// move puts a new ring to another start, as if that many slots had passed.
func (r *frontRing) move(mem []byte, start Index) {
	setWord(mem, wReqProd, uint32(start))
	setWord(mem, wReqEvent, uint32(start+1))
	setWord(mem, wRspProd, uint32(start))
	setWord(mem, wRspEvent, uint32(start+1))
	r.reqProd, r.pushed, r.rspCons = start, start, start
}

func txPair(t fataler, start Index) (*TxFront, *TxBack, []byte) {
	mem := newMem()
	f, err := InitTx(mem)
	if err != nil {
		t.Fatalf("init: %v", err)
	}
	f.move(mem, start)
	b, err := AttachTx(mem)
	if err != nil {
		t.Fatalf("attach: %v", err)
	}
	return f, b, mem
}

func rxPair(t fataler, start Index) (*RxFront, *RxBack, []byte) {
	mem := newMem()
	f, err := InitRx(mem)
	if err != nil {
		t.Fatalf("init: %v", err)
	}
	f.move(mem, start)
	b, err := AttachRx(mem)
	if err != nil {
		t.Fatalf("attach: %v", err)
	}
	return f, b, mem
}

func ctrlPair(t fataler, start Index) (*CtrlFront, *CtrlBack, []byte) {
	mem := newMem()
	f, err := InitCtrl(mem)
	if err != nil {
		t.Fatalf("init: %v", err)
	}
	f.move(mem, start)
	b, err := AttachCtrl(mem)
	if err != nil {
		t.Fatalf("attach: %v", err)
	}
	return f, b, mem
}

type fataler interface{ Fatalf(string, ...any) }

func TestInitWritesSharedRingInit(t *testing.T) {
	for name, init := range map[string]func([]byte) error{
		"tx":   func(b []byte) error { _, err := InitTx(b); return err },
		"rx":   func(b []byte) error { _, err := InitRx(b); return err },
		"ctrl": func(b []byte) error { _, err := InitCtrl(b); return err },
	} {
		t.Run(name, func(t *testing.T) {
			mem := newMem()
			for i := range mem {
				mem[i] = 0xff
			}
			if err := init(mem); err != nil {
				t.Fatal(err)
			}
			want := newMem()
			want[4], want[12] = 1, 1
			if diff := cmp.Diff(want, mem); diff != "" {
				t.Errorf("page (-want +got):\n%s", diff)
			}
		})
	}
}

func TestPagesThatAreNone(t *testing.T) {
	whole := make([]byte, PageSize+8)
	for name, mem := range map[string][]byte{
		"nothing":   nil,
		"short":     whole[:PageSize-1],
		"long":      whole[:PageSize+4],
		"unaligned": whole[2 : PageSize+2],
	} {
		t.Run(name, func(t *testing.T) {
			for role, f := range map[string]func([]byte) error{
				"InitTx":     func(b []byte) error { _, err := InitTx(b); return err },
				"InitRx":     func(b []byte) error { _, err := InitRx(b); return err },
				"InitCtrl":   func(b []byte) error { _, err := InitCtrl(b); return err },
				"AttachTx":   func(b []byte) error { _, err := AttachTx(b); return err },
				"AttachRx":   func(b []byte) error { _, err := AttachRx(b); return err },
				"AttachCtrl": func(b []byte) error { _, err := AttachCtrl(b); return err },
			} {
				if f(mem) == nil {
					t.Errorf("%s took it", role)
				}
			}
		})
	}
}

// TestSlotBytes holds the slots of each ring to the bytes of netif.h.
func TestSlotBytes(t *testing.T) {
	t.Run("tx", func(t *testing.T) {
		f, b, mem := txPair(t, 0)
		f.Put(TxRequest{Gref: 0x01020304, Offset: 0x0506, Flags: 0x0708, ID: 0x090a, Size: 0x0b0c})
		f.PutExtra(ExtraInfo{Type: 0x11, Flags: 0x12, Body: [6]byte{0x13, 0x14, 0x15, 0x16, 0x17, 0x18}})
		f.Push()
		want := []byte{
			0x04, 0x03, 0x02, 0x01, 0x06, 0x05, 0x08, 0x07, 0x0a, 0x09, 0x0c, 0x0b,
			0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0, 0, 0, 0,
		}
		if diff := cmp.Diff(want, mem[64:64+24]); diff != "" {
			t.Errorf("requests (-want +got):\n%s", diff)
		}
		b.Consume(2)
		b.Commit([]TxResponse{{ID: 0x090a, Status: StatusDropped}, {Status: StatusNull}})
		copy(want, []byte{0x0a, 0x09, 0xfe, 0xff})
		copy(want[12:], []byte{0, 0, 1, 0})
		if diff := cmp.Diff(want, mem[64:64+24]); diff != "" {
			t.Errorf("responses (-want +got):\n%s", diff)
		}
		rest := TxRequest{Gref: 0xfffe090a, Offset: 0x0506, Flags: 0x0708, ID: 0x090a, Size: 0x0b0c}
		if diff := cmp.Diff(rest, f.Request(0), ignoreBlank); diff != "" {
			t.Errorf("what the response left of its request (-want +got):\n%s", diff)
		}
	})
	t.Run("rx", func(t *testing.T) {
		f, b, mem := rxPair(t, 0)
		f.Put(RxRequest{ID: 0x0102, Gref: 0x03040506})
		f.Push()
		if diff := cmp.Diff([]byte{0x02, 0x01, 0, 0, 0x06, 0x05, 0x04, 0x03}, mem[64:72]); diff != "" {
			t.Errorf("request (-want +got):\n%s", diff)
		}
		b.Consume(1)
		b.Commit([]RxSlot{RxResponse{ID: 0x0102, Offset: 0x0304, Flags: 0x0506, Status: 0x0708}.Slot()})
		if diff := cmp.Diff([]byte{0x02, 0x01, 0x04, 0x03, 0x06, 0x05, 0x08, 0x07}, mem[64:72]); diff != "" {
			t.Errorf("response (-want +got):\n%s", diff)
		}
	})
	t.Run("ctrl", func(t *testing.T) {
		f, b, mem := ctrlPair(t, 0)
		f.Put(CtrlRequest{ID: 0x0102, Type: 0x0304, Data: [3]uint32{0x05060708, 0x090a0b0c, 0x0d0e0f10}})
		f.Push()
		want := []byte{
			0x02, 0x01, 0x04, 0x03, 0x08, 0x07, 0x06, 0x05,
			0x0c, 0x0b, 0x0a, 0x09, 0x10, 0x0f, 0x0e, 0x0d,
		}
		if diff := cmp.Diff(want, mem[64:80]); diff != "" {
			t.Errorf("request (-want +got):\n%s", diff)
		}
		b.Consume(1)
		b.Commit([]CtrlResponse{{ID: 0x0102, Type: 0x0304, Status: 3, Data: 0x11121314}})
		want = []byte{0x02, 0x01, 0x04, 0x03, 3, 0, 0, 0, 0x14, 0x13, 0x12, 0x11, 0, 0, 0, 0}
		if diff := cmp.Diff(want, mem[64:80]); diff != "" {
			t.Errorf("response, and no byte of the request left in the slot (-want +got):\n%s", diff)
		}
	})
}

var genTxRequest = rapid.Custom(func(t *rapid.T) TxRequest {
	return TxRequest{
		Gref:   xen.Gref(rapid.Uint32().Draw(t, "gref")),
		Offset: rapid.Uint16().Draw(t, "offset"),
		Flags:  TxFlags(rapid.Uint16().Draw(t, "flags")),
		ID:     rapid.Uint16().Draw(t, "id"),
		Size:   rapid.Uint16().Draw(t, "size"),
	}
})

var genExtra = rapid.Custom(func(t *rapid.T) ExtraInfo {
	return ExtraInfo{
		Type:  ExtraType(rapid.Uint8().Draw(t, "type")),
		Flags: ExtraFlags(rapid.Uint8().Draw(t, "flags")),
		Body:  [6]byte(rapid.SliceOfN(rapid.Byte(), 6, 6).Draw(t, "body")),
	}
})

// ignoreBlank leaves out the fields that only pad a struct.
var ignoreBlank = cmp.FilterPath(func(p cmp.Path) bool {
	f, ok := p.Last().(cmp.StructField)
	return ok && f.Name() == "_"
}, cmp.Ignore())

// The three round trips send a few rounds of slots through a page, starting
// anywhere, and want to read what was written, in order, both ways.

func TestTxRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f, b, _ := txPair(t, near().Draw(t, "start"))
		for range rapid.IntRange(1, 8).Draw(t, "rounds") {
			type slot struct {
				Extra bool
				Req   TxRequest
				Info  ExtraInfo
			}
			var want, got []slot
			for range rapid.IntRange(1, TxRingSize).Draw(t, "slots") {
				s := slot{Extra: rapid.Bool().Draw(t, "extra")}
				if s.Extra {
					s.Info = genExtra.Draw(t, "info")
					f.PutExtra(s.Info)
				} else {
					s.Req = genTxRequest.Draw(t, "req")
					f.Put(s.Req)
				}
				want = append(want, s)
			}
			f.Push()
			n, err := b.Available()
			if err != nil || n != uint32(len(want)) {
				t.Fatalf("available = %d, %v, want %d", n, err, len(want))
			}
			var rsp []TxResponse
			for _, w := range want {
				s := slot{Extra: w.Extra}
				if w.Extra {
					s.Info = b.Extra(b.ReqCons())
				} else {
					s.Req = b.Request(b.ReqCons())
				}
				got = append(got, s)
				b.Consume(1)
				rsp = append(rsp, TxResponse{ID: s.Req.ID, Status: Status(int16(s.Req.Size))})
			}
			if diff := cmp.Diff(want, got, ignoreBlank); diff != "" {
				t.Fatalf("requests (-want +got):\n%s", diff)
			}
			b.Commit(rsp)
			if n, err := f.Responses(); err != nil || n != uint32(len(rsp)) {
				t.Fatalf("responses = %d, %v, want %d", n, err, len(rsp))
			}
			var back []TxResponse
			for i := range rsp {
				back = append(back, f.Response(f.RspCons().Add(uint32(i))))
			}
			f.Take(uint32(len(rsp)))
			if diff := cmp.Diff(rsp, back, ignoreBlank); diff != "" {
				t.Fatalf("responses (-want +got):\n%s", diff)
			}
			if f.Free() != TxRingSize {
				t.Fatalf("%d slots are free, want all", f.Free())
			}
		}
	})
}

func TestRxRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f, b, _ := rxPair(t, near().Draw(t, "start"))
		for range rapid.IntRange(1, 8).Draw(t, "rounds") {
			var want, got []RxRequest
			for range rapid.IntRange(1, RxRingSize).Draw(t, "slots") {
				q := RxRequest{ID: rapid.Uint16().Draw(t, "id"), Gref: xen.Gref(rapid.Uint32().Draw(t, "gref"))}
				f.Put(q)
				want = append(want, q)
			}
			f.Push()
			if n, err := b.Available(); err != nil || n != uint32(len(want)) {
				t.Fatalf("available = %d, %v, want %d", n, err, len(want))
			}
			var slots []RxSlot
			var wantRsp []RxResponse
			var wantInfo []ExtraInfo
			for range want {
				got = append(got, b.Request(b.ReqCons()))
				b.Consume(1)
				r := RxResponse{
					ID:     rapid.Uint16().Draw(t, "id"),
					Offset: rapid.Uint16().Draw(t, "offset"),
					Flags:  RxFlags(rapid.Uint16().Draw(t, "flags")),
					Status: Status(rapid.Int16().Draw(t, "status")),
				}
				e := genExtra.Draw(t, "info")
				if rapid.Bool().Draw(t, "extra") {
					slots = append(slots, e.Slot())
				} else {
					slots = append(slots, r.Slot())
				}
				last := slots[len(slots)-1]
				wantRsp = append(wantRsp, last.Response())
				wantInfo = append(wantInfo, last.Extra())
			}
			if diff := cmp.Diff(want, got, ignoreBlank); diff != "" {
				t.Fatalf("requests (-want +got):\n%s", diff)
			}
			b.Commit(slots)
			n, err := f.Responses()
			if err != nil || n != uint32(len(slots)) {
				t.Fatalf("responses = %d, %v, want %d", n, err, len(slots))
			}
			var gotRsp []RxResponse
			var gotInfo []ExtraInfo
			for i := range n {
				s := f.Slot(f.RspCons().Add(i))
				gotRsp = append(gotRsp, s.Response())
				gotInfo = append(gotInfo, s.Extra())
			}
			f.Take(n)
			if diff := cmp.Diff(wantRsp, gotRsp, ignoreBlank); diff != "" {
				t.Fatalf("responses (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(wantInfo, gotInfo, ignoreBlank); diff != "" {
				t.Fatalf("extras (-want +got):\n%s", diff)
			}
		}
	})
}

func TestCtrlRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f, b, _ := ctrlPair(t, near().Draw(t, "start"))
		for range rapid.IntRange(1, 8).Draw(t, "rounds") {
			var want, got []CtrlRequest
			var rsp, back []CtrlResponse
			for range rapid.IntRange(1, CtrlRingSize).Draw(t, "slots") {
				q := CtrlRequest{
					ID:   rapid.Uint16().Draw(t, "id"),
					Type: CtrlType(rapid.Uint16().Draw(t, "type")),
					Data: [3]uint32(rapid.SliceOfN(rapid.Uint32(), 3, 3).Draw(t, "data")),
				}
				f.Put(q)
				want = append(want, q)
			}
			f.Push()
			if n, err := b.Available(); err != nil || n != uint32(len(want)) {
				t.Fatalf("available = %d, %v, want %d", n, err, len(want))
			}
			for range want {
				q := b.Request(b.ReqCons())
				b.Consume(1)
				got = append(got, q)
				rsp = append(rsp, CtrlResponse{ID: q.ID, Type: q.Type, Status: CtrlStatus(q.Data[0]), Data: q.Data[1]})
			}
			if diff := cmp.Diff(want, got, ignoreBlank); diff != "" {
				t.Fatalf("requests (-want +got):\n%s", diff)
			}
			b.Commit(rsp)
			n, err := f.Responses()
			if err != nil || n != uint32(len(rsp)) {
				t.Fatalf("responses = %d, %v, want %d", n, err, len(rsp))
			}
			for i := range n {
				back = append(back, f.Response(f.RspCons().Add(i)))
			}
			f.Take(n)
			if diff := cmp.Diff(rsp, back, ignoreBlank); diff != "" {
				t.Fatalf("responses (-want +got):\n%s", diff)
			}
		}
	})
}

func TestRequestsStayUntilTheyAreAnswered(t *testing.T) {
	f, b, mem := txPair(t, math.MaxUint32-1)
	want := []TxRequest{{Gref: 8, ID: 1, Size: 60}, {Gref: 9, ID: 2, Size: 61}, {Gref: 10, ID: 3, Size: 62}, {Gref: 11, ID: 4, Size: 63}}
	for _, q := range want {
		f.Put(q)
	}
	f.Push()
	b.Consume(3)
	b.Commit([]TxResponse{{ID: 1}})
	if got := b.reqCons.Sub(b.rspProd); got != 2 {
		t.Errorf("unanswered = %d, want 2", got)
	}

	// The backend dies here. Its successor begins after the last answer, and
	// serves what the first had consumed once more.
	next, err := AttachTx(mem)
	if err != nil {
		t.Fatal(err)
	}
	n, err := next.Available()
	if err != nil {
		t.Fatal(err)
	}
	var got []TxRequest
	for range n {
		got = append(got, next.Request(next.ReqCons()))
		next.Consume(1)
	}
	if diff := cmp.Diff(want[1:], got, ignoreBlank); diff != "" {
		t.Errorf("requests after attach (-want +got):\n%s", diff)
	}
}

func TestAttach(t *testing.T) {
	for _, c := range []struct {
		name          string
		reqProd, rsp  Index
		wantErr       error
		wantAvailable uint32
	}{
		{name: "new ring", reqProd: 0, rsp: 0, wantAvailable: 0},
		{name: "live ring", reqProd: 1000, rsp: 990, wantAvailable: 10},
		{name: "full ring", reqProd: 256 + 77, rsp: 77, wantAvailable: 256},
		{name: "full ring across the wrap", reqProd: 100, rsp: Index(math.MaxUint32 - 155), wantAvailable: 256},
		{name: "one slot too many", reqProd: 257, rsp: 0, wantErr: ErrOverflow},
		{name: "one slot too many across the wrap", reqProd: 101, rsp: Index(math.MaxUint32 - 155), wantErr: ErrOverflow},
		{name: "req_prod behind rsp_prod", reqProd: 9, rsp: 10, wantErr: ErrOverflow},
		{name: "req_prod half the world away", reqProd: 1 << 31, rsp: 0, wantErr: ErrOverflow},
	} {
		t.Run(c.name, func(t *testing.T) {
			mem := newMem()
			setWord(mem, wReqProd, uint32(c.reqProd))
			setWord(mem, wRspProd, uint32(c.rsp))
			for ring, attach := range map[string]func() (*backRing, error){
				"tx": func() (*backRing, error) {
					r, err := AttachTx(mem)
					if err != nil {
						return nil, err
					}
					return &r.backRing, nil
				},
				"rx": func() (*backRing, error) {
					r, err := AttachRx(mem)
					if err != nil {
						return nil, err
					}
					return &r.backRing, nil
				},
			} {
				r, err := attach()
				if !errors.Is(err, c.wantErr) {
					t.Fatalf("%s: error %v, want %v", ring, err, c.wantErr)
				}
				if err != nil {
					continue
				}
				n, err := r.Available()
				if err != nil || n != c.wantAvailable {
					t.Errorf("%s: available = %d, %v, want %d", ring, n, err, c.wantAvailable)
				}
				if r.ReqCons() != c.rsp || r.RspProd() != c.rsp {
					t.Errorf("%s: starts at %d and %d, want %d", ring, r.ReqCons(), r.RspProd(), c.rsp)
				}
			}
		})
	}
	t.Run("a control ring is smaller", func(t *testing.T) {
		mem := newMem()
		setWord(mem, wReqProd, CtrlRingSize)
		if _, err := AttachCtrl(mem); err != nil {
			t.Errorf("full ring: %v", err)
		}
		setWord(mem, wReqProd, CtrlRingSize+1)
		if _, err := AttachCtrl(mem); !errors.Is(err, ErrOverflow) {
			t.Errorf("one slot too many: %v", err)
		}
	})
}

// TestAvailable moves req_prod under a backend that has consumed 3 of 5 slots
// and answered 1 of them, at every start that matters.
func TestAvailable(t *testing.T) {
	for _, start := range []Index{0, 1 << 31, math.MaxUint32, math.MaxUint32 - 2, math.MaxUint32 - 255} {
		for _, c := range []struct {
			name string
			prod uint32 // req_prod, from start
			want uint32
			err  error
		}{
			{name: "as it was", prod: 5, want: 2},
			{name: "one more", prod: 6, want: 3},
			{name: "full", prod: 1 + TxRingSize, want: TxRingSize - 2},
			{name: "over", prod: 2 + TxRingSize, err: ErrOverflow},
			{name: "far over", prod: 1 << 31, err: ErrOverflow},
			{name: "taken back to what was consumed", prod: 3, want: 0},
			{name: "taken back behind what was consumed", prod: 2, err: ErrOverflow},
			{name: "taken back behind what was answered", prod: 0, err: ErrOverflow},
			{name: "taken back far", prod: 1<<32 - 300, err: ErrOverflow},
		} {
			f, b, mem := txPair(t, start)
			for i := range 5 {
				f.Put(TxRequest{ID: uint16(i)})
			}
			f.Push()
			b.Consume(3)
			b.Commit([]TxResponse{{}})
			setWord(mem, wReqProd, uint32(start.Add(c.prod)))
			got, err := b.Available()
			if !errors.Is(err, c.err) || got != c.want {
				t.Errorf("start %d, %s: available = %d, %v, want %d, %v", start, c.name, got, err, c.want, c.err)
			}
			if _, err := b.Arm(); !errors.Is(err, c.err) {
				t.Errorf("start %d, %s: arm: %v, want %v", start, c.name, err, c.err)
			}
		}
	}
}

func TestResponses(t *testing.T) {
	for _, start := range []Index{0, math.MaxUint32, math.MaxUint32 - 3} {
		for _, c := range []struct {
			name string
			prod uint32 // rsp_prod, from start
			want uint32
			err  error
		}{
			{name: "none", prod: 2, want: 0},
			{name: "one", prod: 3, want: 1},
			{name: "as many as asked", prod: 6, want: 4},
			{name: "more than asked", prod: 7, err: ErrRspOverflow},
			{name: "taken back", prod: 1, err: ErrRspOverflow},
			{name: "far ahead", prod: 1 << 31, err: ErrRspOverflow},
		} {
			f, _, mem := txPair(t, start)
			for range 6 {
				f.Put(TxRequest{})
			}
			f.Push()
			f.Put(TxRequest{}) // not pushed, so there can be no answer
			setWord(mem, wRspProd, uint32(start.Add(2)))
			f.Take(2)
			setWord(mem, wRspProd, uint32(start.Add(c.prod)))
			got, err := f.Responses()
			if !errors.Is(err, c.err) || got != c.want {
				t.Errorf("start %d, %s: responses = %d, %v, want %d, %v", start, c.name, got, err, c.want, c.err)
			}
		}
	}
}

func TestSetReqProdShowsTheBreach(t *testing.T) {
	f, b, _ := txPair(t, 0)
	f.SetReqProd(1 << 20)
	if _, err := b.Available(); !errors.Is(err, ErrOverflow) {
		t.Errorf("available: %v, want %v", err, ErrOverflow)
	}
}

func TestState(t *testing.T) {
	f, b, _ := txPair(t, 10)
	for range 5 {
		f.Put(TxRequest{})
	}
	f.Push()
	b.Consume(4)
	b.Commit(make([]TxResponse, 2))
	if _, err := b.Arm(); err != nil {
		t.Fatal(err)
	}
	f.Take(1)
	if _, err := f.Arm(); err != nil {
		t.Fatal(err)
	}
	want := RingState{ReqProd: 15, ReqEvent: 15, ReqCons: 14, RspProd: 12, RspEvent: 12}
	if diff := cmp.Diff(want, b.State()); diff != "" {
		t.Errorf("backend (-want +got):\n%s", diff)
	}
	want.ReqCons = 11
	if diff := cmp.Diff(want, f.State()); diff != "" {
		t.Errorf("frontend (-want +got):\n%s", diff)
	}
}

func TestNothingIsPublishedForNothing(t *testing.T) {
	f, b, mem := txPair(t, 0)
	before := append([]byte(nil), mem...)
	if f.Push() {
		t.Error("an empty push notifies")
	}
	if b.Commit(nil) {
		t.Error("an empty tx commit notifies")
	}
	if (&RxBack{}).Commit(nil) || (&CtrlBack{}).Commit(nil) {
		t.Error("an empty commit notifies")
	}
	if diff := cmp.Diff(before, mem); diff != "" {
		t.Errorf("page (-want +got):\n%s", diff)
	}
}
