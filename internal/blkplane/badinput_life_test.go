// SPDX-License-Identifier: Apache-2.0

package blkplane_test

import (
	"bytes"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/blkplane"
	"github.com/netbackd/netbackd/internal/disk"
	"github.com/netbackd/netbackd/internal/lab/blkcases"
	"github.com/netbackd/netbackd/internal/lab/blkfront"
	"github.com/netbackd/netbackd/internal/lab/powercut"
	"github.com/netbackd/netbackd/internal/lab/xenfront"
	"github.com/netbackd/netbackd/pkg/blkif"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xentest"
)

// flapper is a guest that connects the same disk over and over.
type flapper struct {
	*xentest.Guest
	host xenfront.Host
	pool *blkplane.Pool
	disk *disk.Disk
	dir  string
}

func newFlapper(t *testing.T, pool *blkplane.Pool) *flapper {
	g := xentest.Start(t, 5)
	store := powercut.New(blkcases.MinSectors*blkif.SectorSize, 1)
	return &flapper{
		Guest: g, pool: pool, dir: t.TempDir(),
		host: xenfront.Host{Pages: g.Gntalloc(), Events: func() (xenfront.Events, error) { return g.OpenGuestEvtchn() }},
		disk: disk.New("memory", disk.Geometry{Sectors: blkcases.MinSectors}, store),
	}
}

// queue makes a new ring of 4 pages.
func (f *flapper) queue(t *testing.T, persist bool) *blkfront.Queue {
	t.Helper()
	q, err := blkfront.NewQueue(f.host, 0, blkfront.Config{Order: 2, Pages: 400, Indirect: 64, Persistent: persist})
	if err != nil {
		t.Fatal(err)
	}
	return q
}

func (f *flapper) connect(q *blkfront.Queue, name string, persist bool) (*blkplane.Conn, error) {
	return f.pool.Connect(blkplane.Config{
		Host: doubles{f.Guest}, Domid: 5, Protocol: q.Protocol(), Disk: f.disk, MaxSegments: 64, Persistent: persist,
		Queues: []blkplane.QueueConfig{{Refs: q.Refs(), Port: q.Port(), Journal: filepath.Join(f.dir, name)}},
	})
}

// empty fails if the backend has anything of the guest left, or the guest itself.
func (f *flapper) empty(t *testing.T, when string) {
	t.Helper()
	if u := f.Usage(); u != (xentest.Usage{}) {
		t.Fatalf("%s: left %v", when, u)
	}
}

func ended(t *testing.T, c *blkplane.Conn) {
	t.Helper()
	c.Close()
	select {
	case <-c.Done():
	case <-time.After(patience):
		t.Fatal("the connection does not end")
	}
}

// TestFlapUnderIO: connections that end with requests in flight, again and again, leave
// nothing mapped, bound or open (XSA-350), and do not disturb a neighbour.
func TestFlapUnderIO(t *testing.T) {
	for _, noUring := range []bool{false, true} {
		t.Run(fmt.Sprintf("threads %v", noUring), func(t *testing.T) {
			pool := blkplane.NewPool(blkplane.Options{NoUring: noUring, Warn: func(err error) { t.Errorf("warning: %v", err) }})
			n := newNeighbour(t, pool)
			f := newFlapper(t, pool)
			for round := range 48 {
				persist := round%3 == 0
				q := f.queue(t, persist)
				c, err := f.connect(q, fmt.Sprint(round), persist)
				if err != nil {
					t.Fatal(err)
				}
				if round%5 != 4 { // else it ends before it has begun
					c.Start()
				}
				f.load(t, q)
				switch round % 4 {
				case 0: // ends at once
				case 1:
					if round%5 != 4 {
						if err := c.Drain(t.Context()); err != nil {
							t.Error(err)
						}
					}
				case 2: // the guest goes first, as one that is destroyed
					if err := q.Close(); err != nil {
						t.Error(err)
					}
				case 3:
					if err := q.Kick(); err != nil {
						t.Error(err)
					}
				}
				ended(t, c)
				if round%4 != 2 {
					if err := q.Close(); err != nil {
						t.Error(err)
					}
				}
				f.empty(t, fmt.Sprintf("round %d", round))
			}
			n.moves(t)
			if got := pool.Threads(); got != 1 {
				t.Errorf("%d threads are left, want that of the neighbour", got)
			}
		})
	}
}

// load submits 16 reads and writes, and does not wait.
func (f *flapper) load(t *testing.T, q *blkfront.Queue) {
	t.Helper()
	for i := range 16 {
		op := []blkif.Op{blkif.OpRead, blkif.OpWrite}[i%2]
		pages, ok := q.TakePages(nil, 24, op == blkif.OpRead)
		if !ok {
			t.Fatal("no pages")
		}
		if _, err := q.Submit(&blkfront.Request{Op: op, Sector: uint64(i * 8), Segs: blkfront.Whole(pages)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := q.Push(); err != nil {
		t.Fatal(err)
	}
}

// TestConnectFailsAnywhere: if any device, page or channel fails while a vbd connects, the
// error is reported and nothing is left (XSA-361, XSA-365, XSA-367).
func TestConnectFailsAnywhere(t *testing.T) {
	f := newFlapper(t, blkplane.NewPool(blkplane.Options{}))
	for _, cause := range []error{gntdev.StatusGeneralError, gntdev.StatusBadGntref, unix.ENOMEM} {
		fails := 0
		for at := 0; ; at++ {
			q := f.queue(t, false)
			calls := 0
			f.Intercept(func(c xentest.Call) error {
				if c.By == 5 {
					return nil // the frontend's own
				}
				if calls++; calls == at+1 && c.Op != xentest.OpUnmap {
					return cause
				}
				return nil
			})
			c, err := f.connect(q, "journal", false)
			f.Intercept(nil)
			if err == nil {
				ended(t, c)
			} else {
				fails++
			}
			if err := q.Close(); err != nil {
				t.Fatal(err)
			}
			f.empty(t, fmt.Sprintf("call %d, %v: %v", at, cause, err))
			if err == nil {
				break
			}
		}
		if fails < 4 {
			t.Errorf("%v: only %d failures", cause, fails)
		}
	}
	if n := f.pool.Threads(); n != 0 {
		t.Errorf("%d threads are left", n)
	}
}

// TestPersistentMapsFail: requests whose pages cannot be mapped are served by copies, and
// the pages that could are unmapped at the end (XSA-362, XSA-371).
func TestPersistentMapsFail(t *testing.T) {
	f := newFlapper(t, blkplane.NewPool(blkplane.Options{}))
	q := f.queue(t, true)
	c, err := f.connect(q, "journal", true)
	if err != nil {
		t.Fatal(err)
	}
	calls := 0
	f.Intercept(func(c xentest.Call) error {
		if c.Op != xentest.OpMap {
			return nil
		}
		switch calls++; calls % 3 {
		case 0:
			return gntdev.StatusGeneralError
		case 1:
			return unix.ENOMEM
		}
		return nil
	})
	c.Start()
	from, _ := q.TakePages(nil, 64, false)
	to, _ := q.TakePages(nil, 64, true)
	for round := range 5 {
		for i := range from {
			for k := range from[i].Mem {
				from[i].Mem[k] = byte(round*7 + i + k)
			}
		}
		for _, r := range []blkfront.Request{
			{Op: blkif.OpWrite, Sector: 8, Segs: blkfront.Whole(from)},
			{Op: blkif.OpRead, Sector: 8, Segs: blkfront.Whole(to)},
		} {
			if a, err := ask(t.Context(), q, &r); err != nil || a.Status != blkif.StatusOkay {
				t.Fatalf("round %d: %+v, %v", round, a, err)
			}
		}
		for i := range from {
			if !bytes.Equal(from[i].Mem, to[i].Mem) {
				t.Fatalf("round %d: page %d is not what was written", round, i)
			}
		}
	}
	stats := c.Stats(0).Snapshot()
	if stats[blkplane.Maps] == 0 || stats[blkplane.GrantOps] == 0 {
		t.Errorf("%d maps, %d copies; want both", stats[blkplane.Maps], stats[blkplane.GrantOps])
	}
	ended(t, c)
	f.Intercept(nil)
	if err := q.Close(); err != nil {
		t.Error(err)
	}
	f.empty(t, "at the end")
}

// TestGuestGoesUnderIO: the requests of a guest whose pages cannot be copied any more, as
// when it is destroyed, fail, and its neighbour does not notice.
func TestGuestGoesUnderIO(t *testing.T) {
	pool := blkplane.NewPool(blkplane.Options{})
	n := newNeighbour(t, pool)
	f := newFlapper(t, pool)
	q := f.queue(t, false)
	c, err := f.connect(q, "journal", false)
	if err != nil {
		t.Fatal(err)
	}
	f.Intercept(func(c xentest.Call) error {
		if c.Op == xentest.OpCopy {
			return gntdev.StatusBadDomain
		}
		return nil
	})
	c.Start()
	f.load(t, q)
	got := map[blkif.Status]int{}
	for q.Unanswered() > 0 {
		a, ok, err := q.Poll()
		if err != nil {
			t.Fatal(err)
		}
		if ok {
			got[a.Status]++
		} else if err := q.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if got[blkif.StatusError] != 16 {
		t.Errorf("answers %v, want errors", got)
	}
	if s := c.Stats(0); s.Load(blkplane.OKs) != 0 {
		t.Errorf("%d requests were served", s.Load(blkplane.OKs))
	}
	ended(t, c)
	f.Intercept(nil)
	if err := q.Close(); err != nil {
		t.Error(err)
	}
	n.moves(t)
	f.empty(t, "at the end")
}

// TestBadRings: rings and channels that a guest must not offer are refused, and a ring whose
// pages are one and the same harms nothing.
func TestBadRings(t *testing.T) {
	f := newFlapper(t, blkplane.NewPool(blkplane.Options{}))
	q := f.queue(t, false)
	grant := func(to xen.Domid, writable bool) xen.Gref {
		p, err := f.host.Pages.Alloc(to, 1, writable)
		if err != nil {
			t.Fatal(err)
		}
		return p.Refs()[0]
	}
	good, readOnly, foreign := grant(0, true), grant(0, false), grant(blkcases.OtherDomid, true)
	many := make([]xen.Gref, 32)
	for i := range many {
		many[i] = good
	}
	for _, c := range []struct {
		name string
		refs []xen.Gref
		port evtchn.Port
		ok   bool
	}{
		{"no page", nil, q.Port(), false},
		{"three pages", many[:3], q.Port(), false},
		{"32 pages", many, q.Port(), false},
		{"a page that the backend may only read", []xen.Gref{readOnly}, q.Port(), false},
		{"a page of another domain", []xen.Gref{foreign}, q.Port(), false},
		{"a gref that was never granted", []xen.Gref{good, 0xffffff}, q.Port(), false},
		{"a port that does not exist", []xen.Gref{good}, 1000, false},
		{"the same page twice", many[:2], q.Port(), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			clear(f.Page(good))
			before := f.Usage()
			conn, err := f.pool.Connect(blkplane.Config{Host: doubles{f.Guest}, Domid: 5, Protocol: blkif.X8664, Disk: f.disk,
				Queues: []blkplane.QueueConfig{{Refs: c.refs, Port: c.port, Journal: filepath.Join(f.dir, "journal")}}})
			if c.ok != (err == nil) {
				t.Errorf("error %v", err)
			}
			if err == nil {
				conn.Start()
				ended(t, conn)
			}
			if got := f.Usage(); got != before {
				t.Errorf("left %v, before it was %v", got, before)
			}
		})
	}
	if err := q.Close(); err != nil {
		t.Error(err)
	}
	f.empty(t, "at the end")
}
