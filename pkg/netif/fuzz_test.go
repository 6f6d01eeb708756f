// SPDX-License-Identifier: Apache-2.0

package netif

import (
	"encoding/binary"
	"math"
	"testing"

	"github.com/netbackd/netbackd/internal/lab/fuzzloop"
	"github.com/netbackd/netbackd/pkg/xen"
)

// seedPage makes the page of a ring with the given indices and slots for a
// fuzzer to start from.
func seedPage(reqProd, rspProd uint32, slots ...byte) []byte {
	p := make([]byte, 64+len(slots))
	setWord(p, wReqProd, reqProd)
	setWord(p, wReqEvent, rspProd+1)
	setWord(p, wRspProd, rspProd)
	setWord(p, wRspEvent, rspProd+1)
	copy(p[64:], slots)
	return p
}

func seeds(f *testing.F) {
	gso := NewGSO(GSOInfo{Size: 1448, Type: GSOTCPv4})
	packet := []byte{
		8, 0, 0, 0, 0, 0, byte(TxExtraInfo | TxMoreData | TxCsumBlank), 0, 1, 0, 0xff, 0xff,
		byte(gso.Type), byte(gso.Flags), gso.Body[0], gso.Body[1], gso.Body[2], 0, 0, 0, 0, 0, 0, 0,
		9, 0, 0, 0, 0xff, 0x0f, 0, 0, 2, 0, 0xff, 0xff,
	}
	for _, later := range []uint32{0, 3, 256, 257, 1 << 31, math.MaxUint32} {
		f.Add(seedPage(3, 0, packet...), later, uint8(3))
		f.Add(seedPage(1, math.MaxUint32-1, packet...), later, uint8(255))
	}
	f.Add([]byte{}, uint32(0), uint8(0))
	f.Add(seedPage(256, 0), uint32(256), uint8(7))
}

// FuzzTxRing attaches a backend to a page that the fuzzer made and drains it,
// moving req_prod to later half way. Nothing may panic, and no more slots than a
// ring has may ever be found.
func FuzzTxRing(f *testing.F) {
	seeds(f)
	fuzzloop.Fuzz(f, func(t *testing.T, data []byte, later uint32, step uint8) {
		mem := newMem()
		copy(mem, data)
		first := binary.LittleEndian.Uint32(mem[0:])
		b, err := AttachTx(mem)
		if err != nil {
			if Index(first).Sub(Index(word(mem, wRspProd))) <= TxRingSize {
				t.Fatalf("refused a ring within bounds: %v", err)
			}
			return
		}
		var rsp []TxResponse
		drain := func() {
			for total := uint32(0); ; {
				n, err := b.Available()
				if err != nil || n == 0 {
					return
				}
				if total += n; total > 2*TxRingSize {
					t.Fatal("a page that does not change has no end")
				}
				rsp = rsp[:0]
				for range min(n, uint32(step)+1) {
					q := b.Request(b.ReqCons())
					if b.Extra(b.ReqCons()).Type != ExtraType(q.Gref) {
						t.Fatal("request and extra read different slots")
					}
					b.Consume(1)
					rsp = append(rsp, TxResponse{ID: q.ID, Status: StatusOkay})
				}
				total -= n - uint32(len(rsp))
				before := b.RspProd()
				b.Commit(rsp)
				if b.RspProd().Sub(before) != uint32(len(rsp)) || word(mem, wRspProd) != uint32(b.RspProd()) {
					t.Fatal("rsp_prod does not say what was answered")
				}
			}
		}
		drain()
		setWord(mem, wReqProd, later)
		if n, err := b.Available(); err == nil && n > TxRingSize {
			t.Fatalf("%d available", n)
		}
		drain()
		if more, err := b.Arm(); more && err == nil {
			t.Fatal("there is more after all was taken")
		}
	})
}

// FuzzRxRing plays both ends of an rx ring against a page the fuzzer made: a
// backend that attaches to it, and a frontend whose backend wrote it.
func FuzzRxRing(f *testing.F) {
	seeds(f)
	fuzzloop.Fuzz(f, func(t *testing.T, data []byte, later uint32, step uint8) {
		mem := newMem()
		copy(mem, data)
		if b, err := AttachRx(mem); err == nil {
			n, err := b.Available()
			if err != nil || n > RxRingSize {
				t.Fatalf("available = %d, %v after attach", n, err)
			}
			slots := make([]RxSlot, 0, RxRingSize)
			for range n {
				q := b.Request(b.ReqCons())
				b.Consume(1)
				slots = append(slots, RxResponse{ID: q.ID, Status: Status(q.Gref)}.Slot())
			}
			b.Commit(slots)
			setWord(mem, wReqProd, later)
			if n, err := b.Available(); err == nil && n > RxRingSize {
				t.Fatalf("%d available", n)
			}
		}

		front, err := InitRx(mem)
		if err != nil {
			t.Fatal(err)
		}
		posted := uint32(step)
		for i := range posted {
			front.Put(RxRequest{ID: uint16(i), Gref: xen.Gref(i)})
		}
		front.Push()
		copy(mem, data)
		for _, prod := range []uint32{word(mem, wRspProd), later} {
			setWord(mem, wRspProd, prod)
			n, err := front.Responses()
			if err != nil {
				continue
			}
			if n > posted {
				t.Fatalf("%d responses to %d requests", n, posted)
			}
			for range n {
				s := front.Slot(front.RspCons())
				if s.Response().Slot() != s || s.Extra().Slot() != s {
					t.Fatalf("slot %x changes when it is decoded", s)
				}
				front.Take(1)
			}
			posted -= n
		}
	})
}

// FuzzCtrlRing drains a control ring the fuzzer made.
func FuzzCtrlRing(f *testing.F) {
	seeds(f)
	fuzzloop.Fuzz(f, func(t *testing.T, data []byte, later uint32, step uint8) {
		mem := newMem()
		copy(mem, data)
		b, err := AttachCtrl(mem)
		if err != nil {
			return
		}
		for _, prod := range []uint32{word(mem, wReqProd), later} {
			setWord(mem, wReqProd, prod)
			n, err := b.Available()
			if err != nil {
				return
			}
			if n > CtrlRingSize {
				t.Fatalf("%d available", n)
			}
			for range min(n, uint32(step)) {
				q := b.Request(b.ReqCons())
				b.Consume(1)
				b.Commit([]CtrlResponse{{ID: q.ID, Type: q.Type, Status: CtrlNotSupported}})
			}
		}
	})
}
