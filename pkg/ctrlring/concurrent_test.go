// SPDX-License-Identifier: Apache-2.0

package ctrlring

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/staticgrant"
	"github.com/netbackd/netbackd/pkg/xen"
)

// event is an event channel: a pending bit that stays set until it is taken.
type event chan struct{}

func (e event) send() {
	select {
	case e <- struct{}{}:
	default:
	}
}

// serveEvents is a control goroutine: it sleeps until an event, as long as there
// are any.
func serveEvents(t *testing.T, s *server, e event) {
	for range e {
		if err := s.serve(); err != nil {
			t.Error(err)
			return
		}
	}
}

// ask sends a message and sleeps until the response is there.
func ask(f Front, toBack, toFront event, q Request) (Response, error) {
	if err := f.Send(q); err != nil {
		return Response{}, err
	}
	for {
		notify, err := f.Turn()
		if err != nil {
			return Response{}, err
		}
		if notify {
			toBack.send()
		}
		if rsp, done := f.Response(); done {
			return rsp, nil
		}
		<-toFront
	}
}

// TestConcurrentEnds has both ends of a ring in goroutines of their own, asleep
// whenever the protocol lets them. A lost event hangs the test; the race detector
// sees whether the indices order what is in the buffers.
func TestConcurrentEnds(t *testing.T) {
	for _, p := range []Protocol{Slot, Stream} {
		t.Run(p.String(), func(t *testing.T) {
			r := newRig(t, p)
			toBack, toFront := make(event, 1), make(event, 1)
			r.server.notify = toFront.send
			var wg sync.WaitGroup
			wg.Go(func() { serveEvents(t, &r.server, toBack) })
			rng := rand.New(rand.NewPCG(1, 2))
			if p == Slot {
				if _, err := ask(r.front, toBack, toFront, request(netif.CtrlSetHashAlgorithm, 1)); err != nil {
					t.Fatal(err)
				}
			}
			for i := range 2000 {
				var q Request
				want := Response{}
				if p == Stream {
					r.front.(*StreamFront).Chunk = rng.IntN(700)
				}
				switch i % 3 {
				case 0:
					q = request(netif.CtrlSetHashFlags, uint32(i))
					if i > 15 {
						want.Status = invalidParam
					}
				case 1:
					q, want.Data = request(netif.CtrlGetHashFlags), 15
				case 2:
					q = request(netif.CtrlGetHashMappingSize)
					want.Data = 128
					if p == Stream {
						q = Request{Type: netif.CtrlSetHashMapping, Queues: make([]uint32, 1<<rng.IntN(8))}
						want.Data = 0
					}
				}
				got, err := ask(r.front, toBack, toFront, q)
				if err != nil || got != want {
					t.Fatalf("message %d, %v: %v, %v; want %v", i, q, got, err, want)
				}
			}
			close(toBack)
			wg.Wait()
		})
	}
}

// worker owns the static grants of one queue and is told what to do with them.
type worker struct {
	calls chan func()
	table staticgrant.Table
}

func (w *worker) call(f func()) {
	done := make(chan struct{})
	w.calls <- func() { defer close(done); f() }
	<-done
}

// grants is a GrefHandler as a back end has it: mapping in the goroutine of the
// control ring, the rest in the worker.
type grants struct {
	ctx     context.Context
	source  staticgrant.Source
	workers []*worker
}

func (g *grants) worker(queue uint32) *worker {
	if queue >= uint32(len(g.workers)) {
		return nil
	}
	return g.workers[queue]
}

func (g *grants) GetGrefMappingSize(queue uint32) (uint32, netif.CtrlStatus) {
	w := g.worker(queue)
	if w == nil {
		return 0, invalidParam
	}
	return uint32(w.table.Limit()), success
}

func (g *grants) AddGrefMapping(queue uint32, list []netif.GrefEntry) netif.CtrlStatus {
	w := g.worker(queue)
	if w == nil {
		return invalidParam
	}
	p, err := g.source.Prepare(g.ctx, list)
	if err != nil {
		return invalidParam
	}
	w.call(func() { err = w.table.Commit(p) })
	if p.Unmap() != nil || err != nil {
		return invalidParam
	}
	return success
}

func (g *grants) DelGrefMapping(queue uint32, list []netif.GrefEntry) (uint32, netif.CtrlStatus) {
	w := g.worker(queue)
	if w == nil {
		return 0, invalidParam
	}
	var r *staticgrant.Removed
	w.call(func() { r = w.table.Detach(list) })
	n, _ := r.Unmap()
	return uint32(n), success
}

// TestStaticGrants adds, uses and removes static grants of two queues, from the
// message on the ring to the table in the worker and back.
func TestStaticGrants(t *testing.T) {
	pages := newPages(t)
	for ref := range xen.Gref(64) {
		pages.grant(100+ref, ref == 5, words32(uint32(ref)))
	}
	pages.grant(1, false, nil)
	budget := staticgrant.NewBudget(40, nil)
	g := &grants{ctx: t.Context(), source: staticgrant.Source{Mapper: pages.Gntdev(), Domid: domid, Budget: budget}}
	var wg sync.WaitGroup
	for range 2 {
		w := &worker{calls: make(chan func())}
		g.workers = append(g.workers, w)
		wg.Go(func() {
			for f := range w.calls {
				f()
			}
		})
	}
	mem := newMem()
	front, err := Init(mem, Slot)
	if err != nil {
		t.Fatal(err)
	}
	back, err := Attach(mem, Slot)
	if err != nil {
		t.Fatal(err)
	}
	calls := Calls{Domid: domid, Mapper: pages.Gntdev(), Grefs: g}
	toBack, toFront := make(event, 1), make(event, 1)
	s := server{ring: back, do: calls.Do, notify: toFront.send}
	wg.Go(func() { serveEvents(t, &s, toBack) })

	send := func(typ netif.CtrlType, queue uint32, list ...netif.GrefEntry) (Response, []netif.CtrlStatus) {
		t.Helper()
		copy(pages.Page(1), listOf(list...))
		rsp, err := ask(front, toBack, toFront, request(typ, queue, 1, uint32(len(list))))
		if err != nil {
			t.Fatal(err)
		}
		var st []netif.CtrlStatus
		for i := range list {
			st = append(st, netif.CtrlStatus(binary.LittleEndian.Uint16(pages.Page(1)[8*i+6:])))
		}
		return rsp, st
	}
	check := func(what string, got, want Response) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	ref := func(refs ...xen.Gref) (list []netif.GrefEntry) {
		for _, r := range refs {
			list = append(list, netif.GrefEntry{Ref: 100 + r, Status: 0x77})
		}
		return list
	}
	used := func(want int) {
		t.Helper()
		if n := pages.Usage().Pages; n != want {
			t.Errorf("%d pages are mapped, want %d", n, want)
		}
	}

	rsp, _ := send(netif.CtrlGetGrefMappingSize, 1)
	check("size", rsp, Response{Data: 512})
	rsp, st := send(netif.CtrlAddGrefMapping, 0, ref(1, 2, 3)...)
	check("add", rsp, Response{})
	if diff := cmp.Diff([]netif.CtrlStatus{0x77, 0x77, 0x77}, st); diff != "" {
		t.Errorf("list of an add (-want +got):\n%s", diff)
	}
	rsp, _ = send(netif.CtrlAddGrefMapping, 1, ref(1, 9)...)
	check("the same gref on another queue", rsp, Response{})
	used(5)
	rsp, _ = send(netif.CtrlAddGrefMapping, 0, ref(4, 2)...)
	check("one that is there", rsp, Response{Status: invalidParam})
	rsp, _ = send(netif.CtrlAddGrefMapping, 0, ref(4, 5)...)
	check("one that is read-only, as writable", rsp, Response{Status: invalidParam})
	rsp, _ = send(netif.CtrlAddGrefMapping, 0, ref(4, 99)...)
	check("one that is not granted", rsp, Response{Status: invalidParam})
	rsp, _ = send(netif.CtrlAddGrefMapping, 2, ref(4)...)
	check("no such queue", rsp, Response{Status: invalidParam})
	used(5)

	w := g.workers[0]
	w.call(func() {
		if g := w.table.Lookup(102); g.Page == nil || binary.LittleEndian.Uint32(g.Page[:]) != 2 {
			t.Error("gref 102 finds another page")
		}
	})
	rsp, st = send(netif.CtrlDelGrefMapping, 0, ref(1, 2, 1, 9)...)
	check("del", rsp, Response{Data: 2})
	if diff := cmp.Diff([]netif.CtrlStatus{success, success, invalidParam, invalidParam}, st); diff != "" {
		t.Errorf("del (-want +got):\n%s", diff)
	}
	used(3)

	close(toBack)
	for _, w := range g.workers {
		close(w.calls)
	}
	wg.Wait()
	for _, w := range g.workers {
		if err := w.table.Close(); err != nil {
			t.Error(err)
		}
	}
	used(0)
}

var _ Mapper = (*gntdev.Device)(nil)
var _ staticgrant.Mapper = (*gntdev.Device)(nil)
