// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/netbackd/netbackd/internal/iouring"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/staticgrant"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/xen"
	"golang.org/x/sys/unix"
)

// standIn replaces grant copy where there is no hypervisor: one process_vm_readv or
// _writev for all segments of a call, from this process to itself.
type standIn struct {
	pages         uintptr // address of the page behind firstRef
	local, remote *iouring.Iovecs
	pid           uintptr
	single        bool // a call for each segment
}

func (s *standIn) Copy(segs []gntdev.Segment) error {
	if s.single && len(segs) > 1 {
		for i := range segs {
			if err := s.Copy(segs[i : i+1]); err != nil {
				return err
			}
		}
		return nil
	}
	call := uintptr(unix.SYS_PROCESS_VM_READV)
	if segs[0].Direction() == gntdev.GuestIsDest {
		call = unix.SYS_PROCESS_VM_WRITEV
	}
	for i := range segs {
		_, ref, off := segs[i].Foreign()
		s.remote.Set(i, s.pages+uintptr(ref-firstRef)*netif.PageSize+uintptr(off), uint32(segs[i].Len()))
		s.local.Set(i, segs[i].Local(), uint32(segs[i].Len()))
	}
	n := uintptr(len(segs))
	if _, _, e := unix.RawSyscall6(call, s.pid, s.local.At(0), n, s.remote.At(0), n, 0); e != 0 {
		return e
	}
	for i := range segs {
		segs[i].SetStatus(gntdev.StatusOkay)
	}
	return nil
}

// mappedPages maps the guest's pages, which are mapped already, at the same addresses for
// every lane.
type mappedPages []byte

func (m mappedPages) Map(_ xen.Domid, refs []xen.Gref, _ gntdev.Prot) (*gntdev.Mapping, error) {
	at := int(refs[0]-firstRef) * netif.PageSize
	return gntdev.NewMapping(m[at:at+netif.PageSize], func() error { return nil }), nil
}

// notifyOnly sends events as the data path does, with a system call each. No guest
// receives them.
type notifyOnly struct {
	noEvents
	peer int
	one  []byte
}

func newNotifyOnly() (n notifyOnly, err error) {
	efd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return n, err
	}
	peer, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	return notifyOnly{noEvents{efd}, peer, []byte{1, 0, 0, 0, 0, 0, 0, 0}}, err
}

func (n notifyOnly) Notify(evtchn.Port) error {
	_, err := unix.Write(n.peer, n.one)
	return err
}

// lane is a worker with one queue, and the guest of that queue. Lanes with different
// options are measured against each other.
type lane struct {
	bed
	name  string
	f     *front
	polls uint64
	hist  map[int][2]int // estimate of the queue's reader, by batch
}

// lanePages is the number of pages that a lane's guest uses each way: one for each slot
// of the ring, the most that netbackd offers to map.
const lanePages = netif.TxRingSize

// row returns the lane's name in rows whose worker begins with batch packets.
func (l *lane) row(batch int) string { return fmt.Sprintf("%s, batch %d", l.name, batch) }

// benchTB is the harness's testing.TB outside of a test.
type benchTB struct{ childTB }

// grantUse selects the way of a lane's packets from and to the guest's pages.
type grantUse uint8

const (
	copied       grantUse = iota // one grant copy for a batch
	copiedSingly                 // one for each packet
	static                       // all pages are static grants
)

// newLane makes a lane whose guest has its data in the pages of guest. All lanes share
// these pages. With pages of their own the lanes would evict each other's entries from the
// TLB, which does not happen with a single guest.
func newLane(name string, d *tap.Device, uring bool, use grantUse, guest *front) *lane {
	l := &lane{name: name, hist: map[int][2]int{}, bed: bed{tb: benchTB{}, tap: d}}
	l.newWorker(uring)
	l.w.clock = time.Now
	l.w.reads.compared = false
	l.f = newFront(l.tb, testDomid)
	local, err := iouring.NewIovecs(256)
	must(l.tb, err)
	remote, err := iouring.NewIovecs(256)
	must(l.tb, err)
	q := l.f.config() // its rings are its own
	l.f.mem, l.f.back, l.f.mapper = guest.mem, guest.back, mappedPages(guest.back[txPages:])
	q.Tap = d.Queue(0)
	q.Grants = &standIn{pages: address(l.f.back[txPages:]), local: local, remote: remote, pid: uintptr(os.Getpid()), single: use == copiedSingly}
	if use == static {
		l.f.static = staticgrant.New(2 * lanePages)
		l.f.makeStatic(netif.GrefReadOnly, refs(0, lanePages)...)
		l.f.makeStatic(0, refs(frontPages, frontPages+lanePages)...)
		q.Static = l.f.static
	}
	q.Events, err = newNotifyOnly()
	must(l.tb, err)
	cfg := full
	cfg.Domid, cfg.VnetHdr = testDomid, true
	l.conn, err = newConn(cfg, []QueueConfig{q})
	must(l.tb, err)
	l.queue().coalescer.what = CoalesceIf(true, false) // as by default
	l.queue().worker.Store(l.w)
	must(l.tb, l.w.attach(l.queue()))
	l.fronts = []*front{l.f}
	l.repost()
	l.work(0)
	return l
}

// takeTx takes responses and requests an event for when half of the outstanding requests
// are answered, as Linux netfront does.
func (l *lane) takeTx() {
	n, err := l.f.tx.Responses()
	must(l.tb, err)
	l.f.tx.Take(n)
	left := l.f.tx.ReqProd().Sub(l.f.tx.RspCons())
	_, _ = l.f.tx.ArmFor(left/2 + 1)
}

// putTx puts n packets into the tx ring.
func (l *lane) putTx(b *benchFrame, n int) {
	for k := range n {
		off := 0
		if len(b.frame) <= netif.PageSize-15*64 {
			off = k % 16 * 64 // as the peers do
		}
		for i, rest := 0, b.frame; len(rest) > 0; i++ {
			if l.f.nextTx == lanePages {
				l.f.nextTx = 0
			}
			ref, page := l.f.txPage()
			m := copy(page[off:], rest)
			rest = rest[m:]
			r := netif.TxRequest{Gref: ref, Offset: uint16(off), ID: uint16(k), Size: uint16(m)}
			if i == 0 {
				r.Size, r.Flags = uint16(len(b.frame)), b.flags
				if len(b.extras) > 0 {
					r.Flags |= netif.TxExtraInfo
				}
			}
			if len(rest) > 0 {
				r.Flags |= netif.TxMoreData
			}
			l.f.tx.Put(r)
			if i == 0 {
				for _, e := range b.extras {
					l.f.tx.PutExtra(e)
				}
			}
		}
	}
	l.f.tx.Push()
}

// repost takes all delivered packets and posts their slots again.
func (l *lane) repost() {
	n, err := l.f.rx.Responses()
	must(l.tb, err)
	l.f.rx.Take(n)
	for range l.f.rx.Free() {
		i := l.f.nextRx % lanePages
		l.f.nextRx++
		l.f.rx.Put(netif.RxRequest{ID: uint16(i), Gref: firstRef + frontPages + xen.Gref(i)})
	}
	l.f.rx.Push()
	_, _ = l.f.rx.Arm()
}

// work runs the worker until it has no work, as worker.run would, and returns the time
// that it took. The time does not include a poll for events at the end.
func (l *lane) work(overhead time.Duration) (took time.Duration) {
	l.w.sched.schedule(l.queue())
	for l.w.sched.waits() {
		start := time.Now()
		for l.w.sched.waits() {
			l.w.round()
		}
		took += time.Since(start) - overhead
		start = time.Now()
		must(l.tb, l.w.poll(0))
		if l.w.sched.waits() {
			took += time.Since(start) - overhead
		}
	}
	return took
}

// txRun makes one run: b.run packets from the guest, batch at a time.
func (l *lane) txRun(b *benchFrame, batch int, overhead time.Duration) (took time.Duration, err error) {
	before := l.stat(TxPackets)
	for done := -b.warm(); done < b.run; done += batch {
		l.takeTx()
		l.putTx(b, batch)
		if t := l.work(overhead); done >= 0 {
			took += t
		}
	}
	if n := l.stat(TxPackets) - before; n != uint64(b.warm()+b.run) {
		return 0, fmt.Errorf("%d packets of %d reached the TAP: %v", n, b.warm()+b.run, l.stats(Drop))
	}
	return took, nil
}

// rxRun makes one run: b.run packets to the guest, batch at a time.
func (l *lane) rxRun(b *benchFrame, h *filler, batch int, overhead time.Duration) (took time.Duration, err error) {
	before := l.stat(RxPackets)
	// Rows of other batches are other queues, as far as that matters.
	q := l.queue()
	q.reader.run.expected, q.reader.run.previous = l.hist[batch][0], l.hist[batch][1]
	defer func() { l.hist[batch] = [2]int{q.reader.run.expected, q.reader.run.previous} }()
	for done := -b.warm(); done < b.run; done += batch {
		l.repost()
		if err := h.fill(b, batch); err != nil {
			return 0, err
		}
		q.tapIn.ready = true
		if t := l.work(overhead); done >= 0 {
			took += t
		}
	}
	if n := l.stat(RxPackets) - before; n != uint64(b.warm()+b.run) {
		return 0, fmt.Errorf("%d packets of %d reached the guest: %v", n, b.warm()+b.run, l.stats(Drop))
	}
	return took, nil
}

// load keeps a lane busy until packets have passed. Like worker.run it polls for events
// now and then, and counts these calls as well.
func (l *lane) load(packets uint64, feed func() error, done Counter) error {
	until := l.stat(done) + packets
	for l.stat(done) < until {
		if err := feed(); err != nil {
			return err
		}
		l.w.sched.schedule(l.queue())
		if l.w.busy >= busyLimit {
			l.polls++
			if err := l.w.poll(0); err != nil {
				return err
			}
		}
		l.w.round()
	}
	return nil
}

// clockOverhead returns the time that an empty measurement takes.
func clockOverhead(l *lane) time.Duration {
	took := make([]time.Duration, 10001)
	for i := range took {
		start := time.Now()
		took[i] = time.Since(start)
	}
	slices.Sort(took)
	return took[len(took)/2]
}
