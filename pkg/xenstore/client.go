// SPDX-License-Identifier: Apache-2.0

package xenstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"syscall"
	"time"
)

// DefaultTimeout bounds the time until a request is answered.
//
// It detects an xenstored that runs but does not answer, or one behind
// /dev/xen/xenbus that has ended, where there is no end of stream. The connection is
// closed then, so the timeout is longer than any wait for a healthy xenstored: during
// a live update the start of a transaction takes up to 60 s.
const DefaultTimeout = 90 * time.Second

// closeGrace bounds the wait of Close for the reader and the writer. Only a write to
// /dev/xen/xenbus can take longer.
const closeGrace = time.Second

// Option changes what a Client does by default.
type Option func(*Client)

// WithTimeout sets the time after which the connection is closed if a request has no
// answer. 0 means never.
func WithTimeout(d time.Duration) Option {
	return func(c *Client) { c.timeout = d }
}

// Client is a connection to xenstored. It is safe for concurrent use. It holds
// two goroutines until Close is called or the connection ends.
//
// A call whose ctx ends returns ctx.Err() in an [Error] at once, and the
// connection stays usable: see the package documentation.
type Client struct {
	view // outside of any transaction

	conn    io.ReadWriteCloser
	kind    Kind
	timeout time.Duration

	loops   sync.WaitGroup // reader and writer
	done    chan struct{}  // closed when the connection is gone
	stopped chan struct{}  // closed when conn is closed and the loops have ended, too

	mu          sync.Mutex          // guards all below, and requests
	due         *sync.Cond          // of mu: the writer may have something to send, or err was set
	queue       []*request          // to be sent, the oldest first; a caller waits for each, or it undoes something
	outstanding map[uint32]*request // sent and not answered, by request id
	lastID      uint32
	watches     map[string]*Watch // by token
	lastToken   uint64
	err         error // reason of the end of the connection
}

// request is one call on its way. Client.mu guards its fields, except for
// payload, which does not change once the request was sent.
type request struct {
	header  Header
	payload []byte
	answer  chan answer // holds one
	expiry  *time.Timer // ends the connection; nil: never
	settled bool        // it was answered or withdrawn
	left    bool        // its caller does not wait for the answer
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
		done:        make(chan struct{}),
		stopped:     make(chan struct{}),
		outstanding: make(map[uint32]*request),
		watches:     make(map[string]*Watch),
	}
	c.view.c = c
	c.due = sync.NewCond(&c.mu)
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

// Err returns nil while the connection stands, and then the reason of its end: an
// error that wraps ErrClosed and, unless Close was called, the cause.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection. Calls under way return ErrClosed. xenstored removes
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

// fail ends the connection, once. cause is nil if Close was called.
func (c *Client) fail(cause error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failLocked(cause)
}

func (c *Client) failLocked(cause error) {
	if c.err != nil {
		return
	}
	c.err = ErrClosed
	if cause != nil {
		c.err = fmt.Errorf("%w: %w", ErrClosed, cause)
	}
	for _, r := range c.outstanding {
		r.settle(answer{err: c.err})
	}
	for _, r := range c.queue {
		r.settle(answer{err: c.err})
	}
	clear(c.outstanding)
	c.queue = nil
	for token, w := range c.watches {
		delete(c.watches, token)
		close(w.ch)
	}
	c.due.Broadcast()
	close(c.done)
	go c.release()
}

// release closes conn, which makes the loops end. It waits for a write under way.
func (c *Client) release() {
	_ = c.conn.Close()
	c.loops.Wait()
	close(c.stopped)
}

// call sends one request and returns the payload of its answer. path is for
// the error only.
func (c *Client) call(ctx context.Context, typ MessageType, tx uint32, path string, payload []byte) ([]byte, error) {
	err := ctx.Err()
	if err == nil {
		payload, err = c.exchange(ctx, typ, tx, payload)
	}
	if err != nil {
		return nil, &Error{Op: typ.String(), Path: path, Err: err}
	}
	return payload, nil
}

// exchange sends one request and waits for its answer, or for the end of ctx.
func (c *Client) exchange(ctx context.Context, typ MessageType, tx uint32, payload []byte) ([]byte, error) {
	if len(payload) > c.kind.MaxRequest() {
		return nil, fmt.Errorf("%w: %d bytes, at most %d fit", ErrTooLong, len(payload), c.kind.MaxRequest())
	}
	r := &request{
		header:  Header{Type: typ, TxID: tx},
		payload: payload,
		answer:  make(chan answer, 1),
	}
	c.mu.Lock()
	c.push(r)
	c.mu.Unlock()
	select {
	case a := <-r.answer:
		return a.payload, a.err
	case <-ctx.Done():
		return c.leave(r, ctx.Err())
	}
}

// discard sends a request that undoes something. It does not wait for the
// answer. c.mu is held.
func (c *Client) discard(typ MessageType, tx uint32, payload []byte) {
	c.push(&request{header: Header{Type: typ, TxID: tx}, payload: payload, answer: make(chan answer, 1), left: true})
}

// push queues r for the writer. c.mu is held.
func (c *Client) push(r *request) {
	if c.err != nil {
		r.settle(answer{err: c.err})
		return
	}
	if c.timeout > 0 {
		r.expiry = time.AfterFunc(c.timeout, func() { c.expire(r) })
	}
	c.queue = append(c.queue, r)
	c.due.Signal()
}

// leave gives up waiting for the answer to r. A request that was not sent yet is
// withdrawn; a commit becomes an abort. The answer to one that was sent is
// dropped when it comes. leave returns err, or the answer if it came first.
func (c *Client) leave(r *request, err error) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r.settled {
		a := <-r.answer
		return a.payload, a.err
	}
	r.left = true
	if i := slices.Index(c.queue, r); i >= 0 {
		if r.header.Type == MsgTransactionEnd {
			r.payload = abortPayload
			return nil, err
		}
		c.queue = slices.Delete(c.queue, i, i+1)
		r.settle(answer{err: err})
	}
	return nil, err
}

// settle answers r, once. Client.mu is held.
func (r *request) settle(a answer) {
	r.settled = true
	if r.expiry != nil {
		r.expiry.Stop()
	}
	r.answer <- a
}

// expire ends the connection because a request was not answered in time.
func (c *Client) expire(r *request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !r.settled {
		c.failLocked(fmt.Errorf("%w: %v took longer than %v", ErrTimeout, r.header.Type, c.timeout))
	}
}

// writeLoop owns the sending side of the connection.
func (c *Client) writeLoop() {
	var buf []byte
	for {
		r := c.next()
		if r == nil {
			return
		}
		buf = AppendMessage(buf[:0], r.header, r.payload)
		n, err := c.conn.Write(buf)
		if err == nil {
			continue
		}
		if errno, ok := c.refused(n, err); ok {
			c.mu.Lock()
			c.answer(r, answer{err: errno})
			c.mu.Unlock()
			continue
		}
		c.fail(err)
	}
}

// next waits for a request that may be sent and makes it outstanding. It returns
// nil when the connection is gone.
func (c *Client) next() *request {
	c.mu.Lock()
	defer c.mu.Unlock()
	// On Xenbus a second request would overwrite one that the kernel has yet to
	// send, or stop its xenbus thread: see the package documentation.
	for c.err == nil && (len(c.queue) == 0 || c.kind == Xenbus && len(c.outstanding) > 0) {
		c.due.Wait()
	}
	if c.err != nil {
		return nil
	}
	r := c.queue[0]
	c.queue[0] = nil
	c.queue = c.queue[1:]
	c.register(r)
	return r
}

// register makes r outstanding under a free id. c.mu is held.
func (c *Client) register(r *request) {
	c.lastID++
	for c.lastID == 0 || c.outstanding[c.lastID] != nil {
		c.lastID++
	}
	r.header.ReqID = c.lastID
	c.outstanding[c.lastID] = r
}

// refused returns the errno if xenbus has refused a request, and false if the
// connection is broken. The kernel has dropped a refused request as a whole.
func (c *Client) refused(written int, err error) (syscall.Errno, bool) {
	var errno syscall.Errno
	if c.kind != Xenbus || written != 0 || !errors.As(err, &errno) || errno == syscall.EBADF {
		return 0, false
	}
	return errno, true
}

// readLoop owns the receiving side of the connection. It never waits for
// anything else, so a slow consumer of a watch delays no other.
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

// dispatch hands a message to the call or the watch that it is for. The error
// ends the connection.
func (c *Client) dispatch(h Header, payload []byte) error {
	if h.Type == MsgWatchEvent {
		// Nothing else of the header means anything.
		return c.fire(payload)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.outstanding[h.ReqID]
	switch {
	case r == nil:
		return fmt.Errorf("%w: %v answers request %d, which is not outstanding", ErrProtocol, h.Type, h.ReqID)
	case h.Type == MsgError:
		c.answer(r, answer{err: wireError(payload)})
	case h.Type == r.header.Type:
		c.answer(r, answer{payload: bytes.Clone(payload)})
	default:
		return fmt.Errorf("%w: %v answers a request of type %v", ErrProtocol, h.Type, r.header.Type)
	}
	return nil
}

// answer answers an outstanding request. If its caller has left, answer undoes the
// changes that the request has made in xenstored. c.mu is held.
func (c *Client) answer(r *request, a answer) {
	if r.settled {
		return // the connection is gone
	}
	delete(c.outstanding, r.header.ReqID)
	c.due.Signal()
	r.settle(a)
	if !r.left || a.err != nil {
		return
	}
	switch r.header.Type {
	case MsgTransactionStart:
		id, err := parseTxID(a.payload)
		if err != nil {
			c.failLocked(err)
			return
		}
		c.discard(MsgTransactionEnd, id, abortPayload)
	case MsgWatch:
		c.discard(MsgUnwatch, 0, r.payload)
	}
}

// wireError returns the error that an ERROR message carries. A name outside the table
// counts as EINVAL, as in libxenstore and in the kernel.
func wireError(payload []byte) error {
	name := string(bytes.TrimRight(payload, "\x00"))
	if errno, ok := ParseErrno(name); ok {
		return errno
	}
	return fmt.Errorf("%w: xenstored says %.80q", syscall.EINVAL, name)
}
