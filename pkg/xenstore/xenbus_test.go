// SPDX-License-Identifier: Apache-2.0

package xenstore

import (
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"syscall"
	"testing"
)

// kernel is /dev/xen/xenbus as drivers/xen/xenbus/xenbus_dev_frontend.c
// implements it, as far as a client can tell.
type kernel struct {
	t      testing.TB
	refuse func(m message) syscall.Errno

	mu       sync.Mutex
	readable *sync.Cond
	partial  []byte // of a request, u.buffer there
	replies  []byte // read_buffers there
	asked    int    // requests that xenstored has not answered, and may not have got
	watches  map[string]bool
	closed   bool
	answers  sync.WaitGroup
}

func newKernel(t testing.TB) *kernel {
	k := &kernel{t: t, watches: map[string]bool{}, refuse: func(message) syscall.Errno { return 0 }}
	k.readable = sync.NewCond(&k.mu)
	t.Cleanup(k.answers.Wait)
	return k
}

// Write takes a request in pieces and acts on it when it is complete.
func (k *kernel) Write(b []byte) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return 0, os.ErrClosed
	}
	if len(k.partial)+len(b) > 4096 {
		k.partial = nil
		return 0, &os.PathError{Op: "write", Path: "/dev/xen/xenbus", Err: syscall.EINVAL}
	}
	k.partial = append(k.partial, b...)
	if len(k.partial) < HeaderSize || len(k.partial) < HeaderSize+int(binary.NativeEndian.Uint32(k.partial[12:])) {
		return len(b), nil
	}
	h, err := DecodeHeader(k.partial)
	if err != nil {
		k.t.Error(err)
	}
	m := message{h, string(k.partial[HeaderSize:])}
	k.partial = nil
	if errno := k.refuse(m); errno != 0 {
		return 0, &os.PathError{Op: "write", Path: "/dev/xen/xenbus", Err: errno}
	}
	if k.asked > 0 {
		k.t.Errorf("%v overwrites the payload of a request that has not been sent, or stops the kernel's xenbus thread", h.Type)
	}
	switch h.Type {
	case MsgWatch, MsgUnwatch:
		token := m.strs()[1]
		k.watches[token] = h.Type == MsgWatch
		if h.Type == MsgWatch {
			k.event("/w", token)
		}
		k.queue(h, "OK\x00")
	default:
		k.asked++
		k.answers.Go(func() {
			k.mu.Lock()
			defer k.mu.Unlock()
			k.asked--
			k.queue(h, m.strs()[0])
		})
	}
	return len(b), nil
}

func (k *kernel) queue(h Header, payload string) {
	k.replies = AppendMessage(k.replies, h, []byte(payload))
	k.readable.Signal()
}

// event queues a WATCH_EVENT with what was on the stack for ids.
func (k *kernel) event(path, token string) {
	k.queue(Header{Type: MsgWatchEvent, ReqID: rand.Uint32(), TxID: rand.Uint32()}, path+"\x00"+token+"\x00")
}

// Read returns the bytes that are there, without regard to messages.
func (k *kernel) Read(b []byte) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for len(k.replies) == 0 && !k.closed {
		k.readable.Wait()
	}
	if k.closed {
		return 0, os.ErrClosed
	}
	n := copy(b, k.replies[:1+rand.N(len(k.replies))])
	k.replies = k.replies[n:]
	return n, nil
}

func (k *kernel) Close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.closed = true
	k.readable.Broadcast()
	return nil
}

func dialKernel(t testing.TB) (*Client, *kernel) {
	k := newKernel(t)
	c := New(k, Xenbus)
	t.Cleanup(func() { _ = c.Close() })
	return c, k
}

// TestXenbusRequestsAreSentAlone is about the kernel's buffer and its lock: see the
// package documentation.
func TestXenbusRequestsAreSentAlone(t *testing.T) {
	c, _ := dialKernel(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 300 {
				if got, err := c.Read(t.Context(), "/a"); err != nil || got != "/a" {
					t.Errorf("%q, %v", got, err)
				}
			}
		})
	}
	for range 4 {
		wg.Go(func() {
			for range 50 {
				w, err := c.Watch(t.Context(), "/w")
				if err != nil {
					t.Error(err)
					return
				}
				if e := receive(t, w); e.Path != "/w" {
					t.Errorf("got %+v", e)
				}
				w.Close()
			}
		})
	}
	wg.Wait()
	if err := c.Err(); err != nil {
		t.Error(err)
	}
}

func TestXenbusRefusesARequestByErrno(t *testing.T) {
	c, k := dialKernel(t)
	k.refuse = func(m message) syscall.Errno {
		switch {
		case m.Header.Type == MsgWatch && m.strs()[0] == "/twice":
			return syscall.EEXIST
		case m.strs()[0] == "/nomem":
			return syscall.ENOMEM
		}
		return 0
	}
	_, watchErr := c.Watch(t.Context(), "/twice")
	_, readErr := c.Read(t.Context(), "/nomem")
	for want, err := range map[error]error{ErrExist: watchErr, syscall.ENOMEM: readErr} {
		var e *Error
		if !errors.Is(err, want) || !errors.As(err, &e) || errors.Is(err, ErrClosed) {
			t.Errorf("got %v, want %v", err, want)
		}
	}
	if n := len(c.watches); n != 0 {
		t.Errorf("%d watches are kept", n)
	}
	if got, err := c.Read(t.Context(), "/next"); err != nil || got != "/next" {
		t.Errorf("the next request: %q, %v", got, err)
	}
}

func TestWriteErrorsThatEndTheConnection(t *testing.T) {
	for name, tc := range map[string]struct {
		kind Kind
		n    int
		err  error
	}{
		"socket":               {Socket, 0, syscall.EPIPE},
		"xenbus, half a write": {Xenbus, 5, syscall.ENOMEM},
		"xenbus, bad fd":       {Xenbus, 0, syscall.EBADF},
		"xenbus, closed file":  {Xenbus, 0, os.ErrClosed},
	} {
		t.Run(name, func(t *testing.T) {
			gone := make(chan struct{})
			c := New(conn{
				read:  func([]byte) (int, error) { <-gone; return 0, io.ErrClosedPipe },
				write: func([]byte) (int, error) { return tc.n, tc.err },
				close: func() error { close(gone); return nil },
			}, tc.kind)
			defer c.Close()
			if _, err := c.Read(t.Context(), "/a"); !errors.Is(err, ErrClosed) || !errors.Is(err, tc.err) {
				t.Errorf("got %v", err)
			}
			wait(t, c.Done(), "the end")
		})
	}
}

func TestXenbusClosesInTheMiddle(t *testing.T) {
	for range 20 {
		c, _ := dialKernel(t)
		started := make(chan struct{}, 100)
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				for {
					_, err := c.Read(t.Context(), "/a")
					if err != nil {
						if !errors.Is(err, ErrClosed) {
							t.Errorf("read: %v", err)
						}
						return
					}
					select {
					case started <- struct{}{}:
					default:
					}
				}
			})
			wg.Go(func() {
				for {
					w, err := c.Watch(t.Context(), "/w")
					if err != nil {
						if !errors.Is(err, ErrClosed) {
							t.Errorf("watch: %v", err)
						}
						return
					}
					w.Close()
				}
			})
		}
		for range 10 {
			<-started
		}
		_ = c.Close()
		wg.Wait()
		wait(t, c.stopped, "the end of the goroutines")
	}
}
