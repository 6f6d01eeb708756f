// SPDX-License-Identifier: Apache-2.0

package ctrlring

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/netbackd/netbackd/internal/lab/fuzzloop"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xen"
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
	if _, err := Init(w.d.mem, Stream); err != nil {
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
			t.Fatalf("both ends sleep: %d bytes to write, %d of %d read", len(w.f.pending), len(w.f.got), len(w.want))
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
	if err := w.d.server.serve(); err != nil {
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
	fuzzloop.Fuzz(f, func(t *testing.T, script []byte) {
		newStreamWorld(t).play(script[:min(len(script), 400)])
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
			"write": func(rt *rapid.T) { w.f.write(rapid.IntRange(1, streamRing).Draw(rt, "bytes")) },
			"read":  func(rt *rapid.T) { w.f.read(rapid.IntRange(1, 64).Draw(rt, "bytes")) },
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
		front, err := Init(mem, Slot)
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

// slotModel models the messages on a slot ring as netif.h describes them: what
// they leave behind and what is answered. It decodes them by itself.
type slotModel struct {
	hash  hashState
	grefs grefState
	pages map[xen.Gref][]byte // that of gref 2 is read-only
}

// bytesAt returns the first n bytes of a page, if it is granted.
func (m *slotModel) bytesAt(ref xen.Gref, n int) ([]byte, bool) {
	if n == 0 {
		return nil, true // the reference is not used
	}
	page, ok := m.pages[ref]
	return page[:min(n, len(page))], ok
}

func (m *slotModel) do(q [16]byte) (rsp [12]byte) {
	le := binary.LittleEndian
	typ, a, b, c := le.Uint16(q[2:]), le.Uint32(q[4:]), le.Uint32(q[8:]), le.Uint32(q[12:])
	status, data := m.message(typ, a, b, c)
	copy(rsp[:4], q[:4])
	le.PutUint32(rsp[4:], uint32(status))
	le.PutUint32(rsp[8:], data)
	return rsp
}

func (m *slotModel) message(typ uint16, a, b, c uint32) (status netif.CtrlStatus, data uint32) {
	le := binary.LittleEndian
	switch typ {
	case 1:
		if m.hash.Algorithm == 0 {
			return notSupported, 0
		}
		return success, 15
	case 2:
		return m.hash.SetHashFlags(a), 0
	case 3:
		key, ok := m.bytesAt(xen.Gref(a), int(min(b, 4096)))
		switch {
		case b > 4096 || b <= 40 && !ok:
			return invalidParam, 0
		case b > 40:
			return overflow, 0
		}
		m.hash.Key = bytes.Clone(key)
		return success, 0
	case 4:
		return success, 128
	case 5:
		return m.hash.SetHashMappingSize(a), 0
	case 6:
		page, ok := m.bytesAt(xen.Gref(a), 4*int(min(b, 1024)))
		if b > 1024 || !ok {
			return invalidParam, 0
		}
		var table []uint32
		for ; len(page) > 0; page = page[4:] {
			table = append(table, le.Uint32(page))
		}
		return m.hash.SetHashMapping(c, table), 0
	case 7:
		return m.hash.SetHashAlgorithm(a), 0
	case 8:
		if a >= queues {
			return invalidParam, 0
		}
		return success, 512
	case 9, 10:
		page, ok := m.bytesAt(xen.Gref(b), 8*int(min(c, 512)))
		if c > 512 || !ok || typ == 10 && c > 0 && b == 2 {
			return invalidParam, 0
		}
		var list []netif.GrefEntry
		for e := page; len(e) > 0; e = e[8:] {
			list = append(list, netif.GrefEntry{Ref: xen.Gref(le.Uint32(e)), Flags: le.Uint16(e[4:])})
		}
		if typ == 9 {
			return m.grefs.AddGrefMapping(a, list), 0
		}
		n, status := m.grefs.DelGrefMapping(a, list)
		if status != success {
			return status, 0
		}
		for i, e := range list {
			le.PutUint16(page[8*i+6:], e.Status)
		}
		return success, n
	}
	return notSupported, 0
}

// FuzzSlotRing serves a slot ring that a frontend filled with any bytes,
// out of pages with any bytes, and moves req_prod. A model says what is to
// be in the ring, in the pages and in force.
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
	request := func(typ netif.CtrlType, data ...uint32) (q netif.CtrlRequest) {
		q.ID, q.Type = uint16(100+typ), typ
		copy(q.Data[:], data)
		return q
	}
	f.Add(page(5, request(1), request(7, 1), request(3, 1, 40), request(5, 9), request(6, 2, 0xffffffff, 1)), words32(1, 2, 3), uint32(5))
	f.Add(page(6, request(7, 1), request(1), request(2, 15), request(3, 1, 3), request(5, 8), request(6, 1, 3, 2)), words32(1, 2, 3), uint32(7))
	f.Add(page(5, request(8, 3), request(9, 0, 1, 2), request(10, 0, 1, 2), request(10, 0, 2, 3), request(8, 4)),
		listOf(netif.GrefEntry{Ref: 7}, netif.GrefEntry{Ref: 8, Flags: 1}), uint32(200))
	f.Add(page(5, request(3, 3, 41), request(3, 3, 4097), request(3, 1, 40), request(5, 128), request(5, 129)), []byte{1}, uint32(5))
	f.Add(page(4, request(9, 0, 3, 2), request(9, 0, 1, 513), request(9, 9, 9, 0), request(11)), []byte{}, uint32(128))
	f.Add(page(128), []byte{}, uint32(128))
	f.Add(page(0xffffffff), []byte{}, uint32(0))
	fuzzloop.Fuzz(f, func(t *testing.T, data, granted []byte, later uint32) {
		mem := newMem()
		copy(mem, data)
		pages := newPages(t)
		pages.grant(1, false, granted)
		pages.grant(2, true, granted)
		model := slotModel{pages: map[xen.Gref][]byte{1: filled(granted), 2: filled(granted)}}
		var hash hashState
		var grefs grefState
		calls := Calls{Domid: domid, Mapper: pages.Gntdev(), Hash: &hash, Grefs: &grefs}
		b, err := Attach(mem, Slot)
		if err != nil {
			return
		}
		s := server{ring: b, notify: func() {}, do: func(q Request) Response {
			r := calls.Do(q)
			if n := pages.Usage().Pages; n != 0 {
				t.Fatalf("%v left %d pages mapped", q, n)
			}
			return r
		}}
		p, err := newPage(mem)
		if err != nil {
			t.Fatal(err)
		}
		slot := func(i uint32) []byte { return mem[64+16*(i%netif.CtrlRingSize):] }
		broken := false
		for range 3 {
			from, to := p.load(2), p.load(0)
			broken = broken || to-from > netif.CtrlRingSize
			var want [][12]byte
			if !broken {
				for i := from; i != to; i++ {
					want = append(want, model.do([16]byte(slot(i))))
				}
			}
			if err := s.serve(); (err != nil) != broken {
				t.Fatalf("req_prod %d, rsp_prod %d: %v", to, from, err)
			}
			if n := p.load(2) - from; int(n) != len(want) {
				t.Fatalf("%d responses, want %d", n, len(want))
			}
			for k, w := range want {
				if got := [12]byte(slot(from + uint32(k))); got != w {
					t.Fatalf("response %d is % x, want % x", k, got, w)
				}
			}
			p.publish(0, later)
		}
		if diff := cmp.Diff(model.hash, hash); diff != "" {
			t.Fatalf("hashing (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(model.grefs.Mapped, grefs.Mapped); diff != "" {
			t.Fatalf("static grants (-want +got):\n%s", diff)
		}
		for ref, want := range model.pages {
			if got := pages.Page(ref); !bytes.Equal(got, want) {
				t.Fatalf("page %d is % x, want % x", ref, got, want)
			}
		}
	})
}

// FuzzRestore serves rings out of random records and pages.
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
	add(State{Protocol: Stream, recorded: true, message: words32(4, 65535), skip: 65535}, words32(0, 1000, 0, 0))
	add(State{Protocol: Stream}, words32(5, 700, 5, 9))
	fuzzloop.Fuzz(f, func(t *testing.T, record, data []byte) {
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
		s := server{ring: b, do: calls.Do, notify: func() {}, save: func(s State) error {
			raw, err := s.MarshalBinary()
			if err != nil || len(raw) > StateSize {
				t.Fatalf("%d bytes, %v", len(raw), err)
			}
			var again State
			if err := again.UnmarshalBinary(raw); err != nil {
				t.Fatal(err)
			}
			return nil
		}}
		for range 4 {
			if err := s.serve(); err != nil {
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
	fuzzloop.Fuzz(f, func(t *testing.T, content []byte, n uint32, del bool) {
		pages := newPages(t)
		pages.grant(1, false, content)
		before := bytes.Clone(pages.Page(1))
		var grefs grefState
		c := Calls{Domid: domid, Mapper: pages.Gntdev(), Grefs: &grefs}
		q := Request{Protocol: Slot, Type: netif.CtrlAddGrefMapping, Data: [3]uint32{1, 1, n}}
		added := c.Do(q)
		if n > 512 && (added.Status != invalidParam || grefs.Calls != 0) {
			t.Fatalf("%d entries: %v", n, added)
		}
		if !bytes.Equal(before, pages.Page(1)) {
			t.Fatal("the list was written")
		}
		there := len(grefs.Mapped[1])
		if !del {
			return
		}
		q.Type = netif.CtrlDelGrefMapping
		r := c.Do(q)
		if n > 512 {
			if r.Status != invalidParam || !bytes.Equal(before, pages.Page(1)) {
				t.Fatalf("%d entries: %v", n, r)
			}
			return
		}
		if r.Status != success || int(r.Data) != there || len(grefs.Mapped[1]) != 0 {
			t.Fatalf("del: %v with %d added", r, there)
		}
		for i, b := range pages.Page(1) {
			status := i < int(n)*8 && i%8 >= 6
			if !status && b != before[i] {
				t.Fatalf("byte %d of the list was written", i)
			}
			if status && (i%8 == 7 && b != 0 || i%8 == 6 && b != byte(success) && b != byte(invalidParam)) {
				t.Fatalf("byte %d of a status is %d", i, b)
			}
		}
	})
}
