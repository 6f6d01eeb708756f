// SPDX-License-Identifier: Apache-2.0

package ctrlring

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"go.uber.org/goleak"

	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xentest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	success      = netif.CtrlSuccess
	notSupported = netif.CtrlNotSupported
	invalidParam = netif.CtrlInvalidParameter
	overflow     = netif.CtrlBufferOverflow
)

const (
	domid   = 5
	queues  = 4
	allHash = 1<<netif.HashIPv4 | 1<<netif.HashIPv4TCP | 1<<netif.HashIPv6 | 1<<netif.HashIPv6TCP
)

func newMem() []byte { return make([]byte, netif.PageSize) }

// hashState is a HashHandler that does what the header says and no more.
type hashState struct {
	Algorithm, Types uint32
	Key              []byte
	Table            []uint32
}

func (h *hashState) GetHashFlags() (uint32, netif.CtrlStatus) {
	if h.Algorithm == netif.HashAlgorithmNone {
		return 77, notSupported // data of a failure must not get out
	}
	return allHash, success
}

func (h *hashState) SetHashFlags(types uint32) netif.CtrlStatus {
	if h.Algorithm == netif.HashAlgorithmNone || types&^uint32(allHash) != 0 {
		return invalidParam
	}
	h.Types = types
	return success
}

func (h *hashState) SetHashKey(key []byte) netif.CtrlStatus {
	if len(key) > 40 {
		return overflow
	}
	h.Key = slices.Clone(key)
	return success
}

func (h *hashState) GetHashMappingSize() (uint32, netif.CtrlStatus) { return 128, success }

func (h *hashState) SetHashMappingSize(n uint32) netif.CtrlStatus {
	if n > 128 {
		return invalidParam
	}
	h.Table = make([]uint32, n)
	return success
}

func (h *hashState) SetHashMapping(offset uint32, part []uint32) netif.CtrlStatus {
	if uint64(offset)+uint64(len(part)) > uint64(len(h.Table)) || tooHigh(part) {
		return invalidParam
	}
	copy(h.Table[offset:], part)
	return success
}

func (h *hashState) ReplaceHashMapping(table []uint32) netif.CtrlStatus {
	if tooHigh(table) {
		return invalidParam
	}
	h.Table = slices.Clone(table)
	return success
}

func tooHigh(table []uint32) bool {
	return slices.ContainsFunc(table, func(q uint32) bool { return q >= queues })
}

func (h *hashState) SetHashAlgorithm(a uint32) netif.CtrlStatus {
	if a > netif.HashAlgorithmToeplitz {
		return invalidParam
	}
	h.Algorithm = a
	return success
}

func (h *hashState) clone() hashState {
	c := *h
	c.Key, c.Table = slices.Clone(h.Key), slices.Clone(h.Table)
	return c
}

// grefState is a GrefHandler that takes any gref but 666, and does not give up
// those in flight.
type grefState struct {
	Mapped   [queues]map[xen.Gref]bool
	InFlight []xen.Gref
	Calls    int
}

func (g *grefState) GetGrefMappingSize(queue uint32) (uint32, netif.CtrlStatus) {
	if queue >= queues {
		return 77, invalidParam
	}
	return 512, success
}

func (g *grefState) AddGrefMapping(queue uint32, list []netif.GrefEntry) netif.CtrlStatus {
	g.Calls++
	if queue >= queues {
		return invalidParam
	}
	for _, e := range list {
		if e.Ref == 666 {
			return invalidParam
		}
	}
	for _, e := range list {
		if g.Mapped[queue] == nil {
			g.Mapped[queue] = map[xen.Gref]bool{}
		}
		g.Mapped[queue][e.Ref] = e.Flags&netif.GrefReadOnly != 0
	}
	return success
}

func (g *grefState) DelGrefMapping(queue uint32, list []netif.GrefEntry) (n uint32, _ netif.CtrlStatus) {
	g.Calls++
	if queue >= queues {
		for i := range list {
			list[i].Status = 0x5555 // of a list that was not worked on, nothing is written
		}
		return 77, invalidParam
	}
	for i := range list {
		ref := list[i].Ref
		if _, there := g.Mapped[queue][ref]; !there || slices.Contains(g.InFlight, ref) {
			list[i].Status = uint16(invalidParam)
			continue
		}
		delete(g.Mapped[queue], ref)
		list[i].Status = uint16(success)
		n++
	}
	return n, success
}

// guestPages is a guest and the grefs it granted.
type guestPages struct {
	*xentest.Guest
	refs []xen.Gref
}

func newPages(t xentest.TB) *guestPages { return &guestPages{Guest: xentest.Start(t, domid)} }

func (g *guestPages) grant(ref xen.Gref, ro bool, b []byte) {
	prot := gntdev.ReadWrite
	if ro {
		prot = gntdev.ReadOnly
	}
	copy(g.GrantAt(ref, prot), filled(b))
	g.refs = append(g.refs, ref)
}

// filled is a page that begins with b.
func filled(b []byte) []byte {
	p := bytes.Repeat([]byte{0xee}, netif.PageSize)
	copy(p, b)
	return p
}

func words32(v ...uint32) (b []byte) {
	for _, w := range v {
		b = binary.LittleEndian.AppendUint32(b, w)
	}
	return b
}

func words64(v ...uint64) (b []byte) {
	for _, w := range v {
		b = binary.LittleEndian.AppendUint64(b, w)
	}
	return b
}

func listOf(list ...netif.GrefEntry) (b []byte) {
	for _, e := range list {
		b = binary.LittleEndian.AppendUint32(b, uint32(e.Ref))
		b = binary.LittleEndian.AppendUint16(b, e.Flags)
		b = binary.LittleEndian.AppendUint16(b, e.Status)
	}
	return b
}

func counting(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i + 1)
	}
	return b
}

func request(typ netif.CtrlType, data ...uint32) Request {
	r := Request{Type: typ}
	copy(r.Data[:], data)
	return r
}

// rig is both ends of a control ring and all that is behind it.
type rig struct {
	t      testing.TB
	mem    []byte
	front  Front
	back   Back
	hash   hashState
	grefs  grefState
	pages  *guestPages
	calls  Calls
	server server
	events int // sent to the frontend
}

func newRig(t testing.TB, p Protocol) *rig {
	t.Helper()
	r := &rig{t: t, mem: newMem(), pages: newPages(t)}
	var err error
	if r.front, err = Init(r.mem, p); err != nil {
		t.Fatal(err)
	}
	if got, err := Sniff(r.mem); err != nil || got != p {
		t.Fatalf("sniffed %v, %v, want %v", got, err, p)
	}
	if r.back, err = Attach(r.mem, p); err != nil {
		t.Fatal(err)
	}
	if r.front.Protocol() != p || r.back.Protocol() != p {
		t.Fatalf("ends of %v and %v rings, want %v", r.front.Protocol(), r.back.Protocol(), p)
	}
	r.calls = Calls{Domid: domid, Mapper: r.pages.Gntdev(), Hash: &r.hash, Grefs: &r.grefs}
	r.calls.Start(p)
	r.server = server{ring: r.back, do: r.calls.Do, notify: func() { r.events++ }}
	return r
}

// server serves a ring as a daemon does: it records each state before the frontend
// can see what it is of.
type server struct {
	ring   Back
	do     func(Request) Response
	save   func(State) error // nil: nothing is recorded
	notify func()
}

// serve carries out the messages that are on the ring.
func (s *server) serve() error {
	for {
		if err := s.flush(); err != nil { // of a response that could not be recorded
			return err
		}
		q, ok, err := s.ring.Next()
		if err != nil {
			return err
		}
		if ok {
			s.ring.Reply(s.do(q))
		}
		if err := s.flush(); err != nil || !ok {
			return err
		}
	}
}

func (s *server) flush() error {
	notify, err := flush(s.ring, s.save)
	if notify {
		s.notify()
	}
	return err
}

// flush records what Flush is about to publish, and publishes it.
func flush(b Back, save func(State) error) (notify bool, err error) {
	if s, ok := b.Unflushed(); ok && save != nil {
		if err := save(s); err != nil {
			return false, err
		}
	}
	return b.Flush()
}

// serve is an event at the backend. It fails the test if the ring does.
func (r *rig) serve() {
	r.t.Helper()
	if err := r.server.serve(); err != nil {
		r.t.Fatal(err)
	}
}

// call sends a message and waits for its response, as strictly by events as the
// protocol says: an end that was sent none sleeps.
func (r *rig) call(q Request) Response {
	r.t.Helper()
	if err := r.front.Send(q); err != nil {
		r.t.Fatal(err)
	}
	for range 1 << 20 {
		toBack, err := r.front.Turn()
		if err != nil {
			r.t.Fatal(err)
		}
		if rsp, done := r.front.Response(); done {
			return rsp
		}
		if !toBack {
			r.t.Fatalf("%v: the backend is sent no event", q)
		}
		r.events = 0
		r.serve()
		if r.events == 0 {
			r.t.Fatalf("%v: the frontend is sent no event", q)
		}
	}
	r.t.Fatalf("%v: no end", q)
	return Response{}
}
