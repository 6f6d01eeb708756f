// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/iouring"
	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/xen"
)

// kick is an event channel for which an eventfd stands in: the worker makes the system calls
// that it makes on the device.
type kick struct {
	fd, peer int
	buf      [8]byte
}

func newKick() (k *kick, err error) {
	k = &kick{buf: [8]byte{1}}
	if k.fd, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, err
	}
	k.peer, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	return k, err
}

func (k *kick) FD() int { return k.fd }

func (k *kick) Pending(ports []evtchn.Port) (int, error) {
	var b [8]byte
	if _, err := unix.Read(k.fd, b[:]); err != nil {
		return 0, nil
	}
	ports[0] = txPort
	return 1, nil
}

func (k *kick) call() error {
	_, err := unix.Write(k.peer, k.buf[:])
	return err
}

func (k *kick) Unmask([]evtchn.Port) error { return k.call() }
func (k *kick) Notify(evtchn.Port) error   { return k.call() }
func (k *kick) Reset() error               { return nil }

// send wakes the worker, as the guest does.
func (k *kick) send() error {
	_, err := unix.Write(k.fd, k.buf[:])
	return err
}

func (k *kick) close() {
	_ = unix.Close(k.fd)
	_ = unix.Close(k.peer)
}

// scalePages is the number of pages from which all guests of a [multitude] send, together: so
// the packets of few guests are as cold in the caches as those of many.
const scalePages = 1 << 14

// leastPages is the least number of pages of a guest.
const leastPages = 16

// multitude is a worker with many vifs, and their guests, each with memory of its own.
type multitude struct {
	bed
	taps   []*tap.Device
	conns  []*Conn
	guests []*guestQueue // those of a vif next to each other; a queue's id is its index here
	segs   []gntdev.Segment
}

// guestQueue is the guest's side of one queue.
type guestQueue struct {
	tx    *netif.TxFront
	rx    *netif.RxFront
	mem   []byte // tx ring, rx ring, pages of packets
	pages int
	part  int // of the pages, which it sends from
	kick  *kick
	next  int
}

// newMultitude makes a worker with vifs of some queues each.
func newMultitude(name string, vifs, queues int) (*multitude, error) {
	m := &multitude{bed: bed{tb: benchTB{}}, segs: make([]gntdev.Segment, batchPackets)}
	m.newWorker(iouring.Supported() == nil)
	m.w.clock = time.Now
	m.w.reads.compared = false
	local, err := iouring.NewIovecs(256)
	if err != nil {
		return nil, err
	}
	remote, err := iouring.NewIovecs(256)
	if err != nil {
		return nil, err
	}
	for i := range vifs {
		var cfgs []QueueConfig
		for range queues {
			g, cfg, err := newGuestQueue(max(scalePages/(vifs*queues), leastPages))
			if err != nil {
				return nil, err
			}
			cfg.Grants = &standIn{pages: address(g.mem[2*netif.PageSize:]), local: local, remote: remote, pid: uintptr(os.Getpid())}
			cfgs, m.guests = append(cfgs, cfg), append(m.guests, g)
		}
		if err := m.connectVif(fmt.Sprintf("%s.%d", name, i), xen.Domid(i+1), cfgs); err != nil {
			return nil, err
		}
	}
	return m, m.drain()
}

// connectVif makes a TAP and connects a vif to it.
func (m *multitude) connectVif(name string, domid xen.Domid, queues []QueueConfig) error {
	d, err := tap.Create(tap.Config{Name: name, Queues: len(queues), VnetHdr: true, Single: len(queues) == 1})
	if err != nil {
		return err
	}
	m.taps = append(m.taps, d)
	if err := netns.Up(name); err != nil {
		return err
	}
	for i := range queues {
		queues[i].Tap = d.Queue(i)
	}
	cfg := full
	cfg.Domid, cfg.VnetHdr = domid, true
	c, err := newConn(cfg, queues)
	if err != nil {
		return err
	}
	m.conns = append(m.conns, c)
	for _, q := range c.queues {
		q.worker.Store(m.w)
		if err := m.w.attach(q); err != nil {
			return err
		}
	}
	return nil
}

// newGuestQueue makes a guest's side of a queue.
func newGuestQueue(pages int) (*guestQueue, QueueConfig, error) {
	mem, err := unix.Mmap(-1, 0, (2+pages)*netif.PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, QueueConfig{}, err
	}
	tx, rx := mem[:netif.PageSize], mem[netif.PageSize:2*netif.PageSize]
	g := &guestQueue{mem: mem, pages: pages, part: pages}
	if g.tx, err = netif.InitTx(tx); err != nil {
		return nil, QueueConfig{}, err
	}
	if g.rx, err = netif.InitRx(rx); err != nil {
		return nil, QueueConfig{}, err
	}
	if g.kick, err = newKick(); err != nil {
		return nil, QueueConfig{}, err
	}
	return g, QueueConfig{TxPage: tx, RxPage: rx, TxPort: txPort, RxPort: txPort, Events: g.kick}, nil
}

// close closes TAPs and worker. The kernel takes milliseconds for each TAP, but closes many at
// a time.
func (m *multitude) close() {
	for _, c := range m.conns {
		m.w.detachAll(c)
	}
	var wg sync.WaitGroup
	for _, d := range m.taps {
		wg.Go(func() { _ = d.Close() })
	}
	wg.Wait()
	for _, g := range m.guests {
		g.kick.close()
		_ = unix.Munmap(g.mem)
	}
	m.w.release()
}

// place returns the page of the k-th packet, and the offset in it.
func (g *guestQueue) place(k int) (page, off int) { return k % g.part, k / g.part % 4 * 1024 }

// fill writes a packet to the guest's memory.
func (g *guestQueue) fill(frame []byte) (page, off int) {
	page, off = g.place(g.next)
	g.next++
	copy(g.mem[(2+page)*netif.PageSize+off:], frame)
	return page, off
}

// put sends n packets of a guest.
func (g *guestQueue) put(frame []byte, n int) error {
	k, err := g.tx.Responses()
	if err != nil {
		return err
	}
	g.tx.Take(k)
	_, _ = g.tx.ArmFor(g.tx.ReqProd().Sub(g.tx.RspCons())/2 + 1)
	for range n {
		id := uint16(g.next)
		page, off := g.fill(frame)
		g.tx.Put(netif.TxRequest{Gref: firstRef + xen.Gref(page), Offset: uint16(off), ID: id, Size: uint16(len(frame))})
	}
	if g.tx.Push() {
		return g.kick.send()
	}
	return nil
}

// drain runs the worker until it would sleep, as worker.run does.
func (m *multitude) drain() error {
	w := m.w
	for {
		switch {
		case !w.sched.waits():
			if err := w.poll(0); err != nil {
				return err
			}
			if !w.sched.waits() {
				return nil
			}
		case w.busy >= busyLimit:
			if err := w.poll(0); err != nil {
				return err
			}
		default:
			w.now = time.Time{}
		}
		w.expire()
		w.round()
	}
}

// scaleLoad describes the packets of a row of the measurement.
type scaleLoad struct {
	frame  []byte
	active int // queues that send, the first ones
	batch  int // packets that each sends at a time
	pages  int // from which each sends; 0: from all that it has
}

// begin tells the guests what to send from.
func (m *multitude) begin(l scaleLoad) []*guestQueue {
	for _, g := range m.guests[:l.active] {
		g.part = g.pages
		if l.pages > 0 {
			g.part = l.pages
		}
	}
	return m.guests[:l.active]
}

// run makes rounds in which each active queue sends a batch, until total packets have been
// sent, and returns the thread's processor time for total packets.
func (m *multitude) run(l scaleLoad, total int) (took time.Duration, err error) {
	before, sent, guests := m.sent(), 0, m.begin(l)
	for sent < total {
		for _, g := range guests {
			if err := g.put(l.frame, l.batch); err != nil {
				return 0, err
			}
		}
		sent += l.active * l.batch
		start := threadTime()
		if err := m.drain(); err != nil {
			return 0, err
		}
		took += threadTime() - start
	}
	if n := m.sent() - before; n != uint64(sent) {
		return 0, fmt.Errorf("%d packets of %d reached the TAPs", n, sent)
	}
	return took * time.Duration(total) / time.Duration(sent), nil
}

// calls is like run, but makes only the system calls of the worker, for the same packets in the
// same order.
func (m *multitude) calls(l scaleLoad, total int) (took time.Duration, err error) {
	sent, guests := 0, m.begin(l)
	for sent < total {
		for _, g := range guests {
			for range l.batch {
				g.fill(l.frame)
			}
			if err := g.kick.send(); err != nil {
				return 0, err
			}
		}
		sent += l.active * l.batch
		start := threadTime()
		for {
			events, err := m.w.epoll.wait(0)
			if err != nil {
				return 0, err
			}
			if len(events) == 0 {
				break
			}
			for i := range events {
				if err := m.callsFor(int(events[i].Fd), l); err != nil {
					return 0, err
				}
			}
		}
		took += threadTime() - start
	}
	return took * time.Duration(total) / time.Duration(sent), nil
}

// callsFor makes the system calls for one batch of a queue.
func (m *multitude) callsFor(id int, l scaleLoad) error {
	w, q, g := m.w, m.w.queues[id], m.guests[id]
	if _, err := q.events.Pending(w.ports[:]); err != nil {
		return err
	}
	var place frameAlloc
	segs, n := m.segs[:l.batch], len(l.frame)
	for k := range segs {
		page, off := g.place(g.next - l.batch + k)
		at := place.packed(n)
		segs[k].FromGuest(q.conn.cfg.Domid, firstRef+xen.Gref(page), uint16(off), w.txMem.mem[at:at+n])
	}
	if err := q.grants.Copy(segs); err != nil {
		return err
	}
	if err := m.writeAll(q, l); err != nil {
		return err
	}
	if err := q.events.Notify(txPort); err != nil {
		return err
	}
	return q.events.Unmask(nil)
}

// writeAll writes the packets of a batch to the TAP, as a worker does.
func (m *multitude) writeAll(q *Queue, l scaleLoad) error {
	w, n := m.w, len(l.frame)+tap.VnetHdrLen
	ring := w.uring.ring != nil && l.batch >= uringMin
	var place frameAlloc
	for k := range l.batch {
		at := place.packed(len(l.frame)) - tap.VnetHdrLen
		clear(w.txMem.mem[at : at+tap.VnetHdrLen])
		if ring {
			w.uring.ring.WriteFixed(q.id, w.txMem.addr(at), uint32(n), bufTx, uint64(k))
		} else if _, err := q.tap.Write(w.txMem.mem[at : at+n]); err != nil {
			return err
		}
	}
	if !ring {
		return nil
	}
	if _, err := w.uring.ring.Submit(); err != nil {
		return err
	}
	for _, c := range w.uring.cqes[:w.uring.ring.Completions(w.uring.cqes[:])] {
		if c.Res < 0 {
			return unix.Errno(-c.Res)
		}
	}
	return nil
}

// sent returns the packets of all vifs that reached the TAPs.
func (m *multitude) sent() (n uint64) {
	for _, c := range m.conns {
		for i := range c.Queues() {
			n += c.Stats(i).Load(TxPackets)
		}
	}
	return n
}
