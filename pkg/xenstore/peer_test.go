// SPDX-License-Identifier: Apache-2.0

package xenstore

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// peer is the far end of a Client under test: it reads requests and answers
// them as a test tells it to.
type peer struct {
	t    testing.TB
	conn net.Conn
	in   *MessageReader
	mu   sync.Mutex // of writes to conn
}

// dialPeer returns a Client and its peer.
func dialPeer(t testing.TB, kind Kind, opts ...Option) (*Client, *peer) {
	near, far := net.Pipe()
	p := &peer{t: t, conn: far, in: NewMessageReader(far)}
	c := New(near, kind, opts...)
	t.Cleanup(func() {
		_ = c.Close()
		_ = far.Close()
	})
	return c, p
}

// next returns the next request. It reports false when the client hung up.
func (p *peer) next() (message, bool) {
	h, b, err := p.in.Next()
	if err != nil {
		return message{}, false
	}
	return message{h, string(b)}, true
}

// serve answers every request with handle until the client hangs up.
func (p *peer) serve(handle func(m message)) {
	for {
		m, ok := p.next()
		if !ok {
			return
		}
		handle(m)
	}
}

func (p *peer) raw(b []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, _ = p.conn.Write(b) // the client may be gone
}

func (p *peer) send(h Header, payload string) { p.raw(AppendMessage(nil, h, []byte(payload))) }

// reply answers m with success.
func (p *peer) reply(m message, payload string) { p.send(m.Header, payload) }

func (p *peer) ok(m message) { p.reply(m, "OK\x00") }

// refuse answers m with an error.
func (p *peer) refuse(m message, name string) {
	h := m.Header
	h.Type = MsgError
	p.send(h, name+"\x00")
}

// event sends a WATCH_EVENT whose header is as the kernel leaves it.
func (p *peer) event(path, token string) {
	p.send(Header{Type: MsgWatchEvent, ReqID: 0xdeadbeef, TxID: 0xfeedface}, path+"\x00"+token+"\x00")
}

// hangUp ends the connection from the far side.
func (p *peer) hangUp() { _ = p.conn.Close() }

// strs returns the strings of a payload.
func (m message) strs() []string {
	ss, _ := SplitStrings([]byte(m.Payload))
	return ss
}

// receive takes an event from w.
func receive(t testing.TB, w *Watch) Event {
	t.Helper()
	select {
	case e, ok := <-w.C():
		if !ok {
			t.Fatalf("watch of %s is closed: %v", w.Path(), w.c.Err())
		}
		return e
	case <-time.After(30 * time.Second):
		t.Fatalf("no event of %s", w.Path())
	}
	panic("unreachable")
}

// closed waits until w's channel is closed and drained.
func closed(t testing.TB, w *Watch) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for {
		select {
		case _, ok := <-w.C():
			if !ok {
				return
			}
		case <-deadline:
			t.Fatalf("watch of %s is not closed", w.Path())
		}
	}
}

// wait waits until ch is closed.
func wait(t testing.TB, ch <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-ch:
	case <-time.After(30 * time.Second):
		t.Fatalf("%s does not happen", what)
	}
}

// conn is an io.ReadWriteCloser made of functions.
type conn struct {
	read  func([]byte) (int, error)
	write func([]byte) (int, error)
	close func() error
}

func (c conn) Read(b []byte) (int, error)  { return c.read(b) }
func (c conn) Write(b []byte) (int, error) { return c.write(b) }
func (c conn) Close() error                { return c.close() }

var _ io.ReadWriteCloser = conn{}
