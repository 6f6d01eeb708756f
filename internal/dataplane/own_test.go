// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/gntalloc"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xentest"
)

// ownPager is the device with which a worker of a test grants pages to itself.
type ownPager struct{ *xentest.Own }

func (p ownPager) AllocOwn(mem []byte) (*gntalloc.Pages, error) {
	return p.AllocAt(mem, xen.Dom0, true)
}

// startOwn opens the device for a test. It has as many pages as several workers want.
func startOwn(tb testing.TB) ownPager { return ownPager{xentest.StartOwn(tb, 1<<16)} }

func TestOwnSegmentsAreCounted(t *testing.T) {
	mem := make([]byte, 64)
	segs := make([]gntdev.Segment, 4)
	segs[0].FromGuest(1, 2, 3, mem)
	segs[1].FromGuestToOwn(1, 2, 3, 4, 5, 6)
	segs[2].ToGuest(1, 2, 3, mem)
	segs[3].ToGuestFromOwn(1, 2, 3, 4, 5, 6)
	if n := ownSegments(segs); n != 2 {
		t.Errorf("%d own segments, want 2", n)
	}
}

// failingPager fails after some calls.
type failingPager struct {
	ownPager
	left int // calls that succeed
}

func (p *failingPager) AllocOwn(mem []byte) (*gntalloc.Pages, error) {
	if p.left == 0 {
		return nil, unix.ENOMEM
	}
	p.left--
	return p.ownPager.AllocOwn(mem)
}

// TestOwnRuns: the places of a pass have own pages as far as they are for the slots of a
// ring; no page is granted twice.
func TestOwnRuns(t *testing.T) {
	w := new(worker)
	for _, byRing := range []bool{false, true} {
		own := map[*arenaMem]map[int]bool{&w.txMem: {}, &w.rxMem: {}}
		total := 0
		for _, r := range w.ownRuns(byRing) {
			for page := r.first; page < r.first+r.pages; page++ {
				if own[r.arena][page] {
					t.Errorf("page %d is granted twice", page)
				}
				own[r.arena][page] = true
				total++
			}
		}
		want := txOwnPages + rxOwnPages
		if byRing {
			want = MaxOwnPages
		}
		if total != want {
			t.Errorf("with reads by io_uring %v: %d pages, want %d", byRing, total, want)
		}
		isOwn := func(what string, m *arenaMem, at, n int, want bool) {
			t.Helper()
			if got := own[m][at/netif.PageSize] && own[m][(at+n-1)/netif.PageSize]; got != want {
				t.Errorf("with reads by io_uring %v: %s: own page %v, want %v", byRing, what, got, want)
			}
		}
		isOwn("first slot", &w.txMem, 0, netif.PageSize, true)
		isOwn("last slot", &w.txMem, (netif.TxRingSize-1)*netif.PageSize, netif.PageSize, true)
		isOwn("headers that were pulled up", &w.txMem, txArenaBytes, 1, false)
		var p rxPlaces
		p.reset()
		for k := range netif.RxRingSize {
			at, ok := p.page()
			isOwn(fmt.Sprint("page ", k), &w.rxMem, at, netif.PageSize-headroom, ok)
			p.took(at + netif.PageSize - headroom)
		}
		for i := range rxParts * rxReads {
			isOwn(fmt.Sprint("small packet ", i), &w.rxMem, rxDenseAt(2+i), rxDense, true)
			isOwn(fmt.Sprint("packet of the ring part ", i), &w.rxMem, rxRingAt(i), smallPacket, byRing)
		}
	}
}

// TestOwnRef: a copy names an own page only if it is within it.
func TestOwnRef(t *testing.T) {
	o := ownPages{refs: []xen.Gref{0, 21, 22, 0}}
	const page = netif.PageSize
	for _, tt := range []struct {
		at, n int
		want  xen.Gref
	}{
		{0, 1, 0},
		{page, page, 21},
		{2*page - 1, 1, 21},
		{2*page - 1, 2, 0},
		{2*page + 5, 100, 22},
		{3 * page, 1, 0},
		{4 * page, 1, 0},
		{400 * page, page, 0},
	} {
		if got := o.ref(tt.at, tt.n); got != tt.want {
			t.Errorf("%d bytes at %d: gref %d, want %d", tt.n, tt.at, got, tt.want)
		}
	}
	if got := (&ownPages{}).ref(0, 1); got != 0 {
		t.Errorf("an arena without own pages: gref %d", got)
	}
}

// bothWays sends packets of all sizes each way and checks them.
func (b *bed) bothWays() {
	b.tb.Helper()
	f := b.front()
	f.post(netif.RxRingSize - int(f.rx.ReqProd()-f.rx.RspCons()))
	var sent [][]byte
	for i, n := range []int{18, 1400, 3000, 40000, 65000, 65000, 20, 9000} {
		sent = append(sent, udp(n, uint16(i)))
	}
	for _, frame := range sent {
		f.put(packet{frame: frame, slots: pagesOf(frame)})
	}
	f.push()
	b.host.sendPlain(sent...)
	b.settle()
	if diff := cmp.Diff(sent, b.host.frames(), asBytes); diff != "" {
		b.tb.Errorf("packets to the host (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(sent, framesOf(f.received()), asBytes); diff != "" {
		b.tb.Errorf("packets to the guest (-want +got):\n%s", diff)
	}
	f.answers()
}

// pagesOf cuts a frame into slots of a page.
func pagesOf(frame []byte) []int {
	var sizes []int
	for n := netif.PageSize; n < len(frame); n += netif.PageSize {
		sizes = append(sizes, netif.PageSize)
	}
	return cut(len(frame), sizes...)
}

// TestFewOwnPages: packets arrive with any number of own pages, and all are given back.
func TestFewOwnPages(t *testing.T) {
	inModes(t, allModes[:2], func(t *testing.T, m mode) {
		for _, tt := range []struct {
			name          string
			limit         int
			calls         int // that succeed; -1: all
			granted, warn int
		}{
			{"none", 0, -1, 0, 1},
			{"less than a step", ownStep - 1, -1, 0, 1},
			{"the first step", ownStep, -1, ownStep, 1},
			{"some in each arena", 5*ownStep + 1, -1, 5 * ownStep, 1},
			{"all", 1 << 16, -1, -1, 0},
			{"the device fails at once", 1 << 16, 0, 0, 1},
			{"the device fails later", 1 << 16, 3, 3 * ownStep, 1},
		} {
			t.Run(tt.name, func(t *testing.T) {
				own := xentest.StartOwn(t, tt.limit)
				b := newBed(t, m, setup{cfg: full, pager: &failingPager{ownPager{own}, tt.calls}})
				b.bothWays()
				want := OwnPages{Wanted: txOwnPages + rxOwnPages, Granted: tt.granted}
				if b.w.uring.ring != nil && b.queue().reader.byRing {
					want.Wanted = MaxOwnPages
				}
				if tt.granted < 0 {
					want.Granted = want.Wanted
				}
				if diff := cmp.Diff(want, b.w.pool.OwnPages()); diff != "" {
					t.Errorf("own pages (-want +got):\n%s", diff)
				}
				if got := own.Granted(); got != want.Granted {
					t.Errorf("%d pages are granted, want %d", got, want.Granted)
				}
				if len(b.warned) != tt.warn {
					t.Errorf("warnings: %v", b.warned)
				}
				b.warned = nil
				b.disconnect()
				b.w.closeOwn()
				if got := own.Granted(); got != 0 {
					t.Errorf("%d pages are granted after the end", got)
				}
				if diff := cmp.Diff(OwnPages{}, b.w.pool.OwnPages()); diff != "" {
					t.Errorf("own pages after the end (-want +got):\n%s", diff)
				}
			})
		}
	})
}

// remappingPager fails after it has put other memory in the place of the arena's, as the
// device does when its mmap fails half way.
type remappingPager struct{ OwnPager }

func (p remappingPager) AllocOwn(mem []byte) (*gntalloc.Pages, error) {
	pages, err := p.OwnPager.AllocOwn(mem)
	if err != nil {
		return nil, err
	}
	return nil, errors.Join(unix.ENOMEM, pages.Free())
}

// TestNoOwnPageButOtherMemory: the io_uring does not use memory that is gone.
func TestNoOwnPageButOtherMemory(t *testing.T) {
	inModes(t, allModes[:2], func(t *testing.T, m mode) {
		b := newBed(t, m, setup{cfg: full, pager: remappingPager{startOwn(t)}})
		f := b.front()
		var sent [][]byte
		for i := range 8 {
			sent = append(sent, udp(100, uint16(i)))
			f.put(packet{frame: sent[i]})
		}
		f.push()
		b.settle()
		if diff := diffFrames(sent, b.host.frames()); diff != "" {
			t.Error(diff)
		}
		b.warned = nil
	})
}

// TestMissingOwnPagesAreAskedForAgain: pages that there was no room for come when there is
// room, with the next vif or while packets move, and no packet is lost on the way.
func TestMissingOwnPagesAreAskedForAgain(t *testing.T) {
	inModes(t, allModes[:2], func(t *testing.T, m mode) {
		own := xentest.StartOwn(t, ownStep)
		b := newBed(t, m, setup{cfg: full, pager: ownPager{own}})
		rounds := func(n int) {
			for range n {
				b.w.now = time.Time{}
				b.w.moreOwn()
			}
		}
		granted := func(what string, want int) {
			t.Helper()
			if got := b.w.pool.OwnPages(); got.Granted != want || own.Granted() != want {
				t.Errorf("%s: %+v, want %d pages", what, got, want)
			}
		}
		b.bothWays()
		granted("with the first vif", ownStep)
		own.SetLimit(3 * ownStep)
		rounds(2 * ownRounds)
		granted("before it is time", ownStep)
		b.now = b.now.Add(2 * ownRetry)
		rounds(ownRounds - 1)
		granted("between two looks at the clock", ownStep)
		rounds(1)
		granted("in time", 3*ownStep)
		b.bothWays()
		own.SetLimit(1 << 16)
		b.now = b.now.Add(2 * ownRetry)
		rounds(ownRounds)
		all := b.w.pool.OwnPages().Wanted
		granted("all of them", all)
		if len(b.w.own.missing) != 0 {
			t.Errorf("missing: %v", b.w.own.missing)
		}
		b.bothWays()
		if len(b.warned) != 1 {
			t.Errorf("warnings: %v", b.warned)
		}
		b.warned = nil
	})
}

// losingPager unmaps the place that it was to put pages in, after some calls that succeed.
type losingPager struct {
	ownPager
	left int
}

func (p *losingPager) AllocOwn(mem []byte) (*gntalloc.Pages, error) {
	if p.left--; p.left >= 0 {
		return p.ownPager.AllocOwn(mem)
	}
	return nil, errors.Join(gntalloc.ErrLost, unmapPart(mem))
}

// TestArenaWithAHole: a worker that lost a part of an arena uses another arena, and its
// packets arrive.
func TestArenaWithAHole(t *testing.T) {
	inModes(t, allModes[:2], func(t *testing.T, m mode) {
		for calls := range 3 {
			own := startOwn(t)
			b := newBed(t, m, setup{cfg: full, pager: &losingPager{own, calls}})
			for range 3 {
				b.bothWays()
			}
			if got := b.w.pool.OwnPages(); got.Granted != 0 || own.Granted() != 0 || b.w.failed != nil {
				t.Errorf("after %d calls: own pages %+v, the worker: %v", calls, got, b.w.failed)
			}
			if len(b.warned) != 1 || !errors.Is(b.warned[0], gntalloc.ErrLost) {
				t.Errorf("warnings: %v", b.warned)
			}
			b.warned = nil
		}
	})
}

// TestOwnPagesAreLost: packets are copied by address when the own grefs are not valid any
// more, and none is lost.
func TestOwnPagesAreLost(t *testing.T) {
	inModes(t, allModes[:2], func(t *testing.T, m mode) {
		for _, tt := range []struct {
			name string
			lose func(b *bed)
		}{
			{"all grefs", func(b *bed) {
				for _, m := range []*arenaMem{&b.w.txMem, &b.w.rxMem} {
					for _, ref := range m.own.refs {
						if ref != 0 {
							xentest.RevokeOwn(ref)
						}
					}
				}
			}},
			{"the call", func(b *bed) {
				b.front().grants.noOwn = true
			}},
		} {
			t.Run(tt.name, func(t *testing.T) {
				b := newBed(t, m, setup{cfg: full})
				b.bothWays()
				tt.lose(b)
				b.bothWays()
				if got := b.w.pool.OwnPages(); !got.Lost || len(b.warned) != 1 {
					t.Errorf("own pages: %+v, warnings: %v", got, b.warned)
				}
				b.warned = nil
				before := b.stat(GrantCalls)
				b.bothWays()
				if n := b.stat(GrantCalls) - before; n > 6 {
					t.Errorf("%d calls when they are known to be lost", n)
				}
				if drops := b.stats(Drop); len(drops) != 0 {
					t.Errorf("drops: %v", drops)
				}
			})
		}
	})
}

// TestAGuestCannotLoseOwnPages: grefs of a guest that are bad, or that become good when they
// are tried again, do not make the worker give up its own pages.
func TestAGuestCannotLoseOwnPages(t *testing.T) {
	inModes(t, allModes[:2], func(t *testing.T, m mode) {
		b := newBed(t, m, setup{cfg: full})
		f := b.front()
		want := errored(f.put(packet{frame: udp(100, 1)}))
		good := f.put(packet{frame: udp(100, 2)})
		f.beforeCopy(0, func() error { return gntdev.StatusBadGntref })
		calls := b.stat(GrantCalls)
		f.push()
		b.settle()
		if diff := cmp.Diff(append(want, good...), f.answers()); diff != "" {
			t.Errorf("answers (-want +got):\n%s", diff)
		}
		if n := b.stat(GrantCalls) - calls; n != 2 {
			t.Errorf("%d calls, want one for the packets and one to try the own page", n)
		}
		if got := b.w.pool.OwnPages(); got.Lost || len(b.warned) != 0 {
			t.Errorf("own pages: %+v, warnings: %v", got, b.warned)
		}
		b.host.drain()
		b.bothWays()
	})
}

// TestOwnPagesComeAndGo: a worker has own pages from its first vif on, and gives them back
// at its end.
func TestOwnPagesComeAndGo(t *testing.T) {
	inModes(t, allModes[:2], func(t *testing.T, m mode) {
		own := startOwn(t)
		p, err := NewPool(Options{Workers: 2, NoUring: !m.uring, OwnPager: own, Warn: func(err error) { t.Error(err) }})
		must(t, err)
		defer p.Close()
		if n := own.Granted(); n != 0 {
			t.Errorf("%d own pages without a vif", n)
		}
		end := sharedTAP(t, 1, m.vnet)
		for range 2 {
			f := newFront(t, testDomid)
			q := f.config()
			q.Tap = end.tap.Queue(0)
			cfg := full
			cfg.Domid, cfg.VnetHdr = testDomid, m.vnet
			c, err := p.Connect(cfg, []QueueConfig{q})
			must(t, err)
			got := p.OwnPages()
			if got.Granted == 0 || got.Granted != got.Wanted || got.Granted > MaxOwnPages || own.Granted() != got.Granted {
				t.Errorf("own pages of one worker: %+v; the device has granted %d", got, own.Granted())
			}
			c.Close()
		}
		p.Close()
		if n := own.Granted(); n != 0 || p.OwnPages() != (OwnPages{}) {
			t.Errorf("%d own pages after the end; %+v", n, p.OwnPages())
		}
	})
}

// TestUnregisteredArenas: an io_uring with which the arenas could not be registered is used
// all the same.
func TestUnregisteredArenas(t *testing.T) {
	inModes(t, allModes[:1], func(t *testing.T, m mode) {
		b := newBed(t, m, setup{cfg: full})
		if b.w.uring.ring == nil || !b.w.hasOwn() {
			t.Fatal("no io_uring, or no own pages")
		}
		b.w.uring.fixed = false
		b.queue().reader.run.expected = 40 // so that reads go through the ring
		b.bothWays()
	})
}

var errNoOwn = errors.New("a kernel that knows no copy between two grefs")
