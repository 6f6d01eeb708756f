// SPDX-License-Identifier: Apache-2.0

package ctrlring

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/netbackd/netbackd/pkg/netif"
)

// referenceAck is the response to a message on a byte-stream ring, and its effect
// on h, as the proposal reads it, with the message in one piece.
func referenceAck(h *hashState, typ uint32, payload []byte) []byte {
	if typ < 2 || typ > 5 {
		return ack(uint64(notSupported))
	}
	if len(payload) > 1024 {
		return ack(uint64(overflow))
	}
	switch n := len(payload); {
	case typ == 2 && n == 0:
		return ack(0, 15)
	case typ == 3 && (n == 4 || n == 8):
		var b [8]byte
		copy(b[:], payload)
		if v := binary.LittleEndian.Uint64(b[:]); v < 16 {
			h.Types = uint32(v)
			return ack(0)
		}
	case typ == 4 && n == 40:
		h.Key = bytes.Clone(payload)
		return ack(0)
	case typ == 5 && (n == 8 || n == 16 || n == 32 || n == 64 || n == 128 || n == 256 || n == 512 || n == 1024):
		var table []uint32
		for i := 0; i < n; i += 8 {
			v := binary.LittleEndian.Uint64(payload[i:])
			if v >= queues {
				return ack(uint64(invalidParam))
			}
			table = append(table, uint32(v))
		}
		h.Table = table
		return ack(0)
	}
	return ack(uint64(invalidParam))
}

// drawMessage is a message of a frontend that knows the protocol and does not
// always keep to it. b decides.
func drawMessage(kind, size, seed byte) (typ uint32, payload []byte) {
	rng := rand.New(rand.NewPCG(uint64(seed), uint64(size)))
	fill := func(n int) []byte {
		p := make([]byte, n)
		for i := range p {
			p[i] = byte(rng.Uint32())
		}
		return p
	}
	values := func(n int, below uint64) (p []byte) {
		for range n {
			p = append(p, words64(rng.Uint64N(below))...)
		}
		return p
	}
	switch kind % 10 {
	case 0:
		return 2, nil
	case 1:
		return 3, values(1, 18)
	case 2:
		return 3, values(1, 17)[:4]
	case 3:
		return 4, fill(40)
	case 4:
		return 5, values(1<<(size%8), queues)
	case 5:
		return 5, values(1+int(size)%150, queues+uint64(seed%16/15))
	case 6:
		return uint32(2 + size%4), fill(int(seed) * 20)
	case 7:
		return uint32(size), fill(int(seed))
	case 8:
		return uint32(2 + size%4), fill(rng.IntN(1 << 14))
	}
	return rng.Uint32(), fill(rng.IntN(100))
}

// streamWorld plays a conversation over a byte-stream ring and knows what must
// come of it. Messages are cut anywhere, responses taken as slowly as can be, the
// daemon killed at all moments.
type streamWorld struct {
	d        *daemon
	f        *rawStream
	hash     hashState
	calls    Calls
	wantHash hashState
	want     []byte
}

func newStreamWorld(t testing.TB) *streamWorld {
	w := &streamWorld{d: &daemon{t: t, mem: newMem(), protocol: Stream}}
	if _, err := Init(w.d.mem, Stream, 0); err != nil {
		t.Fatal(err)
	}
	w.f = newRawStream(t, w.d.mem)
	w.calls = Calls{Hash: &w.hash}
	w.calls.Start(Stream)
	w.wantHash = w.hash.clone()
	w.d.start(w.calls.Do)
	return w
}

func (w *streamWorld) send(typ uint32, payload []byte) {
	w.f.pending = append(w.f.pending, message(StreamType(typ), payload...)...)
	w.want = append(w.want, referenceAck(&w.wantHash, typ, payload)...)
}

// finish lets both ends run until all is said. The frontend goes on only when it
// was sent an event, and so does the backend.
func (w *streamWorld) finish() {
	t := w.d.t
	t.Helper()
	w.d.notified = true // what was written before may still be unheard of
	for range 1 << 16 {
		wrote, read := w.f.write(streamRing), w.f.read(streamRing)
		if len(w.f.pending) == 0 && len(w.f.got) == len(w.want) {
			break
		}
		if wrote == 0 && read == 0 && !w.d.notified {
			t.Fatalf("both ends sleep: %d octets to write, %d of %d read", len(w.f.pending), len(w.f.got), len(w.want))
		}
		w.d.notified = false
		w.d.serve()
	}
	if !bytes.Equal(w.f.got, w.want) {
		t.Fatalf("responses % x, want % x", w.f.got, w.want)
	}
	if diff := cmp.Diff(w.wantHash, w.hash); diff != "" {
		t.Fatalf("hashing (-want +got):\n%s", diff)
	}
	if _, err := w.d.server.Serve(); err != nil {
		t.Fatal(err)
	}
}

// play does what a script says.
func (w *streamWorld) play(script []byte) {
	next := func() (b byte) {
		if len(script) > 0 {
			b, script = script[0], script[1:]
		}
		return b
	}
	for messages := 0; len(script) > 0; {
		switch op := next(); op % 8 {
		case 0, 1:
			if messages++; messages <= 16 {
				w.send(drawMessage(next(), next(), next()))
			}
		case 2:
			w.f.write(int(next()))
		case 3:
			w.f.write(8 * int(next()))
		case 4:
			w.f.read(int(next()))
		case 5, 6:
			w.d.serve()
		case 7:
			w.d.kill(int(next()) % moments)
		}
	}
	w.finish()
}

var streamScripts = [][]byte{
	{},
	{0, 0, 0, 0, 2, 8, 5, 4, 100},
	{0, 4, 7, 1, 3, 128, 5, 7, 2, 3, 255, 5},
	{0, 3, 0, 9, 2, 1, 5, 2, 7, 5, 2, 1, 5, 7, 0, 2, 38, 5, 7, 3, 2, 1, 7, 5},
	{0, 8, 2, 77, 0, 0, 0, 0, 3, 255, 5, 7, 4, 3, 255, 7, 3},
	{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 24, 7, 1, 7, 2, 7, 3, 7, 4, 7, 5, 4, 9, 5},
	{0, 9, 200, 3, 3, 255, 5, 0, 6, 3, 200, 3, 255, 5, 5},
}

// FuzzStreamRing compares what the two ends of a byte-stream ring make of a
// conversation with what a model makes of it.
func FuzzStreamRing(f *testing.F) {
	for _, s := range streamScripts {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, script []byte) {
		if len(script) > 400 {
			t.Skip("longer than it takes")
		}
		newStreamWorld(t).play(script)
	})
}

// TestStreamModel does the same with conversations that rapid finds and shrinks.
func TestStreamModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := newStreamWorld(t)
		rt.Repeat(map[string]func(*rapid.T){
			"message": func(rt *rapid.T) {
				if len(w.f.pending) < 1<<13 {
					w.send(drawMessage(rapid.Byte().Draw(rt, "kind"), rapid.Byte().Draw(rt, "size"), rapid.Byte().Draw(rt, "seed")))
				}
			},
			"write": func(rt *rapid.T) { w.f.write(rapid.IntRange(1, streamRing).Draw(rt, "octets")) },
			"read":  func(rt *rapid.T) { w.f.read(rapid.IntRange(1, 64).Draw(rt, "octets")) },
			"serve": func(*rapid.T) { w.d.serve() },
			"kill":  func(rt *rapid.T) { w.d.kill(rapid.IntRange(0, moments-1).Draw(rt, "moment")) },
			"": func(rt *rapid.T) {
				if !bytes.HasPrefix(w.want, w.f.got) {
					rt.Fatalf("responses % x, want % x", w.f.got, w.want)
				}
			},
		})
		w.finish()
	})
}

// TestSlotModel has a frontend keep several messages on a slot ring, and kills
// the daemon. Each message is answered once, in order, with its own id, and each
// that counts is counted once.
func TestSlotModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		mem := newMem()
		front, err := Init(mem, Slot, 0)
		if err != nil {
			rt.Fatal(err)
		}
		f := front.(*SlotFront).Ring()
		d := &daemon{t: t, mem: mem, protocol: Slot}
		d.start(func(q Request) Response {
			if q.Type != netif.CtrlGetHashFlags {
				return Response{Status: notSupported, Data: 1}
			}
			d.done++
			return Response{Data: uint32(d.done)}
		})
		var want, got []netif.CtrlResponse
		counted := uint32(0)
		rt.Repeat(map[string]func(*rapid.T){
			"messages": func(rt *rapid.T) {
				for range rapid.Uint32Range(0, min(f.Free(), 5)).Draw(rt, "n") {
					q := netif.CtrlRequest{
						ID:   rapid.Uint16().Draw(rt, "id"),
						Type: netif.CtrlType(rapid.Uint16Range(0, 2).Draw(rt, "type")),
					}
					f.Put(q)
					w := netif.CtrlResponse{ID: q.ID, Type: q.Type, Status: notSupported}
					if q.Type == netif.CtrlGetHashFlags {
						counted++
						w.Status, w.Data = success, counted
					}
					want = append(want, w)
				}
				f.Push()
			},
			"serve":   func(*rapid.T) { d.serve() },
			"kill":    func(rt *rapid.T) { d.kill(rapid.IntRange(0, moments-1).Draw(rt, "moment")) },
			"receive": func(*rapid.T) { got = append(got, responses(t, f)...) },
		})
		d.serve()
		got = append(got, responses(t, f)...)
		if diff := cmp.Diff(want, got); diff != "" {
			rt.Fatalf("responses (-want +got):\n%s", diff)
		}
	})
}

// FuzzSlotRing serves a slot ring that a frontend filled with whatever it likes,
// out of pages with whatever it likes, and moves req_prod.
func FuzzSlotRing(f *testing.F) {
	page := func(prod uint32, reqs ...netif.CtrlRequest) []byte {
		b := make([]byte, 64)
		binary.LittleEndian.PutUint32(b[0:], prod)
		binary.LittleEndian.PutUint32(b[4:], 1)
		binary.LittleEndian.PutUint32(b[12:], 1)
		for _, q := range reqs {
			b = append(b, words32(uint32(q.ID)|uint32(q.Type)<<16, q.Data[0], q.Data[1], q.Data[2])...)
		}
		return b
	}
	f.Add(page(3, netif.CtrlRequest{ID: 1, Type: 7, Data: [3]uint32{1}}, netif.CtrlRequest{ID: 2, Type: 3, Data: [3]uint32{1, 40}},
		netif.CtrlRequest{ID: 3, Type: 6, Data: [3]uint32{2, 0xffffffff, 1}}), words32(1, 2, 3), uint32(5))
	f.Add(page(2, netif.CtrlRequest{ID: 1, Type: 9, Data: [3]uint32{0, 1, 512}}, netif.CtrlRequest{ID: 2, Type: 10, Data: [3]uint32{0, 1, 512}}),
		listOf(netif.GrefEntry{Ref: 7}, netif.GrefEntry{Ref: 8, Flags: 1}), uint32(200))
	f.Add(page(128), []byte{}, uint32(128))
	f.Add(page(0xffffffff), []byte{}, uint32(0))
	f.Fuzz(func(t *testing.T, data, granted []byte, later uint32) {
		mem := newMem()
		copy(mem, data)
		var pages guestPages
		pages.grant(1, false, granted)
		pages.grant(2, true, granted)
		var hash hashState
		var grefs grefState
		calls := Calls{Domid: domid, Mapper: &pages, Hash: &hash, Grefs: &grefs}
		b, err := Attach(mem, Slot, 0)
		if err != nil {
			return
		}
		done := 0
		s := Server{Ring: b, Notify: func() error { return nil }, Do: func(q Request) Response {
			done++
			r := calls.Do(q)
			if pages.mapped != 0 {
				t.Fatalf("%v left %d pages mapped", q, pages.mapped)
			}
			if r.Status > overflow || (q.Type == 0 || q.Type > 10) && r.Status != notSupported {
				t.Fatalf("%v: %v", q, r)
			}
			return r
		}}
		p, err := newPage(mem)
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			before, rsp := done, p.load(2)
			more, err := s.Serve()
			if n := done - before; n > MaxPerWake || err == nil && p.load(2)-rsp != uint32(n) {
				t.Fatalf("%d messages done, rsp_prod moved by %d", n, p.load(2)-rsp)
			}
			if err == nil && !more && p.load(0) != p.load(2) {
				t.Fatalf("sleeps with req_prod %d and rsp_prod %d", p.load(0), p.load(2))
			}
			p.publish(0, later)
		}
		if len(hash.Key) > 40 || len(hash.Table) > 128 || tooHigh(hash.Table) {
			t.Fatalf("hashing %+v", hash)
		}
	})
}

// FuzzRestore serves rings out of records and pages that nobody has written.
func FuzzRestore(f *testing.F) {
	add := func(s State, mem []byte) {
		b, err := s.MarshalBinary()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, mem)
	}
	add(State{Protocol: Slot, recorded: true, reply: counting(12)}, words32(1, 1, 0, 1))
	add(State{Protocol: Stream, recorded: true, index: 8, message: words32(5, 8)}, words32(8, 16, 0, 0))
	add(State{Protocol: Stream, recorded: true, rsp: 8, reply: ack(0)}, words32(0, 0, 8, 16))
	add(State{Protocol: Stream, Width: WidthDeclared, recorded: true, message: []byte{4, 0, 0xff, 0xff}, skip: 65535}, words32(0, 1000, 0, 0))
	add(State{Protocol: Stream}, words32(5, 700, 5, 9))
	f.Fuzz(func(t *testing.T, record, data []byte) {
		var st State
		if st.UnmarshalBinary(record) != nil {
			return
		}
		mem := newMem()
		copy(mem, data)
		b, err := Restore(mem, st)
		if err != nil {
			return
		}
		var hash hashState
		calls := Calls{Hash: &hash}
		calls.Start(b.Protocol())
		s := Server{Ring: b, Do: calls.Do, Notify: func() error { return nil }, Save: func(s State) error {
			raw, err := s.MarshalBinary()
			if err != nil || len(raw) > StateSize {
				t.Fatalf("%d octets, %v", len(raw), err)
			}
			var again State
			if err := again.UnmarshalBinary(raw); err != nil {
				t.Fatal(err)
			}
			return nil
		}}
		for range 4 {
			if _, err := s.Serve(); err != nil {
				return
			}
		}
	})
}

// FuzzListPage carries out ADD_GREF_MAPPING and DEL_GREF_MAPPING of lists in
// pages of any content, and looks at what becomes of the page.
func FuzzListPage(f *testing.F) {
	f.Add(listOf(netif.GrefEntry{Ref: 1}, netif.GrefEntry{Ref: 1}), uint32(2), true)
	f.Add(listOf(netif.GrefEntry{Ref: 666}), uint32(1), false)
	f.Add([]byte{}, uint32(512), true)
	f.Add([]byte{1}, uint32(513), true)
	f.Add([]byte{1}, uint32(0x20000000), false)
	f.Fuzz(func(t *testing.T, content []byte, n uint32, del bool) {
		var pages guestPages
		pages.grant(1, false, content)
		before := bytes.Clone(pages.pages[1])
		var grefs grefState
		c := Calls{Domid: domid, Mapper: &pages, Grefs: &grefs}
		q := Request{Protocol: Slot, Type: netif.CtrlAddGrefMapping, Data: [3]uint32{1, 1, n}}
		added := c.Do(q)
		if n > 512 && (added.Status != invalidParam || grefs.Calls != 0) {
			t.Fatalf("%d entries: %v", n, added)
		}
		if !bytes.Equal(before, pages.pages[1]) {
			t.Fatal("the list was written")
		}
		there := len(grefs.Mapped[1])
		if !del {
			return
		}
		q.Type = netif.CtrlDelGrefMapping
		r := c.Do(q)
		if n > 512 {
			if r.Status != invalidParam || !bytes.Equal(before, pages.pages[1]) {
				t.Fatalf("%d entries: %v", n, r)
			}
			return
		}
		if r.Status != success || int(r.Data) != there || len(grefs.Mapped[1]) != 0 {
			t.Fatalf("del: %v with %d added", r, there)
		}
		for i, b := range pages.pages[1] {
			status := i < int(n)*8 && i%8 >= 6
			if !status && b != before[i] {
				t.Fatalf("octet %d of the list was written", i)
			}
			if status && (i%8 == 7 && b != 0 || i%8 == 6 && b != byte(success) && b != byte(invalidParam)) {
				t.Fatalf("octet %d of a status is %d", i, b)
			}
		}
	})
}
