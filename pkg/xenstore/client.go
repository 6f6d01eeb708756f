// SPDX-License-Identifier: Apache-2.0

package xenstore

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"
	"time"
)

// DefaultTimeout is how long a request may stay unanswered.
//
// It is there to notice an xenstored that lives but answers no more, or that is
// gone behind /dev/xen/xenbus, where no end of stream tells. Being wrong costs
// the connection, so it is longer than any wait a healthy xenstored imposes:
// during a live update the start of a transaction is held back for up to 60 s.
const DefaultTimeout = 90 * time.Second

// closeGrace is how long Close waits for what it has interrupted. Only a write
// to /dev/xen/xenbus can take longer.
const closeGrace = time.Second

// Option changes what a Client does by default.
type Option func(*Client)

// WithTimeout sets how long a request may stay unanswered before the connection
// is closed. 0 means for ever.
func WithTimeout(d time.Duration) Option {
	return func(c *Client) { c.timeout = d }
}

// Client is a connection to xenstored. It is safe for concurrent use. It holds
// two goroutines until Close is called or the connection ends.
type Client struct {
	view // outside of any transaction

	conn    io.ReadWriteCloser
	kind    Kind
	timeout time.Duration

	requests chan *request  // to the writer; unbuffered, so what waits is bounded by its callers
	loops    sync.WaitGroup // reader and writer
	done     chan struct{}  // closed when the connection is gone
	stopped  chan struct{}  // closed when conn is closed and the loops have ended, too

	mu          sync.Mutex
	idle        *sync.Cond          // of mu: outstanding became empty, or err was set
	outstanding map[uint32]*request // sent and not answered, by request id
	watches     map[string]*Watch   // by token
	lastToken   uint64
	err         error // why the connection is gone
}

// request is one call on its way.
type request struct {
	header  Header
	payload []byte
	answer  chan answer // holds one; whoever takes the request from outstanding fills it
}

type answer struct {
	payload []byte
	err     error
}

// New returns a Client that speaks over conn and owns it. Closing conn must
// make a blocked Read and Write return.
//
// A conn of kind Xenbus takes one whole request per Write, and may refuse it
// with a syscall.Errno.
func New(conn io.ReadWriteCloser, kind Kind, opts ...Option) *Client {
	c := &Client{
		conn:        conn,
		kind:        kind,
		timeout:     DefaultTimeout,
		requests:    make(chan *request),
		done:        make(chan struct{}),
		stopped:     make(chan struct{}),
		outstanding: make(map[uint32]*request),
		watches:     make(map[string]*Watch),
	}
	c.view.c = c
	c.idle = sync.NewCond(&c.mu)
	for _, o := range opts {
		o(c)
	}
	c.loops.Go(c.readLoop)
	c.loops.Go(c.writeLoop)
	return c
}

// Kind returns how the connection reaches xenstored.
func (c *Client) Kind() Kind { return c.kind }

// Done returns a channel that is closed when the connection is gone.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err returns nil while the connection stands, then why it is gone: an error
// that wraps ErrClosed and, unless Close was called, the cause.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection. Calls under way return ErrClosed. xenstored drops
// the watches and aborts the transactions of the connection.
func (c *Client) Close() error {
	c.fail(nil)
	grace := time.NewTimer(closeGrace)
	defer grace.Stop()
	select {
	case <-c.stopped:
	case <-grace.C:
	}
	return nil
}

// fail ends the connection, once. A nil cause means that it was asked for.
func (c *Client) fail(cause error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = ErrClosed
	if cause != nil {
		c.err = fmt.Errorf("%w: %w", ErrClosed, cause)
	}
	for id, r := range c.outstanding {
		delete(c.outstanding, id)
		r.answer <- answer{err: c.err}
	}
	for token, w := range c.watches {
		delete(c.watches, token)
		close(w.ch)
	}
	c.idle.Broadcast()
	close(c.done)
	go c.release()
}

// release closes conn, which makes the loops end. That waits for a write under
// way and may thus take as long as one does.
func (c *Client) release() {
	_ = c.conn.Close()
	c.loops.Wait()
	close(c.stopped)
}

// call sends one request and returns the payload of its answer. path is for
// the error only.
func (c *Client) call(typ MessageType, tx uint32, path string, payload []byte) ([]byte, error) {
	b, err := c.exchange(typ, tx, payload)
	if err != nil {
		return nil, &Error{Op: typ.String(), Path: path, Err: err}
	}
	return b, nil
}

func (c *Client) exchange(typ MessageType, tx uint32, payload []byte) ([]byte, error) {
	if len(payload) > c.kind.MaxRequest() {
		return nil, fmt.Errorf("%w: %d bytes, at most %d fit", ErrTooLong, len(payload), c.kind.MaxRequest())
	}
	var expired <-chan time.Time
	if c.timeout > 0 {
		t := time.NewTimer(c.timeout)
		defer t.Stop()
		expired = t.C
	}
	r := &request{
		header:  Header{Type: typ, TxID: tx},
		payload: payload,
		answer:  make(chan answer, 1),
	}
	select {
	case c.requests <- r:
	case <-c.done:
		return nil, c.Err()
	case <-expired:
		return nil, c.expire(typ)
	}
	select {
	case a := <-r.answer:
		return a.payload, a.err
	case <-expired:
		return nil, c.expire(typ)
	}
}

// expire ends the connection because a request was not answered in time.
func (c *Client) expire(typ MessageType) error {
	c.fail(fmt.Errorf("%w: %v took longer than %v", ErrTimeout, typ, c.timeout))
	return c.Err()
}

// writeLoop owns the sending side of the connection.
func (c *Client) writeLoop() {
	var (
		buf []byte
		id  uint32
	)
	for {
		select {
		case r := <-c.requests:
			if id = c.register(r, id); id == 0 {
				r.answer <- answer{err: c.Err()}
				return
			}
			buf = AppendMessage(buf[:0], r.header, r.payload)
			n, err := c.conn.Write(buf)
			if err == nil {
				continue
			}
			if errno, ok := c.refused(n, err); ok {
				if r := c.take(id); r != nil {
					r.answer <- answer{err: errno}
				}
				continue
			}
			c.fail(err)
		case <-c.done:
			return
		}
	}
}

// register makes r outstanding under a free id, chosen from last onwards, and
// returns that. It returns 0 when the connection is gone.
func (c *Client) register(r *request, last uint32) uint32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.kind == Xenbus {
		// See the package documentation: this request would overwrite one that the
		// kernel has yet to send, or stop its xenbus thread.
		for len(c.outstanding) > 0 && c.err == nil {
			c.idle.Wait()
		}
	}
	if c.err != nil {
		return 0
	}
	id := last + 1
	for id == 0 || c.outstanding[id] != nil {
		id++
	}
	r.header.ReqID = id
	c.outstanding[id] = r
	return id
}

// refused tells the errno of a request that xenbus refused from a broken
// connection. The kernel has dropped a refused request whole.
func (c *Client) refused(written int, err error) (syscall.Errno, bool) {
	var errno syscall.Errno
	if c.kind != Xenbus || written != 0 || !errors.As(err, &errno) || errno == syscall.EBADF {
		return 0, false
	}
	return errno, true
}

// take removes and returns an outstanding request. It returns nil when there
// is none, since the connection has ended or nobody asked.
func (c *Client) take(id uint32) *request {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.outstanding[id]
	delete(c.outstanding, id)
	if len(c.outstanding) == 0 {
		c.idle.Signal()
	}
	return r
}

// readLoop owns the receiving side of the connection. It never waits for
// anything else, so a slow consumer of a watch delays nobody.
func (c *Client) readLoop() {
	messages := NewMessageReader(c.conn)
	for {
		h, payload, err := messages.Next()
		if err == nil {
			err = c.dispatch(h, payload)
		}
		if err != nil {
			if err == io.EOF {
				err = fmt.Errorf("xenstored hung up: %w", err)
			}
			c.fail(err)
			return
		}
	}
}

// dispatch hands a message to whom it is for. The error ends the connection.
func (c *Client) dispatch(h Header, payload []byte) error {
	if h.Type == MsgWatchEvent {
		// Nothing else of the header means anything.
		return c.fire(payload)
	}
	r := c.take(h.ReqID)
	if r == nil {
		return fmt.Errorf("%w: %v answers request %d, which is not outstanding", ErrProtocol, h.Type, h.ReqID)
	}
	switch h.Type {
	case r.header.Type:
		r.answer <- answer{payload: bytes.Clone(payload)}
	case MsgError:
		r.answer <- answer{err: wireError(payload)}
	default:
		err := fmt.Errorf("%w: %v answers a request of type %v", ErrProtocol, h.Type, r.header.Type)
		c.fail(err)
		r.answer <- answer{err: c.Err()}
		return err
	}
	return nil
}

// wireError is the error an ERROR message carries. A name outside the table
// counts as EINVAL, as it does for libxenstore and for the kernel.
func wireError(payload []byte) error {
	name := string(bytes.TrimRight(payload, "\x00"))
	if errno, ok := ParseErrno(name); ok {
		return errno
	}
	return fmt.Errorf("%w: xenstored says %.80q", syscall.EINVAL, name)
}
