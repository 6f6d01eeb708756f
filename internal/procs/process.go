// SPDX-License-Identifier: Apache-2.0

package procs

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
)

// Child is a process that was started, normally a *spawn.Child.
type Child interface {
	Socket() int // of the caller
	PID() int
	Kill()
	Done() <-chan struct{}
	Err() error // how it ended
}

// Process is the broker's end of a process. What the process says is not trusted: it concerns
// the links of that process only, and is checked.
type Process struct {
	log        *zap.Logger
	words      *Words
	wire       *Wire
	child      Child
	conn       *procwire.Conn
	ready      any
	slow       chan struct{} // holds one: a call waits for long
	lost       chan struct{} // closed when its end has been dealt with
	refreshing atomic.Bool   // see refresh
	heard      atomic.Int64  // number of answers that came

	mu     sync.Mutex // guards all below
	links  map[uint32]*Seat
	health any
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

// newProcess sets a child up, with files that are closed here. Its end is told by died.
func newProcess(log *zap.Logger, child Child, cfg *Config, setup *procwire.Writer, files []int, died func(*Process)) (*Process, error) {
	defer CloseFiles(files)
	p := &Process{
		log: log, words: &cfg.Words, wire: &cfg.Wire, child: child,
		slow: make(chan struct{}, 1), lost: make(chan struct{}), links: map[uint32]*Seat{},
	}
	conn, err := procwire.New(child.Socket(), procwire.Config{
		In: p.wire.In, Out: p.wire.Out, Handle: p.handle, Timeout: p.wire.Timeout, Pending: p.wire.Pending,
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
	err = p.Ask(ctx, p.wire.Setup, setup, func(r *procwire.Reader) { p.ready = p.wire.Ready(r) }, files...)
	if err != nil {
		child.Kill()
		conn.Close()
		<-child.Done()
		return nil, fmt.Errorf("%s: %w", p.words.Process, errors.Join(err, child.Err()))
	}
	go p.watch(died)
	return p, nil
}

// watch pings the process until it ends.
func (p *Process) watch(died func(*Process)) {
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
	// A process that has broken its connection is not used any more, and must not
	// touch rings when its successor does.
	p.child.Kill()
	p.conn.Close()
	<-p.child.Done()
	<-p.conn.Done()
	died(p)
	close(p.lost)
}

// look has the process pinged.
func (p *Process) look() {
	select {
	case p.slow <- struct{}{}:
	default:
	}
}

// refresh pings the process, unless that is under way for another caller.
func (p *Process) refresh() {
	if p.refreshing.CompareAndSwap(false, true) {
		defer p.refreshing.Store(false)
		p.ping(time.Time{})
	}
}

// ping kills a process that does not answer, or whose workers do not since quiet. It returns
// the new quiet.
func (p *Process) ping(quiet time.Time) time.Time {
	var health any
	silent := ""
	if p.askWithin(pingTime, new(procwire.Writer), func(r *procwire.Reader) { health, silent = p.wire.Health(r) }) != nil {
		return quiet
	}
	p.mu.Lock()
	p.health = health
	p.mu.Unlock()
	switch {
	case silent == "":
		return time.Time{}
	case quiet.IsZero():
		return time.Now()
	case time.Since(quiet) > workersTime:
		p.Kill(errors.New(silent))
	}
	return quiet
}

// askWithin sends a ping, and kills a process that answers nothing for a time, also one that
// takes no message: a full socket holds up all who write to it. A process that is busy answers
// other requests meanwhile. Its own messages show nothing.
func (p *Process) askWithin(within time.Duration, w *procwire.Writer, take func(*procwire.Reader)) error {
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
				p.Kill(fmt.Errorf("it does not answer within %v", within))
				return
			}
			last = now
		}
	}()
	return p.Ask(context.Background(), p.wire.Ping, w, take)
}

// Kill ends the process, and all calls to it at once: the process itself ends only when the
// kernel lets it.
func (p *Process) Kill(why error) {
	p.mu.Lock()
	if p.reason == nil {
		p.reason = why
	}
	p.mu.Unlock()
	p.child.Kill()
	p.conn.Close()
}

// end describes the end of the process, once it has ended.
func (p *Process) end() error {
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
func (p *Process) gone() bool {
	select {
	case <-p.conn.Gone():
		return true
	case <-p.child.Done():
		return true
	default:
		return false
	}
}

// Ask sends a request and reads its answer: an error, and if there is none the rest with take.
// No answer in time, or one that is not valid, ends the process. A request that could not be sent,
// for want of memory on this side for example, does not.
func (p *Process) Ask(ctx context.Context, kind procwire.Kind, w *procwire.Writer, take func(*procwire.Reader), files ...int) error {
	t := time.AfterFunc(slowCall, p.look)
	defer t.Stop()
	reply, err := p.conn.Call(ctx, kind, w.Bytes(), files...)
	if err == nil {
		return p.read(kind, &reply, take)
	}
	late := errors.Is(err, os.ErrDeadlineExceeded) || ctx.Err() != nil
	if late {
		p.Kill(fmt.Errorf("call failed: %w", err))
	}
	switch {
	case late || p.gone():
		return fmt.Errorf("%w: %w", p.wire.Died, err)
	case errors.Is(err, procwire.ErrBusy):
		return fmt.Errorf("%s not asked: %w: %w", p.words.Process, unix.EAGAIN, err)
	}
	return fmt.Errorf("%s not asked: %w", p.words.Process, err)
}

// read reads an answer for Ask.
func (p *Process) read(kind procwire.Kind, reply *procwire.Reply, take func(*procwire.Reader)) error {
	p.heard.Add(1)
	defer reply.Close()
	r := reply.Reader()
	failed := p.wire.Causes.Take(r)
	if failed == nil && take != nil {
		take(r)
	}
	if err := r.End(); err != nil {
		p.Kill(fmt.Errorf("answer to message %d: %w", kind, err))
		return fmt.Errorf("%w: %w", p.wire.Died, err)
	}
	return failed
}

// Post sends a notice. An error means that the process has ended, or will: it would not know
// what later messages are about.
func (p *Process) Post(kind procwire.Kind, w *procwire.Writer, files ...int) error {
	t := time.AfterFunc(slowCall, p.look)
	defer t.Stop()
	if err := p.conn.Post(kind, w.Bytes(), files...); err != nil {
		if !p.gone() {
			p.Kill(fmt.Errorf("message not sent: %w", err))
		}
		return fmt.Errorf("%w: %w", p.wire.Died, err)
	}
	return nil
}

// handle takes a message of the process.
func (p *Process) handle(m *procwire.Message) {
	r := m.Reader()
	id := r.U32()
	p.mu.Lock()
	l := p.links[id]
	p.mu.Unlock()
	if l == nil { // it has just left
		if !p.wire.In[m.Kind].Notice {
			_ = p.wire.Answer(m, unix.ENOTCONN) // the process has ended
		}
		return
	}
	if err := l.link.Handle(m, r); err != nil {
		p.Kill(fmt.Errorf("message %d: %w", m.Kind, err))
	}
}

// Answer answers a request of a process with an error, which may be nil.
func (w *Wire) Answer(m *procwire.Message, err error) error {
	var b procwire.Writer
	w.Causes.Put(&b, err)
	if m.Answer(b.Bytes()) != nil {
		return w.Died
	}
	return nil
}

// Enter opens a link in the process: messages of the process may be about it from now on.
func (p *Process) Enter(l *Seat) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.links[l.id] = l
}

// leave forgets a link.
func (p *Process) leave(l *Seat) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.links, l.id)
}

// CloseFiles closes files.
func CloseFiles(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}
