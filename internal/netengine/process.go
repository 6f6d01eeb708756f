// SPDX-License-Identifier: Apache-2.0

package netengine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/procwire"
	"github.com/netbackd/netbackd/pkg/xen"
)

// Child is a packet process that was started, normally a *spawn.Child.
type Child interface {
	Socket() int // of the caller
	PID() int
	Kill()
	Done() <-chan struct{}
	Err() error // how it ended
}

// process is the broker's end of a packet process. What the process says is not trusted: it
// concerns the links of that process only, and is checked.
type process struct {
	log        *zap.Logger
	child      Child
	conn       *procwire.Conn
	ready      Ready
	slow       chan struct{} // holds one: a call waits for long
	lost       chan struct{} // closed when its end has been dealt with
	refreshing atomic.Bool   // see refresh
	heard      atomic.Int64  // number of answers that came

	mu     sync.Mutex // guards all below
	links  map[uint32]*remoteLink
	health Health
	reason error // why it was killed
}

const (
	// slowCall is the duration of a call that causes a ping.
	slowCall = time.Second
	// pingTime bounds the answer to a ping, and workersTime the silence of workers: the data path
	// costs a guest whose turn does not end its vifs before.
	pingTime    = 5 * time.Second
	workersTime = 90 * time.Second
	// setUpTime bounds the start of a process.
	setUpTime = 20 * time.Second

	// messageRate and messageBurst bound the messages of a process that are taken, per
	// second and at once. Others wait in its socket.
	messageRate, messageBurst = 20000, 20000
	// messageQueue bounds those that wait for the handler, in memory.
	messageQueue = 64
)

// newProcess sets a child up, with devices that are closed here. Its end is told by died.
func newProcess(log *zap.Logger, child Child, set *setup, devices []int, died func(*process)) (*process, error) {
	defer CloseFiles(devices)
	p := &process{log: log, child: child, slow: make(chan struct{}, 1), lost: make(chan struct{}), links: map[uint32]*remoteLink{}}
	conn, err := procwire.New(child.Socket(), procwire.Config{
		In: toBroker(), Out: toProcess(), Handle: p.handle, Timeout: callTimeout, Pending: pending,
		Rate: messageRate, Burst: messageBurst, Queue: messageQueue,
	})
	if err != nil {
		child.Kill()
		return nil, err
	}
	p.conn = conn
	conn.Serve()
	ctx, cancel := context.WithTimeout(context.Background(), setUpTime)
	defer cancel()
	var w procwire.Writer
	set.put(&w)
	err = p.ask(ctx, kindSetup, &w, func(r *procwire.Reader) { takeReady(r, &p.ready) }, devices...)
	if err != nil {
		child.Kill()
		conn.Close()
		<-child.Done()
		return nil, fmt.Errorf("packet process: %w", errors.Join(err, child.Err()))
	}
	go p.watch(died)
	return p, nil
}

// watch pings the process until it ends.
func (p *process) watch(died func(*process)) {
	var quiet time.Time // since then a worker does not answer; zero: all do
	for {
		select {
		case <-p.conn.Gone():
		case <-p.child.Done():
		case <-p.slow:
			quiet = p.ping(quiet)
			continue
		}
		break
	}
	// A packet process that has broken its connection is not used any more, and must not
	// touch rings when its successor does.
	p.child.Kill()
	p.conn.Close()
	<-p.child.Done()
	<-p.conn.Done()
	died(p)
	close(p.lost)
}

// look has the process pinged.
func (p *process) look() {
	select {
	case p.slow <- struct{}{}:
	default:
	}
}

// refresh pings the process, unless that is under way for another caller.
func (p *process) refresh() {
	if p.refreshing.CompareAndSwap(false, true) {
		defer p.refreshing.Store(false)
		p.ping(time.Time{})
	}
}

// ping kills a process that does not answer, or whose workers do not since quiet. It returns
// the new quiet.
func (p *process) ping(quiet time.Time) time.Time {
	var h Health
	if p.askWithin(pingTime, kindPing, new(procwire.Writer), func(r *procwire.Reader) { takeHealth(r, &h) }) != nil {
		return quiet
	}
	p.mu.Lock()
	p.health = h
	p.mu.Unlock()
	switch {
	case h.Silent == "":
		return time.Time{}
	case quiet.IsZero():
		return time.Now()
	case time.Since(quiet) > workersTime:
		p.kill(errors.New(clean([]byte(cut(h.Silent)))))
	}
	return quiet
}

// askWithin sends a request, and kills a process that answers nothing for a time, also one that
// takes no message: a full socket holds up all who write to it. A process that is busy answers
// other requests meanwhile. Its own messages show nothing.
func (p *process) askWithin(within time.Duration, kind procwire.Kind, w *procwire.Writer, take func(*procwire.Reader)) error {
	answered := make(chan struct{})
	defer close(answered)
	go func() {
		tick := time.NewTicker(within)
		defer tick.Stop()
		for last := p.heard.Load(); ; {
			select {
			case <-answered:
				return
			case <-tick.C:
			}
			now := p.heard.Load()
			if now == last {
				p.kill(fmt.Errorf("it does not answer within %v", within))
				return
			}
			last = now
		}
	}()
	return p.ask(context.Background(), kind, w, take)
}

// kill ends the process, and all calls to it at once: the process itself ends only when the
// kernel lets it.
func (p *process) kill(why error) {
	p.mu.Lock()
	if p.reason == nil {
		p.reason = why
	}
	p.mu.Unlock()
	p.child.Kill()
	p.conn.Close()
}

// end describes the end of the process, once it has ended.
func (p *process) end() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reason != nil {
		return p.reason
	}
	if err := p.conn.Err(); err != nil && !errors.Is(err, procwire.ErrClosed) {
		return err
	}
	return p.child.Err()
}

// gone reports whether the process has ended, or is about to.
func (p *process) gone() bool {
	select {
	case <-p.conn.Gone():
		return true
	case <-p.child.Done():
		return true
	default:
		return false
	}
}

// ask sends a request and reads its answer: an error, and if there is none the rest with take.
// No answer in time, or one that is not valid, ends the process. A request that could not be sent,
// for want of memory on this side for example, does not.
func (p *process) ask(ctx context.Context, kind procwire.Kind, w *procwire.Writer, take func(*procwire.Reader), files ...int) error {
	t := time.AfterFunc(slowCall, p.look)
	defer t.Stop()
	reply, err := p.conn.Call(ctx, kind, w.Bytes(), files...)
	if err == nil {
		return p.read(kind, &reply, take)
	}
	late := errors.Is(err, os.ErrDeadlineExceeded) || ctx.Err() != nil
	if late {
		p.kill(fmt.Errorf("call failed: %w", err))
	}
	switch {
	case late || p.gone():
		return fmt.Errorf("%w: %w", ErrDied, err)
	case errors.Is(err, procwire.ErrBusy):
		return fmt.Errorf("packet process not asked: %w: %w", unix.EAGAIN, err)
	}
	return fmt.Errorf("packet process not asked: %w", err)
}

// read reads an answer for ask.
func (p *process) read(kind procwire.Kind, reply *procwire.Reply, take func(*procwire.Reader)) error {
	p.heard.Add(1)
	defer reply.Close()
	r := reply.Reader()
	failed := takeError(r)
	if failed == nil && take != nil {
		take(r)
	}
	if err := r.End(); err != nil {
		p.kill(fmt.Errorf("answer to message %d: %w", kind, err))
		return fmt.Errorf("%w: %w", ErrDied, err)
	}
	return failed
}

// post sends a notice. An error means that the process has ended, or will: it would not know
// what later messages are about.
func (p *process) post(kind procwire.Kind, w *procwire.Writer, files ...int) error {
	t := time.AfterFunc(slowCall, p.look)
	defer t.Stop()
	if err := p.conn.Post(kind, w.Bytes(), files...); err != nil {
		if !p.gone() {
			p.kill(fmt.Errorf("message not sent: %w", err))
		}
		return fmt.Errorf("%w: %w", ErrDied, err)
	}
	return nil
}

// handle takes a message of the process.
func (p *process) handle(m *procwire.Message) {
	r := m.Reader()
	id, connection := r.U32(), r.U32()
	p.mu.Lock()
	l := p.links[id]
	p.mu.Unlock()
	if l == nil { // it has just left
		if m.Kind != kindNotice {
			_ = answerError(m, unix.ENOTCONN) // the process has ended
		}
		return
	}
	if err := l.handle(m, r, connection); err != nil {
		p.kill(fmt.Errorf("message %d: %w", m.Kind, err))
	}
}

// tellDomid tells the process the number of its domain.
func (p *process) tellDomid(domid xen.Domid) {
	var w procwire.Writer
	w.U16(uint16(domid))
	_ = p.post(kindOwnDomid, &w) // the end of the process is seen elsewhere
}

// leave forgets a link.
func (p *process) leave(l *remoteLink) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.links, l.id)
}
