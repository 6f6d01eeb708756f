// SPDX-License-Identifier: Apache-2.0

package blkplane

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/netbackd/netbackd/internal/disk"
	"github.com/netbackd/netbackd/internal/lab/powercut"
	"github.com/netbackd/netbackd/pkg/blkif"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xentest"
)

// Grefs of a bed.
const (
	ringRef  xen.Gref = 100
	indirect xen.Gref = 1000  // indirect pages
	dataRef  xen.Gref = 10000 // pages of data
)

// patience bounds the waits of tests.
const patience = 20 * time.Second

// doubles opens the devices of a guest in memory.
type doubles struct{ g *xentest.Guest }

func (d doubles) OpenGrants() (Grants, error) { return d.g.OpenGntdev() }
func (d doubles) OpenEvents() (Events, error) { return d.g.OpenEvtchn() }

// bed is a guest with a frontend of one queue, and a disk.
type bed struct {
	testing.TB
	cfg   Config
	opts  Options
	guest *xentest.Guest
	ring  []byte
	front *blkif.Front
	port  evtchn.Port
	pages []byte // indirect pages
	data  []byte // pages of data
	store *powercut.Disk
	conn  *Conn

	notices chan Notice
	ids     uint64
}

// bedConfig says what differs from the usual bed.
type bedConfig struct {
	order     int
	proto     blkif.Protocol
	pages     int // of data
	sectors   uint64
	store     *powercut.Disk
	disk      *disk.Disk
	config    func(*Config)
	opts      Options
	noJournal bool
}

func newBed(tb testing.TB, c bedConfig) *bed {
	tb.Helper()
	if c.proto == 0 {
		c.proto = blkif.X8664
	}
	if c.pages == 0 {
		c.pages = 512
	}
	if c.sectors == 0 {
		c.sectors = 8192
	}
	b := &bed{TB: tb, opts: c.opts, guest: xentest.Start(tb, 7), notices: make(chan Notice, 1000), store: c.store}
	n := 1 << c.order
	b.ring = b.guest.GrantRun(ringRef, n, gntdev.ReadWrite)
	b.pages = b.guest.GrantRun(indirect, 64*blkif.MaxIndirectPages, gntdev.ReadOnly)
	b.data = b.guest.GrantRun(dataRef, c.pages, gntdev.ReadWrite)
	b.port = b.guest.Offer()
	if b.store == nil {
		b.store = powercut.New(int(c.sectors)*blkif.SectorSize, 1)
	}
	if c.disk == nil {
		c.disk = b.store.Open()
	}
	b.newRing(c.proto)
	refs := make([]xen.Gref, n)
	for i := range refs {
		refs[i] = ringRef + xen.Gref(i)
	}
	b.cfg = Config{
		Host: doubles{b.guest}, Domid: 7, Protocol: c.proto, Disk: c.disk, MaxSegments: blkif.MaxIndirect,
		Queues: []QueueConfig{{Refs: refs, Port: b.port}},
		Notice: func(n Notice) { b.notices <- n },
	}
	if !c.noJournal {
		b.cfg.Queues[0].Journal = filepath.Join(tb.TempDir(), "journal")
	}
	if c.config != nil {
		c.config(&b.cfg)
	}
	return b
}

// newRing makes the ring anew.
func (b *bed) newRing(p blkif.Protocol) {
	f, err := blkif.InitFront(b.ring, p)
	if err != nil {
		b.Fatal(err)
	}
	b.front = f
}

// connect connects and starts to serve.
func (b *bed) connect() {
	b.Helper()
	if err := b.tryConnect(); err != nil {
		b.Fatal(err)
	}
	b.conn.Start()
}

func (b *bed) tryConnect() error {
	opts := b.opts
	opts.Warn = func(err error) {
		if !strings.Contains(err.Error(), killed) {
			b.Logf("warning: %v", err)
		}
	}
	c, err := NewPool(opts).Connect(b.cfg)
	if err != nil {
		return err
	}
	b.conn = c
	b.Cleanup(b.disconnect)
	return nil
}

// disconnect closes the connection and waits for its end.
func (b *bed) disconnect() {
	b.Helper()
	if b.conn == nil {
		return
	}
	b.conn.Close()
	b.ends(b.conn.Done(), "close")
	b.conn = nil
}

func (b *bed) drain() {
	b.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := b.conn.Drain(ctx); err != nil {
		b.Fatalf("drain: %v", err)
	}
}

func (b *bed) ends(c <-chan struct{}, what string) {
	b.Helper()
	select {
	case <-c:
	case <-time.After(patience):
		b.Fatalf("%s takes too long: %+v", what, b.conn.Status(0))
	}
}

// put puts a request with a new id into the ring and returns the id.
func (b *bed) put(r blkif.Request) uint64 {
	b.Helper()
	if b.front.Free() == 0 {
		b.Fatal("the ring is full")
	}
	b.ids++
	r.ID = b.ids
	b.front.Put(&r)
	return r.ID
}

// push publishes what was put.
func (b *bed) push() {
	if b.front.Push() {
		_ = b.guest.Send(b.port)
	}
}

// take takes n responses, by id.
func (b *bed) take(n int) map[uint64]blkif.Response {
	b.Helper()
	got := map[uint64]blkif.Response{}
	deadline := time.After(patience)
	for len(got) < n {
		have, err := b.front.Responses()
		if err != nil {
			b.Fatal(err)
		}
		for i := range have {
			r := b.front.Response(b.front.RspCons().Add(i))
			if _, twice := got[r.ID]; twice {
				b.Fatalf("id %d is answered twice", r.ID)
			}
			got[r.ID] = r
		}
		b.front.Take(have)
		if have > 0 {
			continue
		}
		if more, _ := b.front.Arm(); more {
			continue
		}
		select {
		case <-b.guest.Wake(b.port):
		case <-deadline:
			b.Fatalf("%d of %d responses: %+v", len(got), n, b.conn.Status(0))
		}
	}
	return got
}

// do makes one request and returns the status of its response.
func (b *bed) do(r blkif.Request) blkif.Status {
	b.Helper()
	id := b.put(r)
	b.push()
	rsp, ok := b.take(1)[id]
	if !ok {
		b.Fatalf("id %d has no response", id)
	}
	if want := r.Operation(); rsp.Op != want {
		b.Errorf("response has operation %v, want %v", rsp.Op, want)
	}
	return rsp.Status
}

// request returns a request for so many whole pages from page on, direct or, from set on,
// with the set'th 8 indirect pages.
func (b *bed) request(op blkif.Op, sector uint64, page, pages, set int) blkif.Request {
	segs := make([]blkif.RawSegment, pages)
	for i := range segs {
		segs[i] = blkif.RawSegment{Gref: dataRef + xen.Gref(page+i), Last: 7}
	}
	return b.withSegments(op, sector, segs, set)
}

// withSegments returns a request with these segments. It is indirect if there are more than
// 11.
func (b *bed) withSegments(op blkif.Op, sector uint64, segs []blkif.RawSegment, set int) blkif.Request {
	r := blkif.Request{Op: op, Sector: sector, NrSegments: uint16(len(segs))}
	if len(segs) <= blkif.MaxDirect {
		copy(r.Segs[:], segs)
		return r
	}
	r.Op, r.Inner = blkif.OpIndirect, op
	for i := range r.IndirectPages() {
		page := set*blkif.MaxIndirectPages + i
		r.Grefs[i] = indirect + xen.Gref(page)
		part := segs[i*blkif.SegmentsPerPage:]
		blkif.EncodeIndirect(b.pages[page*blkif.PageSize:][:blkif.PageSize], part[:min(len(part), blkif.SegmentsPerPage)])
	}
	return r
}

// page returns n pages of data.
func (b *bed) page(i, n int) []byte { return b.data[i*blkif.PageSize:][:n*blkif.PageSize] }

// fill fills pages with a pattern.
func (b *bed) fill(i, n, seed int) []byte {
	p := b.page(i, n)
	for k := range p {
		p[k] = byte(k>>9*7 + k + seed)
	}
	return p
}

// count returns a counter after the turn under way.
func (b *bed) count(c Counter) uint64 { return b.conn.Stats(0).Load(c) }
