// SPDX-License-Identifier: Apache-2.0

package blkfront_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"go.uber.org/goleak"

	"github.com/netbackd/netbackd/internal/lab/blkfront"
	"github.com/netbackd/netbackd/internal/lab/blkfront/blktest"
	"github.com/netbackd/netbackd/internal/lab/xenfront"
	"github.com/netbackd/netbackd/pkg/blkif"
	"github.com/netbackd/netbackd/pkg/xentest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const sectors = 64 << 10

// start connects a queue to a backend in memory. Change alters the backend before it runs.
func start(t *testing.T, cfg blkfront.Config, change func(*blktest.Backend)) (*blkfront.Queue, *blktest.Backend) {
	t.Helper()
	g := xentest.Start(t, 1)
	host := xenfront.Host{Pages: g.Gntalloc(), Events: func() (xenfront.Events, error) { return g.OpenGuestEvtchn() }}
	q, err := blkfront.NewQueue(host, 0, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := q.Close(); err != nil {
			t.Error(err)
		}
	})
	grants, err := g.OpenGntdev()
	if err != nil {
		t.Fatal(err)
	}
	events, err := g.OpenEvtchn()
	if err != nil {
		t.Fatal(err)
	}
	b := &blktest.Backend{Grants: grants, Events: events, Domid: 1, Disk: make([]byte, sectors*blkif.SectorSize),
		Limits: blkif.Limits{Sectors: sectors, MaxSegments: blkif.MaxIndirect, Discard: true}}
	if change != nil {
		change(b)
	}
	if err := b.Start(q); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Stop(); err != nil {
			t.Error(err)
		}
		events.Close()
		grants.Close()
	})
	return q, b
}

// ask submits a request and waits for its answer.
func ask(t *testing.T, q *blkfront.Queue, r *blkfront.Request) blkfront.Answer {
	t.Helper()
	if _, err := q.Submit(r); err != nil {
		t.Fatal(err)
	}
	return await(t, q)
}

func await(t *testing.T, q *blkfront.Queue) blkfront.Answer {
	t.Helper()
	a, err := wait(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func wait(ctx context.Context, q *blkfront.Queue) (blkfront.Answer, error) {
	if err := q.Push(); err != nil {
		return blkfront.Answer{}, err
	}
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

func TestWritesAndReadsOfEveryLayout(t *testing.T) {
	for _, protocol := range []string{"x86_64-abi", "x86_32-abi", "arm-abi", blkfront.NoProtocol} {
		for order := range blkif.MaxOrder + 1 {
			t.Run(fmt.Sprintf("%s, order %d", protocol, order), func(t *testing.T) {
				sizes := []int{1, 11, 12, 512, 513}
				if order == blkif.MaxOrder {
					sizes = append(sizes, blkif.MaxIndirect)
				}
				q, b := start(t, blkfront.Config{Protocol: protocol, Order: order, Indirect: blkif.MaxIndirect, Pages: slices.Max(sizes), Strict: true}, nil)
				if want := 32 << order; q.Size() != want || q.Free() != want {
					t.Fatalf("%d of %d slots are free, want %d", q.Free(), q.Size(), want)
				}
				at := uint64(1)
				for _, n := range sizes {
					writeAndRead(t, q, b, at, n)
					at += 11
				}
				if s := q.Stats(); s.Violations != 0 || s.Answers != uint64(2*len(sizes)) || s.Indirect != uint64(2*len(sizes)-4) {
					t.Errorf("%+v, violations %v", s, q.Violations())
				}
			})
		}
	}
}

// writeAndRead writes random bytes by n segments of random parts of pages, and reads them.
func writeAndRead(t *testing.T, q *blkfront.Queue, b *blktest.Backend, at uint64, n int) {
	t.Helper()
	pages, ok := q.TakePages(nil, n, false)
	if !ok {
		t.Fatal("no pages")
	}
	segs := blkfront.Whole(pages)
	var want []byte
	noise := rand.NewChaCha8([32]byte{byte(at), byte(n)})
	for i := range segs {
		segs[i].First = uint8(rand.IntN(8))
		segs[i].Last = segs[i].First + uint8(rand.IntN(8-int(segs[i].First)))
		part := pages[i].Mem[int(segs[i].First)*512 : (int(segs[i].Last)+1)*512]
		noise.Read(part)
		want = append(want, part...)
	}
	if a := ask(t, q, &blkfront.Request{Op: blkif.OpWrite, Sector: at, Segs: segs, User: 7}); a.Status != blkif.StatusOkay || a.User != 7 || a.Op != blkif.OpWrite {
		t.Fatalf("answer %+v", a)
	}
	q.ReturnPages(pages)
	if len(want) != blkfront.Sectors(segs)*512 || !bytes.Equal(b.Disk[at*512:][:len(want)], want) {
		t.Fatalf("a write of %d segments came out differently", n)
	}
	pages, ok = q.TakePages(nil, n, true)
	if !ok {
		t.Fatal("no pages")
	}
	for i := range segs {
		segs[i].Gref = pages[i].Gref
	}
	if a := ask(t, q, &blkfront.Request{Op: blkif.OpRead, Sector: at, Segs: segs}); a.Status != blkif.StatusOkay {
		t.Fatalf("answer %+v", a)
	}
	var got []byte
	for i, s := range segs {
		got = append(got, pages[i].Mem[int(s.First)*512:(int(s.Last)+1)*512]...)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("a read of %d segments has other bytes", n)
	}
	q.ReturnPages(pages)
}

func TestFullRingAndItsIDs(t *testing.T) {
	q, _ := start(t, blkfront.Config{}, nil)
	seen := map[uint64]bool{}
	for range 3 {
		for q.Free() > 0 {
			id, err := q.Submit(&blkfront.Request{Op: blkif.OpFlush})
			if err != nil || seen[id] || id>>48 == 0 {
				t.Fatalf("id %#x again (%v), %v", id, seen[id], err)
			}
			seen[id] = true
		}
		if _, err := q.Submit(&blkfront.Request{Op: blkif.OpFlush}); err != blkfront.ErrFull {
			t.Fatalf("a full ring: %v", err)
		}
		for q.Unanswered() > 0 {
			if a := await(t, q); a.Status != blkif.StatusOkay || !seen[a.ID] {
				t.Fatalf("answer %+v", a)
			}
		}
	}
	if s := q.Stats(); s.Requests != 96 || s.Violations != 0 {
		t.Errorf("%+v", s)
	}
}

func TestRequestsOfTheCallersChoice(t *testing.T) {
	q, _ := start(t, blkfront.Config{Indirect: 32}, nil)
	page, _ := q.TakePages(nil, 1, true)
	for _, tt := range []struct {
		name string
		r    blkfront.Request
		want blkif.Status
	}{
		{"one segment, indirect", blkfront.Request{Op: blkif.OpRead, Indirect: true, Segs: blkfront.Whole(page)}, 0},
		{"indirect flush", blkfront.Request{Op: blkif.OpFlush, Indirect: true, Segs: blkfront.Whole(page)}, -1},
		{"unknown operation", blkfront.Request{Op: 9}, -2},
		{"read of nothing", blkfront.Request{Op: blkif.OpRead}, -1},
		{"beyond the end", blkfront.Request{Op: blkif.OpRead, Sector: sectors - 7, Segs: blkfront.Whole(page)}, -1},
		{"last before first", blkfront.Request{Op: blkif.OpRead, Segs: []blkfront.Segment{{page[0].Gref, 5, 4}}}, -1},
		{"foreign gref", blkfront.Request{Op: blkif.OpRead, Segs: []blkfront.Segment{{page[0].Gref + 60000, 0, 7}}}, -1},
		{"discard", blkfront.Request{Op: blkif.OpDiscard, Sector: 8, NrSectors: 8}, 0},
		{"barrier without data", blkfront.Request{Op: blkif.OpBarrier}, 0},
	} {
		if a := ask(t, q, &tt.r); a.Status != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, a.Status, tt.want)
		}
	}
	var s blkif.Slot
	for i := range s {
		s[i] = 0xff
	}
	if _, err := q.PutSlot(s, 0xff, 1); err != nil {
		t.Fatal(err)
	}
	if a := await(t, q); a.Status != blkif.StatusNotSupported || a.User != 1 {
		t.Errorf("noise: %+v", a)
	}
	if v := q.Violations(); len(v) > 0 {
		t.Errorf("violations %v", v)
	}
}

func TestBreachesOfABackend(t *testing.T) {
	// It answers the first of two requests twice, and not the other.
	twice := func(r *blkif.Request, good blkif.Response) []blkif.Response {
		if r.Sector > 0 {
			return nil
		}
		return []blkif.Response{good, good}
	}
	other := func(change func(*blkif.Response)) func(*blkif.Request, blkif.Response) []blkif.Response {
		return func(_ *blkif.Request, good blkif.Response) []blkif.Response {
			change(&good)
			return []blkif.Response{good}
		}
	}
	for _, tt := range []struct {
		name   string
		change func(*blktest.Backend)
		want   blkfront.Rule
	}{
		{"two answers", func(b *blktest.Backend) { b.Answer = twice }, blkfront.RuleID},
		{"another id", func(b *blktest.Backend) { b.Answer = other(func(r *blkif.Response) { r.ID++ }) }, blkfront.RuleID},
		{"op 6 for an indirect request", func(b *blktest.Backend) { b.Answer = other(func(r *blkif.Response) { r.Op = blkif.OpIndirect }) }, blkfront.RuleOp},
		{"a status that does not exist", func(b *blktest.Backend) { b.Answer = other(func(r *blkif.Response) { r.Status = 1 }) }, blkfront.RuleStatus},
		{"padding", func(b *blktest.Backend) { b.Ring = func(m []byte) { m[64+9] = 1 } }, blkfront.RuleLeak},
		{"behind the response", func(b *blktest.Backend) { b.Ring = func(m []byte) { m[64+100] = 1 } }, blkfront.RuleLeak},
		{"rsp_prod", func(b *blktest.Backend) { b.Ring = func(m []byte) { m[8] += 3 } }, blkfront.RuleIndex},
	} {
		t.Run(tt.name, func(t *testing.T) {
			q, _ := start(t, blkfront.Config{Indirect: 32}, tt.change)
			page, _ := q.TakePages(nil, 1, true)
			for i := range uint64(2) {
				if _, err := q.Submit(&blkfront.Request{Op: blkif.OpRead, Sector: i, Indirect: true, Segs: blkfront.Whole(page)}); err != nil {
					t.Fatal(err)
				}
			}
			_, err := wait(t.Context(), q)
			if err == nil && tt.want.Fatal() {
				_, err = wait(t.Context(), q)
			}
			v := q.Violations()
			if len(v) != 1 || v[0].Rule != tt.want || (err != nil) != tt.want.Fatal() || (q.Err() != nil) != tt.want.Fatal() {
				t.Errorf("violations %v, error %v; want %v", v, err, tt.want)
			}
		})
	}
}

func TestWaitEndsWithItsContext(t *testing.T) {
	q, _ := start(t, blkfront.Config{}, nil)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- q.Wait(ctx) }()
	cancel()
	if err := <-ended; err != context.Canceled {
		t.Errorf("%v", err)
	}
}
