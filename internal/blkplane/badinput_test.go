// SPDX-License-Identifier: Apache-2.0

package blkplane_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/netbackd/netbackd/internal/blkplane"
	"github.com/netbackd/netbackd/internal/disk"
	"github.com/netbackd/netbackd/internal/lab/blkcases"
	"github.com/netbackd/netbackd/internal/lab/blkfront"
	"github.com/netbackd/netbackd/internal/lab/powercut"
	"github.com/netbackd/netbackd/internal/lab/xenfront"
	"github.com/netbackd/netbackd/pkg/blkif"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xentest"
)

// doubles opens the devices of a guest in memory.
type doubles struct{ g *xentest.Guest }

func (d doubles) OpenGrants() (blkplane.Grants, error) { return d.g.OpenGntdev() }
func (d doubles) OpenEvents() (blkplane.Events, error) { return d.g.OpenEvtchn() }

// patience is the time after which a test takes the data path for hung.
const patience = 20 * time.Second

// guest is a guest with one queue, its disk, and the connection that serves it.
type guest struct {
	*xentest.Guest
	host    xenfront.Host
	queue   *blkfront.Queue
	conn    *blkplane.Conn
	limits  blkif.Limits
	content func() []byte // of the disk, as the host has it
	notices chan blkplane.Notice
}

// guestConfig says what a guest and its disk are like.
type guestConfig struct {
	kind     blkcases.Disk
	protocol string // of the frontend
	taken    blkif.Protocol
	order    int
	indirect int // of the frontend's own requests
	pages    int
	persist  bool
	noUring  bool
}

// newGuest starts a guest. Everything ends with the test, which fails if anything is left.
func newGuest(t *testing.T, pool *blkplane.Pool, domid xen.Domid, c guestConfig) *guest {
	t.Helper()
	g := &guest{Guest: xentest.Start(t, domid), notices: make(chan blkplane.Notice, 1000)}
	g.host = xenfront.Host{Pages: g.Gntalloc(), Events: func() (xenfront.Events, error) { return g.OpenGuestEvtchn() }}
	var err error
	g.queue, err = blkfront.NewQueue(g.host, 0, blkfront.Config{
		Protocol: c.protocol, Order: c.order, Pages: max(c.pages, 1), Indirect: c.indirect, Persistent: c.persist,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.queue.Close(); err != nil {
			t.Error(err)
		}
	})
	cfg := blkplane.Config{
		Host: doubles{g.Guest}, Domid: domid, Protocol: c.taken, Persistent: c.persist, MaxSegments: 700,
		Queues: []blkplane.QueueConfig{{Refs: g.queue.Refs(), Port: g.queue.Port(), Journal: filepath.Join(t.TempDir(), "journal")}},
		Notice: func(n blkplane.Notice) { g.notices <- n },
	}
	if cfg.Protocol == 0 {
		cfg.Protocol = g.queue.Protocol()
	}
	g.limits = blkif.Limits{Sectors: blkcases.MinSectors, BlockSize: 512, MaxSegments: 700, Discard: true}
	switch c.kind {
	case blkcases.ReadOnly:
		cfg.ReadOnly, g.limits.ReadOnly = true, true
	case blkcases.Blocks4K:
		g.limits.BlockSize = 4096
	case blkcases.Bare:
		cfg.NoDiscard, cfg.MaxSegments, g.limits.Discard, g.limits.MaxSegments = true, 0, false, 0
	}
	cfg.Disk = g.openDisk(t, c.kind)
	if g.conn, err = pool.Connect(cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		g.conn.Close()
		select {
		case <-g.conn.Done():
		case <-time.After(patience):
			t.Error("the connection does not end")
		}
	})
	g.conn.Start()
	return g
}

// openDisk opens a disk with random content: a file, or, for large blocks, a disk in memory.
func (g *guest) openDisk(t *testing.T, kind blkcases.Disk) *disk.Disk {
	t.Helper()
	content := make([]byte, blkcases.MinSectors*blkif.SectorSize)
	for i := range content {
		content[i] = byte(rand.Uint32())
	}
	if kind == blkcases.Blocks4K {
		store := powercut.New(len(content), 1)
		if _, err := store.WriteAt(content, 0); err != nil {
			t.Fatal(err)
		}
		g.content = store.Bytes
		return disk.New("blocks", disk.Geometry{Sectors: blkcases.MinSectors, SectorSize: 4096,
			Discard: disk.Discard{Granularity: 4096, Max: 1 << 30}}, store)
	}
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	g.content = func() []byte {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Error(err)
		}
		return b
	}
	d, err := disk.Open(t.Context(), disk.Options{Path: path, ReadOnly: kind == blkcases.ReadOnly})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// player makes a player on the guest's queue.
func (g *guest) player(t *testing.T, persist bool) *blkcases.Player {
	t.Helper()
	p, err := blkcases.NewPlayer(t.Context(), g.host, 0, g.queue, g.limits)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	if !persist {
		p.InUse = g.Gntalloc().InUse
	}
	return p
}

// failures returns the counters of requests that were not served, by name.
func (g *guest) failures() map[string]uint64 {
	m := map[string]uint64{}
	for i, n := range g.conn.Stats(0).Snapshot() {
		if c := blkplane.Counters[i]; c.Kind == blkplane.Failure && n != 0 {
			m[c.Name] = n
		}
	}
	return m
}

// drained returns the notices so far.
func (g *guest) drained() (l []blkplane.Notice) {
	for {
		select {
		case n := <-g.notices:
			l = append(l, n)
		default:
			return l
		}
	}
}

// neighbour is another guest of the same pool that writes and reads all the time.
type neighbour struct {
	*guest
	rounds atomic.Int64
	turn   chan struct{} // has an element after each round
	stop   context.CancelFunc
	ended  sync.WaitGroup
	err    error
}

func newNeighbour(t *testing.T, pool *blkplane.Pool) *neighbour {
	t.Helper()
	n := &neighbour{guest: newGuest(t, pool, 9, guestConfig{indirect: 32, pages: 32, order: 1}), turn: make(chan struct{}, 1)}
	ctx, stop := context.WithCancel(context.Background())
	n.stop = stop
	n.ended.Go(func() { n.err = n.run(ctx) })
	t.Cleanup(func() {
		n.stop()
		n.ended.Wait()
		if n.err != nil {
			t.Errorf("the neighbour: %v", n.err)
		}
		if f := n.failures(); len(f) != 0 {
			t.Errorf("the neighbour's requests failed: %v", f)
		}
		if l := n.drained(); len(l) != 0 {
			t.Errorf("notices about the neighbour: %+v", l)
		}
	})
	return n
}

// run writes a pattern and reads it back, over and over.
func (n *neighbour) run(ctx context.Context) error {
	from, _ := n.queue.TakePages(nil, 32, false)
	to, _ := n.queue.TakePages(nil, 32, true)
	for round := 0; ctx.Err() == nil; round++ {
		at := uint64(round*8) % (blkcases.MinSectors - 256)
		for i, p := range from {
			for k := range p.Mem {
				p.Mem[k] = byte(round + i + k)
			}
		}
		for _, r := range []blkfront.Request{
			{Op: blkif.OpWrite, Sector: at, Segs: blkfront.Whole(from)},
			{Op: blkif.OpFlush},
			{Op: blkif.OpRead, Sector: at, Segs: blkfront.Whole(to)},
		} {
			a, err := ask(ctx, n.queue, &r)
			if err == nil && a.Status != blkif.StatusOkay {
				err = fmt.Errorf("round %d: %v of a %v", round, a.Status, r.Op)
			}
			if err != nil {
				if ctx.Err() != nil {
					return nil
				}
				return err
			}
		}
		for i := range from {
			if !bytes.Equal(from[i].Mem, to[i].Mem) {
				return fmt.Errorf("round %d: page %d is not what was written", round, i)
			}
		}
		n.rounds.Add(1)
		select {
		case n.turn <- struct{}{}:
		default:
		}
	}
	return nil
}

// moves fails unless the neighbour completes a round that began after the call.
func (n *neighbour) moves(t *testing.T) {
	t.Helper()
	limit := time.After(patience)
	for want := n.rounds.Load() + 2; n.rounds.Load() < want; {
		select {
		case <-n.turn:
		case <-limit:
			t.Fatal("the neighbour's i/o stands still")
		}
	}
}

// ask submits a request and waits for its answer.
func ask(ctx context.Context, q *blkfront.Queue, r *blkfront.Request) (blkfront.Answer, error) {
	if _, err := q.Submit(r); err != nil {
		return blkfront.Answer{}, err
	}
	if err := q.Push(); err != nil {
		return blkfront.Answer{}, err
	}
	return await(ctx, q)
}

// await waits for the next answer.
func await(ctx context.Context, q *blkfront.Queue) (blkfront.Answer, error) {
	for {
		a, ok, err := q.Poll()
		if ok || err != nil {
			return a, err
		}
		if err := q.Wait(ctx); err != nil {
			return a, err
		}
	}
}

// TestBadInput plays every case, each on a guest of its own, beside a neighbour on the same
// pool. The player checks the protocol's answer, the guest's other pages and the disk as
// the guest sees it. Here are the counter, the notice, the disk as the host sees it, and
// the neighbour.
func TestBadInput(t *testing.T) {
	for _, v := range []struct {
		name string
		guestConfig
	}{
		{"copies", guestConfig{protocol: "x86_64-abi"}},
		{"threads, 32-bit", guestConfig{protocol: "x86_32-abi", noUring: true, order: 2}},
		{"persistent grants, arm", guestConfig{protocol: "arm-abi", persist: true}},
	} {
		t.Run(v.name, func(t *testing.T) {
			pool := blkplane.NewPool(blkplane.Options{NoUring: v.noUring, Warn: func(err error) { t.Errorf("warning: %v", err) }})
			n := newNeighbour(t, pool)
			for _, c := range blkcases.All() {
				t.Run(c.Name, func(t *testing.T) {
					cfg := v.guestConfig
					cfg.kind = c.Disk
					badInput(t, pool, cfg, &c)
				})
			}
			n.moves(t)
		})
	}
}

func badInput(t *testing.T, pool *blkplane.Pool, cfg guestConfig, c *blkcases.Case) {
	g := newGuest(t, pool, 5, cfg)
	p := g.player(t, cfg.persist)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if !p.Fits(c) {
		t.Fatalf("the disk %+v is not of kind %v", g.limits, c.Disk)
	}
	if f := g.failures(); len(f) != 0 {
		t.Fatalf("failures before the case: %v", f)
	}
	if err := p.Play(ctx, c); err != nil {
		t.Fatal(err)
	}
	if c.Overrun != 0 {
		g.stopped(t)
	} else {
		g.counted(t, c)
		if _, err := ask(ctx, g.queue, &blkfront.Request{Op: blkif.OpRead, Segs: []blkfront.Segment{}}); err != nil {
			t.Errorf("the queue is of no use after it: %v", err)
		}
	}
	if got := g.content(); !bytes.Equal(got, p.Disk()) {
		t.Error("the host's disk is not what the guest reads")
	}
}

// counted checks that a refusal was counted under its reason, and reported once.
func (g *guest) counted(t *testing.T, c *blkcases.Case) {
	t.Helper()
	got := g.failures()
	if c.Flip != nil { // refused now and then
		for name := range got {
			if name != c.Want.String() {
				t.Errorf("failures %v, want none but %v", got, c.Want)
			}
		}
		return
	}
	notices := g.drained()
	if c.Want == blkif.ReasonNone {
		if len(got) != 0 || len(notices) != 0 {
			t.Errorf("failures %v, notices %+v, want none", got, notices)
		}
		return
	}
	if len(got) != 1 || got[c.Want.String()] != 1 {
		t.Errorf("failures %v, want one %v", got, c.Want)
	}
	if len(notices) != 1 || notices[0].Kind != blkplane.BadRequest || notices[0].Reason.String() != c.Want.String() ||
		c.Want != blkif.ReasonGrant && c.Want != blkif.ReasonIndirectGrant && !errors.Is(notices[0].Err, c.Want) {
		t.Errorf("notices %+v, want one about %v", notices, c.Want)
	}
}

// stopped waits for the notice that the queue has stopped for good.
func (g *guest) stopped(t *testing.T) {
	t.Helper()
	select {
	case n := <-g.notices:
		if n.Kind != blkplane.Broken || !errors.Is(n.Err, blkif.ErrOverrun) {
			t.Errorf("notice %+v, want that the queue is broken: %v", n, blkif.ErrOverrun)
		}
	case <-time.After(patience):
		t.Fatal("no notice")
	}
	// It stays stopped, even if the frontend mends its index.
	before := g.queue.State()
	g.queue.SetReqProd(before.RspProd)
	if err := g.queue.Kick(); err != nil {
		t.Error(err)
	}
	if err := g.conn.Drain(t.Context()); err != nil {
		t.Error(err)
	}
	if s := g.queue.State(); s.RspProd != before.RspProd || !g.conn.Status(0).Broken {
		t.Errorf("after the overrun rsp_prod is %d, it was %d; broken: %v", s.RspProd, before.RspProd, g.conn.Status(0).Broken)
	}
	if l := g.drained(); len(l) != 0 {
		t.Errorf("further notices: %+v", l)
	}
}

// TestSlotChangesWhileItIsRead: a guest that changes its slots all the time gets an answer
// to each request, and nothing outside of what a version of the slot names is touched.
func TestSlotChangesWhileItIsRead(t *testing.T) {
	pool := blkplane.NewPool(blkplane.Options{})
	n := newNeighbour(t, pool)
	g := newGuest(t, pool, 5, guestConfig{protocol: "x86_64-abi", pages: 4})
	p := g.player(t, false)
	data, _ := g.queue.TakePages(nil, 1, true)
	ring := g.Page(g.queue.Refs()[0])
	var stop atomic.Bool
	var ended sync.WaitGroup
	// Of each slot, byte 29 is the last sector of its segment, byte 23 the highest byte of
	// the sector, and byte 27 that of the gref. A response has none of these.
	ended.Go(func() {
		passes := 0
		for bad := true; !stop.Load(); bad = !bad {
			last, sector, gref := byte(7), byte(0), byte(0)
			switch {
			case bad && passes%3 == 0:
				last = 200
			case bad && passes%3 == 1:
				sector = 0x80
			case bad:
				gref = 0xff
			}
			passes++
			for at := 64; at < 64+32*112; at += 112 {
				ring[at+29], ring[at+23], ring[at+27] = last, sector, gref
			}
		}
	})
	answered := map[blkif.Status]int{}
	for i := range 4000 {
		op := []blkif.Op{blkif.OpRead, blkif.OpWrite}[i%2]
		a, err := ask(t.Context(), g.queue, &blkfront.Request{Op: op, Sector: 512, Segs: blkfront.Whole(data)})
		if err != nil {
			t.Error(err)
			break
		}
		answered[a.Status]++
	}
	stop.Store(true)
	ended.Wait()
	want, got := p.Disk(), g.content()
	for i := range got {
		if sector := i / 512; got[i] != want[i] && (sector < 512 || sector >= 520) {
			t.Fatalf("byte %d of the disk has changed", i)
		}
	}
	if answered[blkif.StatusNotSupported] != 0 {
		t.Errorf("answers %v", answered)
	}
	for name := range g.failures() {
		if !slices.Contains([]string{"last_sector", "beyond_end", "grant"}, name) {
			t.Errorf("failures %v", g.failures())
		}
	}
	t.Logf("answers %v, failures %v", answered, g.failures())
	n.moves(t)
}

// TestAbsentProtocol: a frontend without the key has the layout of x86_32, and one that has
// another all the same harms nothing but its own requests.
func TestAbsentProtocol(t *testing.T) {
	assumed, err := blkif.ParseProtocol("", false)
	if err != nil {
		t.Fatal(err)
	}
	for _, protocol := range []string{blkfront.NoProtocol, "x86_64-abi"} {
		t.Run(protocol, func(t *testing.T) {
			pool := blkplane.NewPool(blkplane.Options{})
			n := newNeighbour(t, pool)
			g := newGuest(t, pool, 5, guestConfig{protocol: protocol, taken: assumed, pages: 4})
			before := g.content()
			data, _ := g.queue.TakePages(nil, 4, true)
			for _, op := range []blkif.Op{blkif.OpRead, blkif.OpWrite, blkif.OpBarrier} {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				a, err := ask(ctx, g.queue, &blkfront.Request{Op: op, Sector: 8, Segs: blkfront.Whole(data)})
				cancel()
				if g.queue.Protocol() == assumed {
					if err != nil || a.Status != blkif.StatusOkay {
						t.Errorf("%v: %+v, %v", op, a, err)
					}
					continue
				}
				var v *blkfront.Violation
				if !errors.As(err, &v) || v.Rule != blkfront.RuleID {
					t.Errorf("%v: %+v, %v; want an answer with an id that the frontend does not know", op, a, err)
				}
				break // the queue is of no use
			}
			if g.queue.Protocol() != assumed && !bytes.Equal(g.content(), before) {
				t.Error("the disk has changed")
			}
			n.moves(t)
		})
	}
}

// TestDiscardOnReadOnlyDiskOpenedForWriting: the refusal does not depend on how the file is
// open (CVE-2013-2140).
func TestDiscardOnReadOnlyDiskOpenedForWriting(t *testing.T) {
	pool := blkplane.NewPool(blkplane.Options{})
	g := newGuest(t, pool, 5, guestConfig{kind: blkcases.ReadOnly, protocol: "x86_64-abi"})
	before := g.content()
	a, err := ask(t.Context(), g.queue, &blkfront.Request{Op: blkif.OpDiscard, Sector: 0, NrSectors: 64})
	if err != nil || a.Status != blkif.StatusError {
		t.Errorf("%+v, %v", a, err)
	}
	if !bytes.Equal(g.content(), before) {
		t.Error("the disk has changed")
	}
}
