// SPDX-License-Identifier: Apache-2.0

package procwire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"
)

var (
	// ErrClosed matches the error of a connection that has ended without a fault.
	ErrClosed = errors.New("the connection to the other process has ended")

	// ErrBusy is returned by Call when too many requests wait for their answers.
	ErrBusy = errors.New("too many requests wait for the other process")
)

const (
	// DefaultTimeout is the value of Config.Timeout if that is 0.
	DefaultTimeout = 5 * time.Second

	// DefaultPending is the value of Config.Pending if that is 0.
	DefaultPending = 1024
)

// Config describes a connection.
type Config struct {
	In  Rules // the messages of the other side
	Out Rules // the messages of this side, whose answers are checked

	// Handle is called for each notice and request, one at a time and in their order. It may
	// call Call. Files that it has not taken when it returns are closed.
	Handle func(*Message)

	Timeout time.Duration
	Pending int
	Queue   int // messages that wait for the handler at most, others wait in the socket; 0: Pending

	Rate  rate.Limit // frames per second that are taken; 0: no limit
	Burst int        // frames that are taken at once
}

// Conn is one end of a connection. Its methods may be called from several goroutines at once.
type Conn struct {
	cfg  Config
	sock *net.UnixConn
	work chan *Message // to the handler
	done chan struct{} // closed when the goroutines have ended

	ctx  context.Context // ended by fail
	stop context.CancelFunc

	send sync.Mutex // one sender at a time
	out  []byte     // guarded by send

	mu      sync.Mutex          // guards all below
	err     error               // the reason of the end
	closed  bool                // by Close
	next    uint32              // number of the last request of this side
	waiting map[uint32]*call    // requests of this side
	owed    map[uint32]struct{} // requests of the other side
}

// call is a request of this side.
type call struct {
	kind   Kind
	reply  chan Reply // holds one
	gaveUp bool       // the answer is dropped; guarded by Conn.mu
}

// Reply is the answer to a request. Close closes the files that were not taken.
type Reply struct {
	Body []byte
	Files

	err error
}

// Reader returns a reader of the body.
func (r *Reply) Reader() *Reader { return NewReader(r.Body) }

// Pair makes the two ends of a connection. Both are close-on-exec.
func Pair() (a, b int, err error) {
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, -1, fmt.Errorf("socketpair: %w", err)
	}
	return p[0], p[1], nil
}

// New makes a connection of a socket, which is its own from then on, also with an error. Call
// Serve next.
func New(fd int, cfg Config) (*Conn, error) {
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultTimeout
	}
	if cfg.Pending == 0 {
		cfg.Pending = DefaultPending
	}
	if cfg.Queue == 0 {
		cfg.Queue = cfg.Pending
	}
	if err := cfg.check(); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	f := os.NewFile(uintptr(fd), "procwire")
	if f == nil {
		return nil, fmt.Errorf("procwire: descriptor %d: %w", fd, unix.EBADF)
	}
	defer f.Close()
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil || kind != unix.SOCK_SEQPACKET {
		return nil, fmt.Errorf("procwire: descriptor %d is not a socket of packets: %w", fd, errors.Join(err, unix.EPROTOTYPE))
	}
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("procwire: %w", err)
	}
	sock, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("procwire: descriptor %d is no unix socket", fd), c.Close())
	}
	ctx, stop := context.WithCancel(context.Background())
	return &Conn{
		cfg: cfg, sock: sock, work: make(chan *Message, cfg.Queue),
		done: make(chan struct{}), ctx: ctx, stop: stop,
		waiting: map[uint32]*call{}, owed: map[uint32]struct{}{},
	}, nil
}

// check returns the first mistake of the program in the rules.
func (c *Config) check() error {
	for _, rules := range []Rules{c.In, c.Out} {
		for kind, r := range rules {
			for _, s := range []Size{r.Ask, r.Answer} {
				if s.Body < 0 || s.Body > MaxBody || max(s.Files, s.MaxFiles) > MaxFiles {
					return fmt.Errorf("procwire: kind %d may have %d bytes and %d files, at most %d and %d are possible",
						kind, s.Body, max(s.Files, s.MaxFiles), MaxBody, MaxFiles)
				}
			}
		}
	}
	return nil
}

// Serve begins to take frames. It is called once.
func (c *Conn) Serve() {
	var both sync.WaitGroup
	both.Go(c.read)
	both.Go(c.handle)
	go func() {
		both.Wait()
		close(c.done)
	}()
}

// Gone is closed when the connection has ended: no frame can be sent any more.
func (c *Conn) Gone() <-chan struct{} { return c.ctx.Done() }

// Done is closed when the connection has ended and the handler has returned for the last
// time.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Err returns the reason of the end, or nil.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection. Messages that came before and wait for the handler are dropped.
// Close does not wait for the handler.
func (c *Conn) Close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.fail(ErrClosed)
}

// fail ends the connection, and all calls with it. The first reason stays.
func (c *Conn) fail(err error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = err
	waiting := c.waiting
	c.waiting = nil
	c.mu.Unlock()
	c.stop()
	_ = c.sock.Close() // the reason is err
	for _, w := range waiting {
		w.reply <- Reply{err: err} // it has room: a call that left the table gets one reply
	}
}

// Post sends a notice. The files stay the caller's. It returns when the socket has it, not
// when the other side has.
func (c *Conn) Post(kind Kind, body []byte, files ...int) error {
	r, ok := c.cfg.Out[kind]
	if !ok || !r.Notice {
		return fmt.Errorf("procwire: kind %d is not a notice of this side", kind)
	}
	h := header{kind: kind, class: classNotice, body: len(body), files: len(files)}
	return c.write(&h, r.Ask, body, files)
}

// Call sends a request and waits for its answer until ctx ends, or for Config.Timeout if ctx has
// no deadline. The files stay the caller's. The error matches RemoteError if the other
// side answered with a failure.
func (c *Conn) Call(ctx context.Context, kind Kind, body []byte, files ...int) (Reply, error) {
	r, ok := c.cfg.Out[kind]
	if !ok || r.Notice {
		return Reply{}, fmt.Errorf("procwire: kind %d is not a request of this side", kind)
	}
	w := &call{kind: kind, reply: make(chan Reply, 1)}
	id, err := c.begin(w)
	if err != nil {
		return Reply{}, err
	}
	h := header{kind: kind, class: classRequest, id: id, body: len(body), files: len(files)}
	if err := c.write(&h, r.Ask, body, files); err != nil {
		c.forget(id)
		return Reply{}, err
	}
	var late <-chan time.Time
	if _, bounded := ctx.Deadline(); !bounded {
		t := time.NewTimer(c.cfg.Timeout)
		defer t.Stop()
		late = t.C
	}
	select {
	case p := <-w.reply:
		return p, p.err
	case <-ctx.Done():
		err = ctx.Err()
	case <-late:
		err = fmt.Errorf("no answer of the other process within %v: %w", c.cfg.Timeout, os.ErrDeadlineExceeded)
	}
	c.mu.Lock()
	w.gaveUp = true
	c.mu.Unlock()
	select {
	case p := <-w.reply: // it came meanwhile
		return p, p.err
	default:
		return Reply{}, err
	}
}

// begin enters a request of this side and returns its number.
func (c *Conn) begin(w *call) (uint32, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, c.err
	}
	if len(c.waiting) >= c.cfg.Pending {
		return 0, ErrBusy
	}
	for {
		c.next++
		if _, used := c.waiting[c.next]; !used && c.next != 0 {
			break
		}
	}
	c.waiting[c.next] = w
	return c.next, nil
}

func (c *Conn) forget(id uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.waiting, id)
}

// finish sends the last frame of a request of the other side.
func (c *Conn) finish(h *header, size Size, body []byte, files []int) error {
	c.mu.Lock()
	delete(c.owed, h.id)
	c.mu.Unlock()
	return c.write(h, size, body, files)
}

// write sends a frame. A socket that is full for too long ends the connection.
func (c *Conn) write(h *header, size Size, body []byte, files []int) error {
	if err := size.check(h); err != nil {
		return fmt.Errorf("procwire: not sent: %w", err)
	}
	var oob []byte
	if len(files) > 0 {
		oob = unix.UnixRights(files...)
	}
	c.send.Lock()
	defer c.send.Unlock()
	c.out = append(h.append(c.out[:0]), body...)
	if err := c.sock.SetWriteDeadline(time.Now().Add(c.cfg.Timeout)); err != nil {
		return c.writeError(err)
	}
	if _, _, err := c.sock.WriteMsgUnix(c.out, oob, nil); err != nil {
		return c.writeError(err)
	}
	return nil
}

// writeError ends the connection, unless the error is of this frame only: a bad descriptor,
// too many files under way, or a lack of memory.
func (c *Conn) writeError(err error) error {
	for _, own := range []unix.Errno{unix.EBADF, unix.ETOOMANYREFS, unix.ENOMEM, unix.ENOBUFS} {
		if errors.Is(err, own) && c.Err() == nil {
			return fmt.Errorf("message to the other process: %w", err)
		}
	}
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		err = fmt.Errorf("the other process took no message for %v: %w", c.cfg.Timeout, err)
	case errors.Is(err, unix.EPIPE), errors.Is(err, unix.ECONNRESET), errors.Is(err, io.EOF):
		err = ErrClosed
	}
	c.fail(err)
	return c.Err()
}
