// SPDX-License-Identifier: Apache-2.0

package blkengine

import (
	"context"
	"fmt"
	"math/bits"
	"sync"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"github.com/netbackd/netbackd/internal/blkplane"
	"github.com/netbackd/netbackd/internal/disk"
	"github.com/netbackd/netbackd/internal/procs"
	"github.com/netbackd/netbackd/internal/procwire"
	"github.com/netbackd/netbackd/pkg/blkif"
	"github.com/netbackd/netbackd/pkg/xen"
)

// remoteLink is a link whose connections are served by a disk process. Its methods belong to the
// goroutine of the vbd, Handle and Died to those of the process.
type remoteLink struct {
	cfg    LinkConfig
	engine *Processes
	seat   *procs.Seat

	mu    sync.Mutex // guards all below
	proc  *procs.Process
	conns map[uint32]*remoteConn // those that have not ended
	over  bool                   // the link has ended
}

// use returns the process that is to serve the link.
func (l *remoteLink) use(group string) (p *procs.Process, err error) {
	l.cfg.Turn.Aside(func() { p, err = l.engine.set.Acquire(l.seat, group) })
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	old := l.proc
	l.proc = p
	l.mu.Unlock()
	if p != old {
		p.Enter(l.seat)
		l.retire(old)
	}
	return p, nil
}

// retire leaves a process that serves nothing of the link any more.
func (l *remoteLink) retire(p *procs.Process) {
	l.mu.Lock()
	used := p == nil || p == l.proc && !l.over
	for _, c := range l.conns {
		used = used || c.proc == p
	}
	l.mu.Unlock()
	if !used {
		l.engine.set.Left(p, l.seat)
	}
}

// Connect implements [Link].
func (l *remoteLink) Connect(cfg *Config) (_ Conn, err error) {
	n := int64(len(cfg.Queues))
	if n > MaxQueues {
		return nil, fmt.Errorf("%d queues: a disk process serves %d of a vbd", n, MaxQueues)
	}
	if l.engine.queues.Add(n) > int64(l.engine.cfg.MaxQueues) {
		l.engine.queues.Add(-n)
		return nil, fmt.Errorf("%w: the bound is %d", blkplane.ErrThreads, l.engine.cfg.MaxQueues)
	}
	c := &remoteConn{link: l, cfg: cfg, number: l.engine.next.Add(1), notices: rate.NewLimiter(noticeRate, noticeRate), drained: make(chan struct{}), done: make(chan struct{})}
	defer func() {
		if err != nil {
			c.end()
		}
	}()
	if c.proc, err = l.use(cfg.Group); err != nil {
		return nil, err
	}
	desc, files, err := c.open()
	defer func() { procs.CloseFiles(files) }()
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	l.conns[c.number] = c
	l.mu.Unlock()
	w := new(procwire.Writer)
	w.U32(l.seat.ID())
	desc.put(w)
	l.cfg.Turn.Aside(func() {
		err = c.proc.Ask(context.Background(), kindConnect, w, func(r *procwire.Reader) { c.adopted = r.Bool() }, files...)
	})
	if err != nil {
		return nil, err
	}
	c.SetWeight(cfg.Weight)
	return c, nil
}

// open opens what the connection needs, and returns its description and the files, also with an
// error.
func (c *remoteConn) open() (d *connecting, files []int, err error) {
	opener, domid := c.link.engine.cfg.Opener, c.link.cfg.Domid
	d = &connecting{number: c.number, domid: domid, name: c.link.cfg.Name, cfg: *c.cfg}
	if c.cfg.Disk.Kind() == disk.KindBacking {
		return d, nil, fmt.Errorf("a disk without a file cannot be handed over: %w", unix.ENOTSUP)
	}
	d.disk = c.cfg.Disk.Describe(blkplane.DeviceOf(c.cfg.Disk))
	d.disk.Path = c.link.cfg.Name
	d.journals = c.cfg.Queues[0].Journal != ""
	add := func(fd int, e error) {
		if err == nil && e == nil {
			files = append(files, fd)
		} else if err == nil {
			err = e
		}
	}
	var mem int
	c.shown, mem, err = newShown(len(c.cfg.Queues))
	if err != nil {
		return d, nil, err
	}
	files = append(files, mem)
	if d.hasFile() {
		add(unix.FcntlInt(uintptr(c.cfg.Disk.FD()), unix.F_DUPFD_CLOEXEC, 0)) // of the same open file, with its lock
	}
	for i := range c.cfg.Queues {
		if err != nil {
			return d, files, fmt.Errorf("queue %d: %w", i-1, err)
		}
		q := &c.cfg.Queues[i]
		add(opener.OpenGrantFile())
		ev, e := opener.OpenEventFiles(domid)
		if e != nil {
			return d, files, fmt.Errorf("queue %d: %w", i, e)
		}
		files = append(files, ev...)
		if d.journals {
			add(blkplane.OpenJournal(q.Journal, len(q.Refs)))
		}
		if d.flushes() {
			add(c.cfg.Disk.OpenAgain())
		}
	}
	return d, files, err
}

// RingStamp implements [Link].
func (l *remoteLink) RingStamp(ref xen.Gref) (stamp xen.Stamp, err error) {
	p, err := l.use(l.engine.set.LastGroup(l.seat))
	if err != nil {
		return stamp, err
	}
	fd, err := l.engine.cfg.Opener.OpenGrantFile()
	if err != nil {
		return stamp, err
	}
	defer unix.Close(fd)
	var w procwire.Writer
	w.U16(uint16(l.cfg.Domid))
	w.U32(uint32(ref))
	l.cfg.Turn.Aside(func() {
		err = p.Ask(context.Background(), kindStamp, &w, func(r *procwire.Reader) { stamp = takeStamp(r) }, fd)
	})
	return stamp, err
}

// End implements [Link].
func (l *remoteLink) End() {
	l.mu.Lock()
	l.over = true
	p, last := l.proc, len(l.conns) == 0
	l.mu.Unlock()
	if last {
		l.retire(p)
		l.engine.set.End(l.seat)
	}
}

// Domid implements [procs.Link].
func (l *remoteLink) Domid() xen.Domid { return l.cfg.Domid }

// Died implements [procs.Link].
func (l *remoteLink) Died(p *procs.Process, why error) {
	l.mu.Lock()
	var dead []*remoteConn
	for _, c := range l.conns {
		if c.proc == p {
			dead = append(dead, c)
		}
	}
	l.mu.Unlock()
	for _, c := range dead {
		if c.cfg.Died != nil {
			c.cfg.Died(why)
		}
		c.end()
	}
}

// Handle implements [procs.Link].
func (l *remoteLink) Handle(m *procwire.Message, r *procwire.Reader) error {
	number := r.U32()
	l.mu.Lock()
	c := l.conns[number]
	l.mu.Unlock()
	if c == nil { // it has just ended
		return nil
	}
	switch m.Kind {
	case kindNotice:
		n := takeNotice(r, len(c.cfg.Queues))
		if err := r.End(); err != nil {
			return err
		}
		first := n.Kind == blkplane.Broken && !c.broken
		if first || c.notices.Allow() {
			c.broken = c.broken || first
			c.cfg.Notice(n)
		}
		return nil
	case kindDrained:
		c.drainedOnce.Do(func() { close(c.drained) })
	case kindEnded:
		c.end()
	}
	return r.End()
}

// noticeRate bounds the notices of a connection that are taken, per second and at once: each queue
// sends two per second at most, and each wakes the vbd.
const noticeRate = 2 * MaxQueues

// remoteConn is a connection that a disk process serves.
type remoteConn struct {
	link    *remoteLink
	cfg     *Config
	number  uint32
	proc    *procs.Process
	shown   *shown // nil: it was not made
	adopted bool
	notices *rate.Limiter // of the process, but for the first that ends the connection
	broken  bool          // that one came; belongs to the handler of the process

	drainedOnce, doneOnce sync.Once
	drained, done         chan struct{}
}

// end ends the connection: the process has ended it, or has ended.
func (c *remoteConn) end() {
	c.doneOnce.Do(func() {
		l := c.link
		if c.shown != nil {
			c.shown.end()
		}
		l.engine.queues.Add(-int64(len(c.cfg.Queues)))
		l.mu.Lock()
		delete(l.conns, c.number)
		if l.cfg.Memory != nil {
			l.cfg.Memory.Weigh(c, 0)
		}
		last := l.over && len(l.conns) == 0
		l.mu.Unlock()
		l.retire(c.proc)
		if last {
			l.engine.set.End(l.seat)
		}
		c.drainedOnce.Do(func() { close(c.drained) })
		close(c.done)
	})
}

// post sends a notice about the connection. The end of the process is seen elsewhere.
func (c *remoteConn) post(kind procwire.Kind, put func(*procwire.Writer)) {
	var w procwire.Writer
	w.U32(c.number)
	if put != nil {
		put(&w)
	}
	if err := c.proc.Post(kind, &w); err != nil {
		c.link.cfg.Log.Debug("message not sent", zap.Error(err))
	}
}

// Adopted implements [Conn].
func (c *remoteConn) Adopted() bool { return c.adopted }

// Start implements [Conn].
func (c *remoteConn) Start() { c.post(kindStart, nil) }

// Drain implements [Conn].
func (c *remoteConn) Drain() <-chan struct{} {
	c.post(kindDrain, nil)
	return c.drained
}

// Close implements [Conn].
func (c *remoteConn) Close() { c.post(kindClose, nil) }

// Done implements [Conn].
func (c *remoteConn) Done() <-chan struct{} { return c.done }

// SetWeight implements [Conn].
func (c *remoteConn) SetWeight(n int) {
	n = min(max(n, 1), blkplane.MaxWeight)
	l := c.link
	l.mu.Lock()
	if l.conns[c.number] == c && l.cfg.Memory != nil { // the end forgets it
		l.cfg.Memory.Weigh(c, n) // for the status
	}
	l.mu.Unlock()
	c.post(kindWeight, func(w *procwire.Writer) { w.U8(uint8(n)) })
}

// Resize implements [Conn].
func (c *remoteConn) Resize(sectors uint64) {
	c.post(kindResize, func(w *procwire.Writer) { w.U64(sectors) })
}

// Queues implements [Conn].
func (c *remoteConn) Queues() int { return len(c.cfg.Queues) }

// Counters implements [Conn].
func (c *remoteConn) Counters(i int) [blkplane.NumCounters]uint64 { return c.shown.counters(i) }

// Status implements [Conn].
func (c *remoteConn) Status(i int) blkplane.QueueStatus {
	slots := blkif.RingSize(bits.Len(uint(len(c.cfg.Queues[i].Refs))) - 1)
	return c.shown.status(i, slots, c.adopted)
}
