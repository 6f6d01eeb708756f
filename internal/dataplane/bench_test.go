// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/iouring"
	"github.com/netbackd/netbackd/internal/lab/bench"
	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/internal/lab/packettest"
	"github.com/netbackd/netbackd/internal/rawio"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/staticgrant"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/xen"
)

// envBench makes this binary measure the data path; see test/bench. The benchmark is
// among the tests because it uses their guest, and so that it times the worker's own round
// and not a copy of it.
const envBench = "DATAPLANE_BENCH"

// benchFrame describes the packets of a group.
type benchFrame struct {
	name    string
	frame   []byte // without vnet header
	vnet    tap.VnetHdr
	flags   netif.TxFlags
	extras  []netif.ExtraInfo
	run     int   // packets per run
	batches []int // packets that are there when the worker begins
}

func benchFrames() []benchFrame {
	small := packettest.Frame{IPv4: &packettest.IPv4{}, UDP: &packettest.UDP{}, Payload: packettest.Pattern(22)}
	mtu := packettest.Frame{IPv4: &packettest.IPv4{}, UDP: &packettest.UDP{}, Payload: packettest.Pattern(1472)}
	large := partial(tcp(4, 45*1448)) // all segments full, as a kernel sends it
	return []benchFrame{
		{name: "64 B", frame: small.Bytes(), run: 128, batches: []int{64, 8, 1}},
		{name: "1514 B", frame: mtu.Bytes(), run: 128, batches: []int{64, 8, 1}},
		{
			name: "64 KiB GSO", frame: large.Bytes(), vnet: vnetOf(large, 1448),
			flags: netif.TxCsumBlank | netif.TxDataValidated, extras: []netif.ExtraInfo{gso(4, 1448)},
			run: 8, batches: []int{8, 1},
		},
	}
}

// warm returns the number of packets that are sent before a run and not timed. They fill
// the caches as under load, instead of leaving there the data of the previous peer.
func (b *benchFrame) warm() int { return b.batches[0] }

// rxFrames returns the groups to the guest: the same frames in larger batches.
func rxFrames() []benchFrame {
	frames := benchFrames()
	frames[0].batches, frames[1].batches = []int{128, 8, 1}, []int{128, 8, 1}
	some := frames[0]
	some.name, some.run, some.batches = some.name+", backlog 40", 120, []int{40}
	return append(frames, some)
}

// withHeader returns the frame as it is written to the TAP.
func (b *benchFrame) withHeader() []byte {
	hdr := make([]byte, tap.VnetHdrLen, tap.VnetHdrLen+len(b.frame))
	b.vnet.Encode(hdr)
	return append(hdr, b.frame...)
}

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
	for len(l.w.sched.ready) > 0 {
		start := time.Now()
		for len(l.w.sched.ready) > 0 {
			l.w.round()
		}
		took += time.Since(start) - overhead
		start = time.Now()
		must(l.tb, l.w.poll(0))
		if len(l.w.sched.ready) > 0 {
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

// floor only reads packets, as a lane does: into the same memory, from the same process,
// with a system call for each packet or with the lane's io_uring, and with an event for
// the guest at the end.
type floor struct {
	l     *lane
	iov   *iouring.Iovecs
	calls []rawio.Call
	page  int
}

func newFloor(l *lane) *floor {
	iov, err := iouring.NewIovecs(bench.MaxBatch * (1 + maxFramePages))
	must(l.tb, err)
	return &floor{l: l, iov: iov, calls: make([]rawio.Call, bench.MaxBatch)}
}

// rxRun makes one run of reads.
func (p *floor) rxRun(b *benchFrame, h *filler, overhead time.Duration) (took time.Duration, err error) {
	w, q := p.l.w, p.l.queue()
	batch := b.batches[0]
	pages := len(b.frame) > smallPacket
	trap := uintptr(unix.SYS_READ)
	for done := -b.warm(); done < b.run; done += batch {
		if err := h.fill(b, batch); err != nil {
			return 0, err
		}
		for k := range batch {
			at := w.rxMem.addr(rxFrameAt(k%rxReads, pages) - q.vnetLen)
			if !pages && w.uring.ring == nil {
				at = w.rxMem.addr(rxDenseAt(k%rxCalls) - q.vnetLen)
			}
			p.calls[k] = rawio.Call{Addr: at, Len: uint32(q.reader.readLen)}
			if !pages {
				continue
			}
			trap = unix.SYS_READV
			first, n := k*(1+maxFramePages), int(slotsOf(len(b.frame)))
			p.iov.Set(first, at, uint32(q.vnetLen))
			for i := 1; i <= n; i++ {
				p.page = (p.page + 1) % lanePages
				p.iov.Set(first+i, address(p.l.f.back[rxPages+p.page*netif.PageSize:]), netif.PageSize)
			}
			p.calls[k] = rawio.Call{Addr: p.iov.At(first), Len: uint32(1 + n)}
		}
		start := time.Now()
		var n int
		if w.uring.ring == nil {
			n = rawio.Until(trap, q.tap.FD(), p.calls[:batch], q.reader.readLen)
		} else {
			n = p.readByRing(p.calls[:batch])
		}
		must(p.l.tb, p.l.queue().events.Notify(0)) // as the lane does
		if t := time.Since(start) - overhead; done >= 0 {
			took += t
		}
		if n != batch {
			return 0, fmt.Errorf("read %d packets of %d", n, batch)
		}
	}
	return took, nil
}

// readByRing reads with the lane's io_uring, with as many packets per call as the lane,
// and returns the number of packets.
func (p *floor) readByRing(calls []rawio.Call) (n int) {
	w := p.l.w
	for part := range slices.Chunk(calls, rxReads) {
		for k := range part {
			w.uring.ring.ReadFixed(p.l.queue().id, part[k].Addr, part[k].Len, bufRx, uint64(k))
		}
		_, err := w.uring.ring.Submit()
		must(p.l.tb, err)
		for _, c := range w.uring.cqes[:w.uring.ring.Completions(w.uring.cqes[:])] {
			if c.Res > 0 {
				n++
			}
		}
	}
	return n
}

// filler sends packets into the TAP from the host's side and receives none.
type filler struct {
	fd  int
	buf []byte
}

func newFiller(ifindex int) (*filler, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	for _, opt := range []int{unix.PACKET_VNET_HDR, unix.PACKET_QDISC_BYPASS} {
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, opt, 1); err != nil {
			return nil, err
		}
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 64<<20); err != nil {
		return nil, err
	}
	return &filler{fd: fd}, unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: ifindex})
}

func (h *filler) fill(b *benchFrame, n int) error {
	all := b.withHeader()
	h.buf = append(append(h.buf[:0], all[:packetHdrLen]...), b.frame...)
	for range n {
		if _, err := unix.Write(h.fd, h.buf); err != nil {
			return fmt.Errorf("fill the TAP: %w", err)
		}
	}
	return nil
}

// peerRun makes one run of a bare peer.
func peerRun(c *bench.Child, op bench.Op, b *benchFrame, prepare func(n int) error) (took time.Duration, err error) {
	batch := b.batches[0]
	for done := -b.warm(); done < b.run; done += batch {
		if err := prepare(batch); err != nil {
			return 0, err
		}
		d, err := c.Run(op, batch)
		if err != nil {
			return 0, err
		}
		if done >= 0 {
			took += d
		}
	}
	return took, nil
}

// bareCalls makes only the calls of a lane: the worker's own loop of system calls, or its
// io_uring, in the same process, on prepared frames, in one piece or in the guest's pages,
// and the event for the guest at the end of each batch.
type bareCalls struct {
	fd      int
	ring    *iouring.Ring // nil: there is no io_uring
	done    []iouring.Completion
	guest   notifyOnly
	pages   *front
	page    int
	frames  *gntdev.Arena
	headers *gntdev.Arena
	iov     *iouring.Iovecs
	calls   []rawio.Call
}

// Memory of bareCalls for one frame: room for it in one piece, and iovecs.
const (
	bareStride = 18 * netif.PageSize
	barePieces = 18
)

func newBareCalls(fd int, guest *front) (*bareCalls, error) {
	c := &bareCalls{fd: fd, pages: guest, calls: make([]rawio.Call, bench.MaxBatch)}
	var err error
	if c.guest, err = newNotifyOnly(); err != nil {
		return nil, err
	}
	if c.frames, err = gntdev.NewPopulatedArena(bench.MaxBatch * bareStride); err != nil {
		return nil, err
	}
	if c.headers, err = gntdev.NewPopulatedArena(bench.MaxBatch * headroom); err != nil {
		return nil, err
	}
	if c.iov, err = iouring.NewIovecs(bench.MaxBatch * barePieces); err != nil {
		return nil, err
	}
	if iouring.Supported() != nil {
		return c, nil
	}
	c.done = make([]iouring.Completion, bench.MaxBatch)
	if c.ring, err = iouring.New(bench.MaxBatch); err != nil {
		return nil, err
	}
	if err = c.ring.RegisterBuffers(c.frames.Bytes()); err != nil {
		return nil, err
	}
	if err = c.ring.RegisterFiles(1); err != nil {
		return nil, err
	}
	return c, c.ring.SetFile(0, fd)
}

// byRing is passed to run in place of a system call number: io_uring makes the calls.
const byRing = ^uintptr(0)

// submit makes the listed calls with io_uring.
func (c *bareCalls) submit(calls []rawio.Call) error {
	for k := range calls {
		c.ring.WriteFixed(0, calls[k].Addr, calls[k].Len, 0, uint64(k))
	}
	if _, err := c.ring.Submit(); err != nil {
		return err
	}
	for _, d := range c.done[:c.ring.Completions(c.done)] {
		calls[d.User].Res = d.Res
	}
	return nil
}

// run makes one run: b.run packets, in the batches of the peers.
func (c *bareCalls) run(b *benchFrame, trap uintptr, overhead time.Duration) (took time.Duration, err error) {
	all, batch := b.withHeader(), b.batches[0]
	stride := alignUp(len(all), headroom)
	for done := -b.warm(); done < b.run; done += batch {
		for k := range batch {
			if trap != unix.SYS_WRITEV {
				copy(c.frames.Bytes()[k*stride:], all)
				c.calls[k] = rawio.Call{Addr: c.frames.Addr(k * stride), Len: uint32(len(all))}
				continue
			}
			copy(c.headers.Bytes()[k*headroom:], all[:tap.VnetHdrLen])
			c.iov.Set(k*barePieces, c.headers.Addr(k*headroom), tap.VnetHdrLen)
			n := 1
			for rest := b.frame; len(rest) > 0; n++ {
				at := txPages + c.page%lanePages*netif.PageSize
				c.page++
				m := copy(c.pages.mem[at:at+netif.PageSize], rest)
				c.iov.Set(k*barePieces+n, address(c.pages.back[at:]), uint32(m))
				rest = rest[m:]
			}
			c.calls[k] = rawio.Call{Addr: c.iov.At(k * barePieces), Len: uint32(n)}
		}
		start := time.Now()
		if trap == byRing {
			err = c.submit(c.calls[:batch])
		} else {
			rawio.All(trap, c.fd, c.calls[:batch])
		}
		if err == nil {
			err = c.guest.Notify(0)
		}
		if t := time.Since(start) - overhead; done >= 0 {
			took += t
		}
		if err != nil {
			return 0, err
		}
		for k := range c.calls[:batch] {
			if e := c.calls[k].Res; e < 0 {
				return 0, unix.Errno(-e)
			}
		}
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

func benchMain(args []string) int {
	fl := flag.NewFlagSet("bench", flag.ExitOnError)
	peer := fl.String("peer", "", "program that makes the bare system calls (test/benchpeer)")
	out := fl.String("json", "", "write the figures to this `file` as well")
	rounds := fl.Int("rounds", 500, "rounds per group and try")
	packets := fl.Uint64("packets", 10_000_000, "packets of the allocation count")
	only := fl.String("only", "", "measure only groups with this in their name")
	_ = fl.Parse(args)
	r, err := measure(*peer, *rounds, *packets, *only)
	if err == nil {
		err = r.Print(os.Stdout)
	}
	if err == nil && *out != "" {
		err = r.WriteJSON(*out)
	}
	switch {
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	case r.Missed() > 0:
		return 1
	}
	return 0
}

// measure makes all measurements.
func measure(peer string, rounds int, packets uint64, only string) (*bench.Report, error) {
	begun := time.Now()
	if err := netns.Available(); err != nil {
		return nil, err
	}
	if err := netns.CheckTUN(); err != nil {
		return nil, err
	}
	cpu, err := bench.Pin()
	if err != nil {
		return nil, err
	}
	d, err := tap.Create(tap.Config{Name: "bench", VnetHdr: true, Offload: tap.Offload{Csum: true, TSO4: true, TSO6: true}})
	if err != nil {
		return nil, err
	}
	defer d.Close()
	if err := netns.Up("bench"); err != nil {
		return nil, err
	}
	h, err := newFiller(d.Index())
	if err != nil {
		return nil, err
	}
	child, err := bench.StartChild(d.Queue(0).FD(), peer)
	if err != nil {
		return nil, err
	}
	defer child.Close()
	single, err := bench.StartChild(d.Queue(0).FD(), peer, "single")
	if err != nil {
		return nil, err
	}
	defer single.Close()
	guest := newFront(benchTB{}, testDomid)
	guest.back = guest.mapped(append([]xen.Gref{ringRef, ringRef + 1}, refs(0, 2*frontPages)...)...)
	var lanes []*lane // the goals apply to the first one
	if err := iouring.Supported(); err != nil {
		fmt.Fprintln(os.Stderr, "bench: without io_uring:", err)
	} else {
		lanes = append(lanes, newLane("netbackd, grant copy, io_uring", d, true, copied, guest))
	}
	lanes = append(lanes, newLane("netbackd, grant copy, system calls", d, false, copied, guest))
	plain := newLane(staticPlain, d, false, static, guest)
	lanes = append(lanes, plain)
	same := newFloor(plain)
	var ringSame *floor
	dear := false // as the lanes found out
	if lanes[0].w.uring.ring != nil {
		l := newLane(staticUring, d, true, static, guest)
		lanes = append(lanes, l)
		ringSame = newFloor(l)
		dear = l.w.reads.ringSlow
	}
	singly := newLane("netbackd, a grant copy for each packet", d, lanes[0].w.uring.ring != nil, copiedSingly, guest)
	overhead := clockOverhead(lanes[0])
	calls, err := newBareCalls(d.Queue(0).FD(), guest)
	if err != nil {
		return nil, err
	}

	rep := &bench.Report{
		Host: hostLine(cpu),
		Method: []string{
			"Fill and drain: one thread on one CPU fills rings or TAP untimed, then the worker's own rounds drain them.",
			"Grant copy is stood in for by process_vm_readv/writev on this process, one call per batch: no hypercall, but pages are pinned.",
			"Lanes of static grants have all pages of the guest mapped: they take no such call.",
			"All lanes have the same guest's pages. Each run begins with a batch that is not timed, so that caches hold what they hold under load.",
			"Peers are bare system calls, in C, in another process on the same CPU and TAP queue; all take turns in every round.",
			"As netbackd, the peers' process has threads, for which the kernel takes a reference to the file with each call. Rows say where it has not.",
			"The host drops what it gets at IP. Ratios are rates relative to the first peer.",
			"Room is what a goal's value would be if netbackd did nothing but make its calls, which are rows as well.",
		},
	}
	if dear {
		rep.Method = append(rep.Method, "A read with io_uring takes longer than a system call here: lanes with io_uring use it only for backlogs without end.")
	}
	// With the rest, less than a minute.
	lim := bench.Limits{Rounds: rounds, Tries: 3, Spread: 0.02, Until: begun.Add(30 * time.Second)}
	for _, dir := range []string{"guest to host", "host to guest"} {
		frames := benchFrames()
		if dir == "host to guest" {
			frames = rxFrames()
		}
		for _, b := range frames {
			name := dir + ", " + b.name
			if !strings.Contains(name, only) {
				continue
			}
			if err := child.Load(b.withHeader()); err != nil {
				return nil, err
			}
			if err := single.Load(b.withHeader()); err != nil {
				return nil, err
			}
			g := bench.Group{Name: name, Packets: b.run}
			bare := func(name string, c *bench.Child, op bench.Op, prepare func(int) error) {
				g.Peers = append(g.Peers, bench.Peer{Name: name, Run: func() (time.Duration, error) {
					return peerRun(c, op, &b, prepare)
				}})
			}
			nothing := func(int) error { return nil }
			fill := func(n int) error { return h.fill(&b, n) }
			if dir == "guest to host" {
				bare("write", child, bench.OpWrite, nothing)
				bare("writev of pages", child, bench.OpWritev, nothing)
				bare("write, in a process of one thread", single, bench.OpWrite, nothing)
				g.Peers = append(g.Peers,
					bench.Peer{Name: ownWrite, Run: func() (time.Duration, error) { return calls.run(&b, unix.SYS_WRITE, overhead) }},
					bench.Peer{Name: ownWritev, Run: func() (time.Duration, error) { return calls.run(&b, unix.SYS_WRITEV, overhead) }},
				)
				if calls.ring != nil {
					g.Peers = append(g.Peers,
						bench.Peer{Name: ownRing, Run: func() (time.Duration, error) { return calls.run(&b, byRing, overhead) }})
				}
			} else {
				bare("read", child, bench.OpRead, fill)
				bare("readv into pages", child, bench.OpReadv, fill)
				bare("read, in a process of one thread", single, bench.OpRead, fill)
			}
			group := lanes
			if dir == "host to guest" {
				g.Peers = append(g.Peers, bench.Peer{Name: ownRead, Run: func() (time.Duration, error) {
					return same.rxRun(&b, h, overhead)
				}})
				if ringSame != nil && len(b.frame) <= smallPacket {
					g.Peers = append(g.Peers, bench.Peer{Name: ownRingRead, Run: func() (time.Duration, error) {
						return ringSame.rxRun(&b, h, overhead)
					}})
				}
			}
			if b.name == "64 B" {
				group = append(slices.Clone(lanes), singly)
			}
			for _, l := range group {
				for _, batch := range b.batches {
					g.Peers = append(g.Peers, bench.Peer{
						Name: l.row(batch),
						Run: func() (time.Duration, error) {
							if dir == "guest to host" {
								return l.txRun(&b, batch, overhead)
							}
							return l.rxRun(&b, h, batch, overhead)
						},
					})
				}
			}
			res, err := g.Measure(lim)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			rep.Results = append(rep.Results, res)
		}
	}
	if err := measureVirt(rep, lim, only, d, h, child, plain, overhead); err != nil {
		return nil, err
	}
	if err := measureCoalesce(rep, lim, only, lanes, child, overhead); err != nil {
		return nil, err
	}
	if err := goals(rep, lanes[0], h, packets); err != nil {
		return nil, err
	}
	if err := measureControl(rep, lim, only); err != nil {
		return nil, err
	}
	rep.Seconds = time.Since(begun).Seconds()
	return rep, nil
}

// The system calls alone, as netbackd makes them, with an event for each batch.
const (
	ownWrite    = "write, by netbackd's loop"
	ownWritev   = "writev of pages, by netbackd's loop"
	ownRing     = "write, by netbackd's io_uring"
	ownRingRead = "read, by netbackd's io_uring"
	ownRead     = "read, or readv into pages if large, by netbackd's loop"
)

// Lanes whose packets take no grant operation.
const (
	staticUring = "netbackd, static grants, io_uring"
	staticPlain = "netbackd, static grants, system calls"
)

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

// goals compares the figures with the goals.
func goals(rep *bench.Report, l *lane, h *filler, packets uint64) error {
	find := func(name string) *bench.Result {
		for i := range rep.Results {
			if rep.Results[i].Name == name {
				return &rep.Results[i]
			}
		}
		return &bench.Result{}
	}
	if r := find("guest to host, 64 B"); len(r.Figures) > 0 {
		b64, b1 := r.Figure(l.row(64)), r.Figure(l.row(1))
		rep.AtLeast("P9", "64 B guest to host, batch 64 against batch 1", b1.Median/b64.Median, 1.45, r.Void)
	}

	staticGoals(rep, l, find)

	frames := benchFrames()
	tx := func(b *benchFrame) func() error {
		slots := 1
		if len(b.frame) > netif.PageSize {
			slots = (len(b.frame)+netif.PageSize-1)/netif.PageSize + len(b.extras)
		}
		return func() error {
			l.takeTx()
			l.putTx(b, int(l.f.tx.Free())/slots)
			return nil
		}
	}
	backlog := uint64(0)
	rx := func(b *benchFrame, keep uint64) func() error {
		backlog = l.stat(RxPackets)
		return func() error {
			l.repost()
			got := l.stat(RxPackets)
			if n := keep - (backlog - got); n >= keep/2 {
				if err := h.fill(b, int(n)); err != nil {
					return err
				}
				backlog += n
			}
			l.queue().tapIn.ready = true
			return nil
		}
	}
	type counts struct{ calls, notifies, ops float64 }
	count := func(n uint64, feed func() error, done Counter) (counts, error) {
		if err := l.load(n/10, feed, done); err != nil { // get going
			return counts{}, err
		}
		get := func() [5]float64 {
			return [5]float64{
				float64(l.stat(done)), float64(l.stat(Syscalls) + l.polls), float64(l.stat(Notifies)),
				float64(l.stat(GrantOps)), float64(l.stat(GrantCalls)),
			}
		}
		a := get()
		err := l.load(n, feed, done)
		b := get()
		for i := range b {
			b[i] -= a[i]
		}
		return counts{b[1] / b[0], b[2] / b[0], b[3] / b[4]}, err
	}
	for _, dir := range []struct {
		name string
		done Counter
		feed func(b *benchFrame, keep uint64) func() error
	}{
		{"guest to host", TxPackets, func(b *benchFrame, _ uint64) func() error { return tx(b) }},
		{"host to guest", RxPackets, rx},
	} {
		small, err := count(100_000, dir.feed(&frames[0], 400), dir.done)
		if err != nil {
			return err
		}
		large, err := count(2_000, dir.feed(&frames[2], 60), dir.done)
		if err != nil {
			return err
		}
		rep.AtLeast("P9", dir.name+", copy operations per call under load", small.ops, 32, false)
		if l.w.uring.ring != nil { // else one for each packet at least
			rep.AtMost("P10", dir.name+", system calls per 64 B packet under load", small.calls, 1.0/32, false)
		}
		rep.AtMost("P10", dir.name+", notifications per 64 B packet under load", small.notifies, 1.0/64, false)
		rep.AtMost("P10", dir.name+", notifications per 64 KiB frame under load", large.notifies, 1.0/4, false)
	}

	var before, after runtime.MemStats
	feed := tx(&frames[0])
	for try := range 2 {
		if err := l.load(1000, feed, TxPackets); err != nil {
			return err
		}
		runtime.GC()
		runtime.ReadMemStats(&before)
		if err := l.load(packets, feed, TxPackets); err != nil {
			return err
		}
		runtime.ReadMemStats(&after)
		// Now and then the runtime itself allocates; the data path would by
		// the thousand.
		if n := after.Mallocs - before.Mallocs; n == 0 || n > 10 || try == 1 {
			break
		}
	}
	million := float64(packets) / 1e6
	rep.AtMost("P11", fmt.Sprintf("allocations in %.3g million 64 B packets", million), float64(after.Mallocs-before.Mallocs), 0, false)
	rep.AtMost("P11", fmt.Sprintf("garbage collections in %.3g million 64 B packets", million), float64(after.NumGC-before.NumGC), 0, false)
	return nil
}

// staticGoals compares lanes of static grants with bare calls and with copying.
func staticGoals(rep *bench.Report, copies *lane, find func(string) *bench.Result) {
	median := func(r *bench.Result, name string, batch int) float64 {
		return r.Figure(fmt.Sprintf("%s, batch %d", name, batch)).Median
	}
	best := staticUring
	if copies.w.uring.ring == nil {
		best = staticPlain
	}
	// bare returns the time of a lane's calls alone.
	bare := func(r *bench.Result, lane, plain, ring string) float64 {
		f := r.Figure(plain).Median
		if g := r.Figure(ring).Median; lane == staticUring && g > 0 && (ring == ownRing || g < f) {
			f = g
		}
		return f
	}
	// without returns the ratio of a to b if their common work took only the time of the
	// calls.
	without := func(a, b, calls float64) float64 { return (a - b + calls) / calls }
	for _, g := range []struct {
		goal, group, peer, lane string
		batch                   int
		bar                     float64
		plain, ring             string // rows of the lane's calls alone
	}{
		{"P1", "guest to host, 64 B", "write", best, 64, 1.10, ownWrite, ownRing},
		{"P2", "guest to host, 1514 B", "write", best, 64, 1.02, ownWrite, ownRing},
		{"P3", "host to guest, 64 B", "read", best, 128, 1.05, ownRead, ownRingRead},
		{"P3", "host to guest, 64 B, backlog 40", "read", best, 40, 1.00, ownRead, ownRingRead},
		{"P3", "host to guest, 1514 B", "read", best, 128, 0.92, ownRead, ownRingRead},
		{"P4", "guest to host, 64 B", "write", staticPlain, 64, 0.92, ownWrite, ""},
		{"P4", "host to guest, 64 B", "read", staticPlain, 128, 0.95, ownRead, ""},
		{"P5", "guest to host, 64 KiB GSO", "writev of pages", best, 8, 0.97, ownWritev, ""},
		{"P5", "host to guest, 64 KiB GSO", "readv into pages", best, 8, 0.97, ownRead, ""},
	} {
		if r := find(g.group); len(r.Figures) > 0 {
			peer := r.Figure(g.peer).Median
			rep.Within(g.goal, fmt.Sprintf("%s, %s against %s", g.group, strings.TrimPrefix(g.lane, "netbackd, "), g.peer),
				peer/median(r, g.lane, g.batch), g.bar, peer/bare(r, g.lane, g.plain, g.ring), r.Void)
		}
	}
	ratios := func(r *bench.Result, dir string, batch int, calls float64) {
		own := median(r, best, batch)
		for _, c := range []struct {
			name, each string
			bar        float64
		}{{copies.name, "batch", 1.55}, {"netbackd, a grant copy for each packet", "packet", 2.3}} {
			copied := median(r, c.name, batch)
			rep.Within("P8", fmt.Sprintf("64 B %s, static grants against a grant copy for each %s", dir, c.each),
				copied/own, c.bar, without(copied, own, calls), r.Void)
		}
	}
	if r := find("guest to host, 64 B"); len(r.Figures) > 0 {
		own := median(r, staticPlain, 64) - r.Figure(ownWrite).Median
		rep.AtMost("P6", "guest to host, 64 B: ns per packet beyond the same calls", own, 22, r.Void)
		ratios(r, "guest to host", 64, bare(r, best, ownWrite, ownRing))
	}
	if r := find("host to guest, 64 B"); len(r.Figures) > 0 {
		own := median(r, staticPlain, 128) - r.Figure(ownRead).Median
		rep.AtMost("P6", "host to guest, 64 B: ns per packet beyond the same read", own, 22, r.Void)
		ratios(r, "host to guest", 128, bare(r, best, ownRead, ownRingRead))
	}
	if r := find("host to guest, 64 KiB GSO"); len(r.Figures) > 0 {
		own := (median(r, staticPlain, 8) - r.Figure(ownRead).Median) / 17
		rep.AtMost("P6", "host to guest, 64 KiB GSO: ns per slot beyond the same readv", own, 3, r.Void)
	}
	if r := find("guest to host, 64 KiB GSO"); len(r.Figures) > 0 {
		own := (median(r, staticPlain, 8) - r.Figure(ownWritev).Median) / 17
		rep.AtMost("P6", "guest to host, 64 KiB GSO: ns per slot beyond the same calls", own, 3, r.Void)
	}
}

// hostLine describes the host of the measurement.
func hostLine(cpu int) string {
	model := "unknown CPU"
	info, _ := os.ReadFile("/proc/cpuinfo")
	for _, line := range strings.Split(string(info), "\n") {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
			model = strings.TrimSpace(v)
			break
		}
	}
	var u unix.Utsname
	_ = unix.Uname(&u)
	return fmt.Sprintf("%s, CPU %d of %d, Linux %s, %s", model, cpu, runtime.NumCPU(), unix.ByteSliceToString(u.Release[:]), runtime.Version())
}
