// SPDX-License-Identifier: Apache-2.0

package netengine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/ctrlserver"
	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/procs"
	"github.com/netbackd/netbackd/internal/procwire"
	"github.com/netbackd/netbackd/internal/steer"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xen"
)

// remoteLink is a link whose connection is served by a packet process. Its methods belong to
// the goroutine of the vif, Handle and Died to those of the process.
type remoteLink struct {
	cfg    LinkConfig
	engine *Processes
	seat   *procs.Seat

	bytes    uint64 // the rate
	interval time.Duration
	weight   int    // 0: 1
	messages uint64 // of the control ring, as last counted

	proc   *procs.Process // that has the link open; nil: none
	counts *counts        // in that process

	mu    sync.Mutex // guards all below; only the vif changes conn
	conn  *remoteConn
	drawn uint32 // number of the last connection
}

// remoteConn is a connection of a remoteLink.
type remoteConn struct {
	number uint32
	proc   *procs.Process
	rings  *Rings
	found  Found
	counts *connCounts
	served bool // it was started

	// These are set before the start, and used for requests of the process; guarded by
	// remoteLink.mu.
	records ctrlserver.Records
	kernel  *steer.Kernel // nil: no program may be set

	busy     bool           // a request is carried out; guarded by remoteLink.mu
	requests sync.WaitGroup // counts it
}

// SetRate implements [Link].
func (l *remoteLink) SetRate(bytes uint64, interval time.Duration) {
	l.bytes, l.interval = bytes, interval
	if l.proc != nil {
		l.tellRate()
	}
}

// tellRate tells the process the rate. The end of the process is seen elsewhere.
func (l *remoteLink) tellRate() {
	w := l.body()
	w.U64(l.bytes)
	w.I64(int64(l.interval))
	_ = l.proc.Post(kindRate, w)
}

// SetWeight implements [Link].
func (l *remoteLink) SetWeight(n int) {
	l.weight = n
	if l.proc != nil {
		l.tellWeight()
	}
}

// tellWeight tells the process the weight.
func (l *remoteLink) tellWeight() {
	w := l.body()
	w.U8(uint8(l.weight))
	_ = l.proc.Post(kindWeight, w)
}

// body begins the body of a message about the link.
func (l *remoteLink) body() *procwire.Writer {
	w := new(procwire.Writer)
	w.U32(l.seat.ID())
	return w
}

// ask sends a request about the link, outside of the turn: nothing of this process waits in
// the kernel meanwhile.
func (l *remoteLink) ask(kind procwire.Kind, w *procwire.Writer, take func(*procwire.Reader), files ...int) (err error) {
	return l.askIn(context.Background(), kind, w, take, files...)
}

// askIn does the same within the deadline of ctx.
func (l *remoteLink) askIn(ctx context.Context, kind procwire.Kind, w *procwire.Writer, take func(*procwire.Reader), files ...int) (err error) {
	if l.proc == nil {
		return ErrDied
	}
	l.cfg.Turn.Aside(func() { err = l.proc.Ask(ctx, kind, w, take, files...) })
	return err
}

// open opens the link in the process that is to serve it.
func (l *remoteLink) open(group string) error {
	var p *procs.Process
	var err error
	l.cfg.Turn.Aside(func() { p, err = l.engine.set.Acquire(l.seat, group) })
	if err != nil || p == l.proc {
		return err
	}
	l.leave()
	counts, fd, err := newCounts()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	p.Enter(l.seat)
	l.proc, l.counts = p, counts
	w := l.body()
	w.U16(uint16(l.cfg.Domid))
	w.Blob([]byte(l.cfg.Name))
	if err := p.Post(kindOpen, w, fd); err != nil {
		return err
	}
	if l.bytes != 0 {
		l.tellRate()
	}
	if l.weight > 1 {
		l.tellWeight()
	}
	return nil
}

// leave closes the link in its process.
func (l *remoteLink) leave() {
	if l.proc == nil {
		return
	}
	_ = l.proc.Post(kindEnd, l.body())
	l.engine.set.Left(l.proc, l.seat)
	l.counts.close()
	l.proc, l.counts = nil, nil
}

// Prepare implements [Link].
func (l *remoteLink) Prepare(r *Rings) (Found, error) {
	defer procs.CloseFiles(r.Journals)
	l.Close(Drop)
	if err := l.open(r.Group); err != nil {
		return Found{}, err
	}
	l.mu.Lock()
	l.drawn++
	c := &remoteConn{number: l.drawn, proc: l.proc, rings: r, counts: l.counts.begin(len(r.Queues))}
	l.conn = c
	l.mu.Unlock()
	var files []int
	defer func() { procs.CloseFiles(files) }()
	for i := range r.Queues {
		ev, err := l.engine.cfg.Opener.OpenEventFiles(l.cfg.Domid)
		if err != nil {
			return Found{}, fmt.Errorf("queue %d: %w", i, err)
		}
		files = append(files, ev...)
	}
	w := l.body()
	w.U32(c.number)
	putRings(w, r)
	err := l.ask(kindPrepare, w, func(r *procwire.Reader) { c.found = takeFound(r) }, append(files[:len(files):len(files)], r.Journals...)...)
	return c.found, err
}

// Start implements [Link].
func (l *remoteLink) Start(s *Serving) error {
	c := l.conn
	var files, ours []int
	defer func() { procs.CloseFiles(ours) }()
	for _, q := range s.Taps {
		files = append(files, q.FD())
	}
	var record []byte
	if ctl := s.Control; ctl != nil {
		mapper, err := l.engine.cfg.Opener.OpenGrantFile()
		if err != nil {
			return fmt.Errorf("control ring: %w", err)
		}
		ours = append(ours, mapper)
		ev, err := l.engine.cfg.Opener.OpenEventFiles(l.cfg.Domid)
		if err != nil {
			return fmt.Errorf("control ring: %w", err)
		}
		ours = append(ours, ev...)
		record = l.load(ctl.Records)
		l.mu.Lock()
		if c.records = ctl.Records; ctl.NoBPF == nil && len(c.rings.Queues) > 1 {
			c.kernel = steer.NewKernel(ctl.SetSteering)
		}
		l.mu.Unlock()
	}
	w := l.body()
	putServing(w, s, record)
	err := l.ask(kindStart, w, nil, append(files, ours...)...)
	c.served = err == nil
	return err
}

// load returns the record of a predecessor's control ring, if there is one for this
// connection.
func (l *remoteLink) load(records ctrlserver.Records) []byte {
	if records == nil || !l.conn.found.Known {
		return nil
	}
	b, err := records.Load()
	if err == nil && len(b) > maxRecord {
		err = fmt.Errorf("%d bytes: %w", len(b), unix.EFBIG)
	}
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			l.cfg.Log.Warn("control ring record not read; the guest's settings are lost", zap.Error(err))
		}
		return nil
	}
	return b
}

// Close implements [Link].
func (l *remoteLink) Close(how Ending) (sum [dataplane.NumCounters]uint64) {
	c := l.conn
	if c == nil {
		return sum
	}
	w := l.body()
	w.U8(uint8(how))
	// It waits for turns of the data path. One that hangs in the kernel must not cost the other
	// guests their process, which could not end either. Pings find a process that is gone.
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	err := l.askIn(ctx, kindClose, w, nil)
	if err != nil && !errors.Is(err, ErrDied) {
		l.cfg.Log.Warn("connection not closed", zap.Error(err))
	}
	l.mu.Lock()
	l.conn = nil // from now on no request begins
	l.mu.Unlock()
	l.cfg.Turn.Aside(c.requests.Wait)
	if c.kernel != nil {
		if err := c.kernel.Close(); err != nil {
			l.cfg.Log.Warn("close steering program", zap.Error(err))
		}
	}
	sum = c.counts.end()
	if err != nil && !errors.Is(err, ErrDied) {
		l.leave()
	} // else it stays one of those that the death concerns
	return sum
}

// SetMcast implements [Link].
func (l *remoteLink) SetMcast(on bool) {
	w := l.body()
	w.Bool(on)
	_ = l.proc.Post(kindMcast, w)
}

// SetHeadroom implements [Link].
func (l *remoteLink) SetHeadroom(n uint16) error {
	w := l.body()
	w.U16(n)
	return l.ask(kindHeadroom, w, nil)
}

// PauseCoalescing implements [Link].
func (l *remoteLink) PauseCoalescing(on bool) error {
	w := l.body()
	w.Bool(on)
	return l.ask(kindPause, w, nil)
}

// Status implements [Link].
func (l *remoteLink) Status() (s Status) {
	c := l.conn
	err := l.ask(kindStatus, l.body(), func(r *procwire.Reader) {
		if s = takeStatus(r); len(s.Queues) != len(c.rings.Queues) {
			r.Fail()
		}
	})
	if err != nil {
		return Status{}
	}
	c.counts.fill(s.Queues)
	if s.Control != nil {
		l.commanded(s.Control.Messages)
	}
	return s
}

// maxCommanded bounds the messages that are counted at once.
const maxCommanded = 1 << 20

// commanded counts the messages of the control ring for the guest.
func (l *remoteLink) commanded(now uint64) {
	if now > l.messages {
		l.cfg.Guest.CommandedTimes(min(now-l.messages, maxCommanded))
	}
	l.messages = now
}

// Counters implements [Link].
func (l *remoteLink) Counters() (sum [dataplane.NumCounters]uint64) {
	if l.conn == nil {
		return sum
	}
	return l.conn.counts.Counters()
}

// Counting implements [Link].
func (l *remoteLink) Counting() Counting {
	if l.conn == nil || !l.conn.served {
		return nil
	}
	return l.conn.counts
}

// RingsRenewed implements [Link]. If the process has ended, the connection is made again
// anyway.
func (l *remoteLink) RingsRenewed() (renewed bool) {
	err := l.ask(kindRings, l.body(), func(r *procwire.Reader) { renewed = r.Bool() })
	return err == nil && renewed
}

// ChannelsRenewed implements [Link].
func (l *remoteLink) ChannelsRenewed() (renewed bool) {
	ev, err := l.engine.cfg.Opener.OpenEventFiles(l.cfg.Domid)
	if err != nil {
		return false
	}
	defer procs.CloseFiles(ev)
	err = l.ask(kindChannels, l.body(), func(r *procwire.Reader) { renewed = r.Bool() }, ev...)
	return err == nil && renewed
}

// RingStamp implements [Link].
func (l *remoteLink) RingStamp(ref xen.Gref) (stamp netif.Stamp, err error) {
	if err := l.open(l.engine.set.LastGroup(l.seat)); err != nil {
		return stamp, err
	}
	w := l.body()
	w.U32(uint32(ref))
	err = l.ask(kindRingStamp, w, func(r *procwire.Reader) { stamp = takeStamp(r) })
	return stamp, err
}

// End implements [Link].
func (l *remoteLink) End() {
	l.Close(Leave)
	l.leave()
	l.engine.set.End(l.seat)
}

// Domid implements [procs.Link].
func (l *remoteLink) Domid() xen.Domid { return l.cfg.Domid }

// Died implements [procs.Link]. It tells the vif that the process of its connection has ended,
// if that is p.
func (l *remoteLink) Died(p *procs.Process, err error) {
	l.mu.Lock()
	c := l.conn
	l.mu.Unlock()
	if c != nil && c.proc == p && c.rings.Died != nil {
		c.rings.Died(err)
	}
}

// Handle implements [procs.Link].
func (l *remoteLink) Handle(m *procwire.Message, r *procwire.Reader) error {
	connection := r.U32()
	l.mu.Lock()
	c := l.conn
	old := c == nil || c.number != connection
	if !old && m.Kind != kindNotice {
		if c.busy {
			l.mu.Unlock()
			return errors.New("a request before the last one was answered")
		}
		c.busy = true
		c.requests.Add(1)
	}
	l.mu.Unlock()
	if old { // the connection ends, or has ended
		if m.Kind != kindNotice {
			return answerError(m, unix.ENOTCONN)
		}
		return nil
	}
	done := func(err error) {
		l.mu.Lock()
		c.busy = false
		l.mu.Unlock()
		_ = answerError(m, err) // the process has ended
		c.requests.Done()
	}
	var work func() error
	switch m.Kind {
	case kindNotice:
		n := takeNotice(r, len(c.rings.Queues))
		if err := r.End(); err != nil {
			return err
		}
		c.rings.Notice(n)
		return nil
	case kindStore:
		record := r.Blob(maxRecord)
		work = func() error { return l.store(c, record) }
	case kindSteer:
		config := takeSteering(r, len(c.rings.Queues))
		work = func() error { return l.steer(c, config) }
	}
	if err := r.End(); err != nil {
		done(err)
		return err
	}
	go func() {
		l.wait()
		turn := l.cfg.Guest.Turn()
		var err error
		turn.Do(func() { err = work() })
		done(err)
	}()
	return nil
}

// wait delays requests of a process beyond the rate of a guest's control rings.
func (l *remoteLink) wait() {
	now := time.Now()
	time.Sleep(l.cfg.Guest.Control.ReserveN(now, 1).DelayFrom(now))
}

// answerError answers a request of the process.
func answerError(m *procwire.Message, err error) error {
	return packetWire.Answer(m, err)
}

// store stores the record of the control ring, if it is one of this connection.
func (l *remoteLink) store(c *remoteConn, record []byte) error {
	l.mu.Lock()
	records := c.records
	l.mu.Unlock()
	if records == nil { // also before the start
		return unix.EPERM
	}
	want := ctrlserver.Connection{Stamp: c.found.Stamp, Queues: c.rings.Queues}
	if c.rings.Control != nil {
		want.Control = *c.rings.Control
	}
	if err := ctrlserver.CheckRecord(record, &want); err != nil {
		return err
	}
	return records.Store(record)
}

// steer makes the kernel steer the packets of the TAP.
func (l *remoteLink) steer(c *remoteConn, config *steer.Config) error {
	l.mu.Lock()
	kernel := c.kernel
	l.mu.Unlock()
	if kernel == nil {
		return unix.EPERM
	}
	return kernel.Set(config)
}
