// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/vif"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntalloc"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xentest"
)

// hostileFront is a connected frontend of one queue. Its rings are in the test's own
// memory.
type hostileFront struct {
	*rawFront
	data *gntalloc.Pages // to send from
	c    *cable

	// The control ring, if there is one, and behind it a page for messages.
	ctrl     *netif.CtrlFront
	ctrlPage *gntalloc.Pages
	ctrlPort evtchn.Port
}

const dataPages = 4

func (w *world) hostileFront() *hostileFront {
	w.t.Helper()
	f := &hostileFront{rawFront: w.rawFront(1)}
	var err error
	f.data, err = f.pages.Alloc(0, dataPages, true)
	w.must(err)
	for p := range dataPages {
		for off := 0; off < netif.PageSize; off += 512 {
			copy(f.data.Bytes()[p*netif.PageSize+off:], numbered(uint32(p<<16|off)))
		}
	}
	f.connect()
	f.c = w.cable(f.status().Interface, func(f func() error) error { return f() })
	return f
}

func (f *hostileFront) q() *rawQueue { return &f.queues[0] }

// publish publishes the requests in the tx ring and sends an event.
func (f *hostileFront) publish() {
	f.w.t.Helper()
	f.q().tx.Push()
	f.w.must(f.events.Notify(f.q().txPort))
}

// answers waits for n responses, and takes them.
func (f *hostileFront) answers(n int) (rsp []netif.TxResponse) {
	f.w.t.Helper()
	tx := f.q().tx
	for {
		there, err := tx.ArmFor(uint32(n))
		f.w.must(err)
		if there {
			break
		}
		f.sleep()
	}
	for range n {
		rsp = append(rsp, tx.Response(tx.RspCons()))
		tx.Take(1)
	}
	return rsp
}

// sleep waits for an event.
func (f *hostileFront) sleep() {
	f.w.t.Helper()
	fds := []unix.PollFd{{Fd: int32(f.events.FD()), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, int(patience/time.Millisecond))
	if err == unix.EINTR {
		return
	}
	f.w.must(err)
	if n == 0 {
		f.w.t.Fatal("waited in vain for an event")
	}
	ports := make([]evtchn.Port, 8)
	n, err = f.events.Pending(ports)
	f.w.must(err)
	f.w.must(f.events.Unmask(ports[:n]))
}

// renewed reconnects with new rings.
func (f *hostileFront) renewed() {
	f.w.t.Helper()
	old := f.q().rings
	f.close()
	f.w.must(old.Free())
	f.reopen()
	f.newRings(1)
	f.connect()
}

// served checks that the frontend is in service.
func (f *hostileFront) served() {
	f.w.t.Helper()
	q := f.q()
	q.tx.Put(netif.TxRequest{Gref: f.data.Refs()[0], ID: 9, Size: 60})
	f.publish()
	if diff := cmp.Diff([]netif.TxResponse{{ID: 9}}, f.answers(1)); diff != "" {
		f.w.t.Errorf("answer (-want +got):\n%s", diff)
	}
}

// TestEventStorm: the daemon handles events without work less and less often. They cost
// the daemon little and other guests nothing, and work that comes with them is still done
// (XSA-332).
func TestEventStorm(t *testing.T) {
	w := newWorld(t)
	f := w.hostileFront()
	daemon := w.Daemon().PID()
	stop := make(chan struct{})
	var sent atomic.Uint64
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			for _, p := range []evtchn.Port{f.q().txPort, f.q().rxPort} {
				if err := f.events.Notify(p); err != nil {
					t.Error(err)
					return
				}
			}
			sent.Add(2)
			select {
			case <-stop:
				return
			default:
			}
		}
	})
	defer wg.Wait()
	defer close(stop)
	spurious := func() uint64 { return f.status().Counters[dataplane.SpuriousWakes.String()] }
	w.wait("the storm to be heard", func() bool { return spurious() > 32 })

	cpu, heard, events, start := w.cpuTime(daemon), spurious(), sent.Load(), time.Now()
	<-time.After(time.Second)
	took := time.Since(start)
	cpu, heard, events = w.cpuTime(daemon)-cpu, spurious()-heard, sent.Load()-events
	t.Logf("of %d events %d were heard; they took %v of %v", events, heard, cpu, took)
	if heard > uint64(took/(5*time.Millisecond)) || heard > events/4 {
		t.Errorf("of %d events %d were heard in %v", events, heard, took)
	}
	if cpu > took/5 {
		t.Errorf("the daemon was busy for %v of %v", cpu, took)
	}
	for range 20 {
		f.served()
	}
	w.undisturbed(func() {
		for range 20 {
			f.served()
		}
	})
}

// badPackets returns every kind of bad packet that is no violation of the ring protocol,
// with its drop counter and its number of slots.
func (f *hostileFront) badPackets() []badPacket {
	good := f.data.Refs()[0]
	const bogus, more, extra = 0xfffffff0, netif.TxMoreData, netif.TxExtraInfo
	req := func(gref xen.Gref, flags netif.TxFlags, off, size uint16) netif.TxRequest {
		return netif.TxRequest{Gref: gref, Flags: flags, Offset: off, Size: size}
	}
	long := []netif.TxRequest{req(good, more, 0, 2000)}
	for range 18 {
		long = append(long, req(good, more, 0, 60))
	}
	long = append(long, req(good, 0, 0, 60))
	return []badPacket{
		{[]netif.TxRequest{req(bogus, 0, 0, 60)}, nil, dataplane.DropTxGrant},
		{[]netif.TxRequest{req(good, more, 0, 200), req(bogus, 0, 0, 100)}, nil, dataplane.DropTxGrant},
		{[]netif.TxRequest{req(good, more, 0, 3000), req(good, 0, 4000, 97)}, nil, dataplane.DropTxCross},
		{[]netif.TxRequest{req(good, 0, 0, 13)}, nil, dataplane.DropTxShort},
		{[]netif.TxRequest{req(good, more, 0, 100), req(good, 0, 0, 101)}, nil, dataplane.DropTxSize},
		{long, nil, dataplane.DropTxSlots},
		{[]netif.TxRequest{req(good, extra, 0, 60)}, []netif.ExtraInfo{gso(netif.GSOTCPv4, 0)}, dataplane.DropTxGSO},
		{[]netif.TxRequest{req(good, extra, 0, 60)}, []netif.ExtraInfo{gso(netif.GSOTCPv4, 1400)}, dataplane.DropTxGSO},
		{[]netif.TxRequest{req(good, netif.TxCsumBlank, 0, 60)}, nil, dataplane.DropTxCsum},
		{[]netif.TxRequest{req(bogus, extra, 0, 0)}, []netif.ExtraInfo{netif.NewMcast(true, unicast)}, dataplane.DropMcastFull},
	}
}

type badPacket struct {
	reqs   []netif.TxRequest
	extras []netif.ExtraInfo // behind the first
	why    dataplane.Counter
}

func (b *badPacket) slots() int { return len(b.reqs) + len(b.extras) }

// put puts the packet in the ring.
func (f *hostileFront) put(b *badPacket) {
	tx := f.q().tx
	for i, r := range b.reqs {
		tx.Put(r)
		if i > 0 {
			continue
		}
		for k, e := range b.extras {
			if k < len(b.extras)-1 {
				e.Flags |= netif.ExtraMore
			}
			tx.PutExtra(e)
		}
	}
}

// TestHundredThousandBadPackets: a hundred thousand bad packets use up no resource.
func TestHundredThousandBadPackets(t *testing.T) {
	w := newWorld(t, "--rx-drain=1h", "--rx-stall=1h") // the guest has no rx buffers
	f := w.hostileFront()
	kinds := f.badPackets()
	next := 0
	send := func(packets int) drops {
		sent := drops{}
		for packets > 0 {
			slots := 0
			for packets > 0 && slots+kinds[next].slots() <= netif.TxRingSize {
				f.put(&kinds[next])
				slots += kinds[next].slots()
				sent[kinds[next].why]++
				next = (next + 1) % len(kinds)
				packets--
			}
			f.publish()
			f.answers(slots)
		}
		return sent
	}
	counted := func() drops {
		s := f.status()
		d := drops{}
		for c := range dataplane.NumCounters {
			if n := s.Counters[c.String()]; n > 0 && dataplane.Counters[c].Kind == dataplane.Drop {
				d[c] = n
			}
		}
		return d
	}
	w.allWorkersServe()
	want := send(10_000) // allocations that the daemon makes once
	before, lines := w.steady(), strings.Count(w.Daemon().Log(), "\n")
	begin := time.Now()
	w.undisturbed(func() {
		for c, n := range send(100_000) {
			want[c] += n
		}
	})
	t.Logf("100000 bad packets took %v", time.Since(begin))
	w.wait("all to be counted", func() bool { return counted().all() >= want.all() })
	if diff := cmp.Diff(want, counted()); diff != "" {
		t.Errorf("packets dropped, by reason (-want +got):\n%s", diff)
	}
	// The bystander needs some memory; a leak would need more.
	after := w.steady()
	if after.fds > before.fds+10 || after.maps > before.maps+30 || after.rss > before.rss+16<<10 || after.threads > before.threads+4 {
		t.Errorf("the daemon has grown from %+v to %+v", before, after)
	}
	if n := strings.Count(w.Daemon().Log(), "\n") - lines; n > 1 { // the line that the bystander is connected
		t.Errorf("the log has %d lines about what a guest can do as often as it likes", n)
	}
	f.served()
	f.connected()
}

// TestFloodOfTheSmallestPackets: a guest that sends the smallest packets as fast as it can
// gets its share and no more.
func TestFloodOfTheSmallestPackets(t *testing.T) {
	w := newWorld(t)
	f := w.hostileFront()
	var packets int
	w.undisturbed(func() {
		for start := time.Now(); time.Since(start) < time.Second; {
			for range netif.TxRingSize {
				f.q().tx.Put(netif.TxRequest{Gref: f.data.Refs()[0], Size: 60})
			}
			f.publish()
			for _, a := range f.answers(netif.TxRingSize) {
				if a.Status != okay {
					t.Fatalf("answered %v", a.Status)
				}
			}
			packets += netif.TxRingSize
		}
	})
	t.Logf("%d packets in a second", packets)
}

// TestRequestThatChangesWhileItIsRead: the daemon reads each word of a changing request
// once, and uses only the values that it has checked (XSA-155).
func TestRequestThatChangesWhileItIsRead(t *testing.T) {
	w := newWorld(t)
	f := w.hostileFront()
	refs := f.data.Refs()
	// Any mixture of the words of these is a packet, good or bad.
	shapes := []netif.TxRequest{
		{Gref: refs[0], Offset: 0, ID: 1, Size: 60},
		{Gref: refs[1], Offset: 512, ID: 2, Size: 2048},
		{Gref: refs[2], Offset: 4096 - 512, ID: 3, Size: 512},
		{Gref: 0xfffffff0, Offset: 0xfff0, ID: 4, Size: 0xffff},
	}
	allowed := func(frame []byte) bool {
		for p := range dataPages - 1 {
			for _, o := range shapes {
				for _, s := range shapes {
					end := int(o.Offset) + int(s.Size)
					if end > netif.PageSize || int(s.Size) != len(frame) {
						continue
					}
					if bytes.Equal(frame, f.data.Bytes()[p*netif.PageSize:][o.Offset:end]) {
						return true
					}
				}
			}
		}
		return false
	}
	mark := append(plainFrame(14), "the end of the flips"...)
	copy(f.data.Bytes()[3*netif.PageSize:], mark)
	w.undisturbed(func() {
		const rounds = 1500
		tx, page := f.q().tx, f.q().rings.Bytes()[:netif.PageSize]
		for range rounds {
			i := tx.ReqProd()
			tx.Put(shapes[0])
			stop := flipped(func(k int) { xentest.PokeTx(page, i, shapes[k%len(shapes)]) })
			f.publish()
			n := len(f.answers(1)) // any answer is overwritten
			stop()
			if n != 1 {
				t.Fatal("no answer")
			}
		}
	})
	f.q().tx.Put(netif.TxRequest{Gref: refs[3], Size: uint16(len(mark))})
	f.publish()
	f.answers(1)
	shapesSeen := map[string]int{}
	for _, s := range f.c.until(mark) {
		if !allowed(s.frame) || s.vnet != (tap.VnetHdr{}) {
			t.Fatalf("a frame of %d bytes came out, which no request says: % x", len(s.frame), clip(s.frame))
		}
		shapesSeen[fmt.Sprintf("%d bytes from %d", len(s.frame), binary.BigEndian.Uint32(s.frame[14:])&0xffff)]++
	}
	t.Logf("frames seen: %v", shapesSeen)
	if len(shapesSeen) < 2 && runtime.NumCPU() > 1 { // on one CPU only one of both runs
		t.Error("no request was seen to change; then this shows nothing")
	}
	f.served()
}

// flipped calls poke with growing numbers, on a goroutine of its own, until stop.
func flipped(poke func(int)) (stop func()) {
	var done atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		for k := 0; !done.Load(); k++ {
			poke(k)
		}
	})
	return func() {
		done.Store(true)
		wg.Wait()
	}
}

// TestRxRequestThatChangesWhileItIsRead does the same with rx requests while packets are
// delivered to them.
func TestRxRequestThatChangesWhileItIsRead(t *testing.T) {
	w := newWorld(t)
	f := w.hostileFront()
	buffers, err := f.pages.Alloc(0, 2, true)
	w.must(err)
	shapes := []netif.RxRequest{
		{ID: 1, Gref: buffers.Refs()[0]}, {ID: 2, Gref: buffers.Refs()[1]}, {ID: 3, Gref: 0xfffffff0},
	}
	rx, page := f.q().rx, f.q().rings.Bytes()[netif.PageSize:]
	delivered := func(s *vif.Status) uint64 {
		return s.Counters[dataplane.RxPackets.String()] + s.Counters[dataplane.DropRxGrant.String()]
	}
	w.undisturbed(func() {
		start := delivered(f.status())
		for n := range uint64(150) {
			i := rx.ReqProd()
			rx.Put(shapes[0])
			rx.Push()
			stop := flipped(func(k int) { xentest.PokeRx(page, i, shapes[k%len(shapes)]) })
			f.c.send(tap.VnetHdr{}, plainFrame(1000))
			w.must(f.events.Notify(f.q().rxPort))
			w.wait("the packet to be delivered", func() bool { return delivered(f.status()) > start+n })
			stop()
			rx.Take(1)
		}
	})
	s := f.status()
	t.Logf("%d delivered, %d into buffers that are none", s.Counters[dataplane.RxPackets.String()], s.Counters[dataplane.DropRxGrant.String()])
	if s.Quarantine != "" {
		t.Errorf("quarantined: %s", s.Quarantine)
	}
	f.served()
}

// TestRingsFullOfNonsense: rings full of random data harm only their guest. With new rings
// it is served again.
func TestRingsFullOfNonsense(t *testing.T) {
	w := newWorld(t)
	f := w.hostileFront()
	books := w.books()
	rnd := rand.New(rand.NewPCG(1, 2))
	quarantines := 0
	w.undisturbed(func() {
		books = w.books() // including the bystander's
		for i := range 16 {
			whole := i%2 == 0
			mem := f.q().rings.Bytes()
			get := func(at int) uint32 { return binary.NativeEndian.Uint32(mem[at:]) }
			set := func(at int, v uint32) { binary.NativeEndian.PutUint32(mem[at:], v) }
			for n := 0; n < 200 && f.status().Quarantine == ""; n++ {
				for range 64 {
					ring := rnd.IntN(2) * netif.PageSize
					if whole {
						set(ring+4*rnd.IntN(netif.PageSize/4), rnd.Uint32())
						continue
					}
					// Valid indices, and nearly valid slots.
					slot := ring + 64 + 4*rnd.IntN((netif.PageSize-64)/4)
					set(slot, []uint32{rnd.Uint32(), rnd.Uint32() & 0x000f_0fff, uint32(f.data.Refs()[0]), 60 << 16, 0}[rnd.IntN(5)])
					set(ring, get(ring+8)+rnd.Uint32N(3))
				}
				w.must(f.events.Notify(f.q().txPort))
				w.must(f.events.Notify(f.q().rxPort))
				if n%4 == 0 {
					f.c.send(tap.VnetHdr{}, plainFrame(60))
				}
			}
			if f.status().Quarantine != "" {
				quarantines++
			}
			f.renewed()
			f.served()
			f.connected()
			if now := w.books(); now != books {
				t.Fatalf("round %d: Xen's books say %+v, said %+v", i, now, books)
			}
		}
	})
	t.Logf("%d of 16 rounds ended in quarantine", quarantines)
	if quarantines == 0 {
		t.Error("none of it was noticed")
	}
}
