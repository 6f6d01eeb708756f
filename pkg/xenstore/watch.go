// SPDX-License-Identifier: Apache-2.0

package xenstore

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
)

// maxPending is the largest number of distinct paths that a watch holds for its
// consumer. It is enough for a whole device directory that is written at once, and
// thousands of watches need little memory.
const maxPending = 64

// Event tells that the node Path has changed or, if Overflow is set, that too many
// nodes have changed: read everything that the watch covers.
//
// Path is the changed node, or the watched path itself if one of its parents was
// removed. It is relative if the watched path is. An event does not carry the change,
// and may be out of date: read the node.
type Event struct {
	Path     string // empty if Overflow is set
	Overflow bool
}

// Watch reports changes of a node and of everything below it.
//
// The first event follows at once, with the watched path itself, so that the consumer
// reads the present state. After that each change is reported at least once, after it
// happened. Further changes of a path are not reported while the consumer has not taken
// the event of the first. Different paths are reported in the order of their first
// change.
type Watch struct {
	c     *Client
	path  string
	token string

	// ch has room for a number of paths and one Overflow behind them. Only the
	// client's reader sends, with the client's mutex held, so a send that finds
	// room does not block.
	ch chan Event

	// sent holds the last events, as a ring. The last len(ch) of them are still in ch.
	// So a pending path is found without reading ch. If the consumer takes an event
	// between that search and the decision to drop, it reads the node after the
	// change, so nothing is lost.
	sent  []Event // as long as ch has room
	sends int
}

// Watch starts to watch path: a node, which need not exist, or a special path
// like ReleaseDomain. Changes made in a transaction are reported when it
// commits.
//
// A domain that may write below path can cause any number of events. They need bounded
// memory here, but watch single nodes rather than a guest's directory.
func (c *Client) Watch(ctx context.Context, path string) (*Watch, error) {
	return c.watch(ctx, path, maxPending)
}

// WatchNode is like Watch for a consumer that reads one node after any event and takes no
// interest in the paths below it. The watch holds one path, and takes a tenth of the memory
// of others.
func (c *Client) WatchNode(ctx context.Context, path string) (*Watch, error) {
	return c.watch(ctx, path, 1)
}

// watch starts a watch that holds as many paths as pending.
func (c *Client) watch(ctx context.Context, path string, pending int) (*Watch, error) {
	if err := CheckWatchPath(path); err != nil {
		return nil, &Error{Op: MsgWatch.String(), Path: path, Err: err}
	}
	w := &Watch{c: c, path: path, ch: make(chan Event, pending+1), sent: make([]Event, pending+1)}
	// The first event may overtake the reply, so the watch is known before
	// it is asked for.
	if err := c.addWatch(w); err != nil {
		return nil, &Error{Op: MsgWatch.String(), Path: path, Err: err}
	}
	if _, err := c.call(ctx, MsgWatch, 0, path, AppendStrings(nil, path, w.token)); err != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.dropWatch(w)
		return nil, err
	}
	return w, nil
}

// Path returns the watched path.
func (w *Watch) Path() string { return w.path }

// C returns the channel of events. It is closed by Close, and at the end of the
// connection, after which Client.Err returns the reason.
func (w *Watch) C() <-chan Event { return w.ch }

// Close ends the watch. No event is received after it. It does not wait for
// xenstored. It may be called while another goroutine receives from C, and more
// than once.
func (w *Watch) Close() {
	c := w.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dropWatch(w) {
		c.discard(MsgUnwatch, 0, AppendStrings(nil, w.path, w.token))
	}
}

// addWatch adds w to the watches, under a new token.
func (c *Client) addWatch(w *Watch) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	c.lastToken++
	w.token = strconv.FormatUint(c.lastToken, 10)
	c.watches[w.token] = w
	return nil
}

// dropWatch removes w from the watches, discards its events and closes its channel. It
// returns false if that was done before. c.mu is held.
func (c *Client) dropWatch(w *Watch) bool {
	if c.watches[w.token] != w {
		return false
	}
	delete(c.watches, w.token)
	for {
		select {
		case <-w.ch:
		default:
			close(w.ch)
			return true
		}
	}
}

// fire passes an event to its watch. If there is none, the watch was closed meanwhile,
// and the event is dropped.
func (c *Client) fire(payload []byte) error {
	path, token, ok := cutEvent(payload)
	if !ok {
		return fmt.Errorf("%w: WATCH_EVENT of %.80q", ErrProtocol, payload)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if w := c.watches[string(token)]; w != nil {
		w.post(path)
	}
	return nil
}

// cutEvent returns the path and the token of a WATCH_EVENT. It does not copy them,
// because most events of a storm are dropped.
func cutEvent(b []byte) (path, token []byte, ok bool) {
	path, b, ok = bytes.Cut(b, []byte{0})
	if !ok {
		return nil, nil, false
	}
	token, _, ok = bytes.Cut(b, []byte{0})
	return path, token, ok
}

// post queues an event, unless one that covers it is pending.
func (w *Watch) post(path []byte) {
	pending := len(w.ch)
	for i := 1; i <= pending; i++ {
		e := &w.sent[(w.sends-i+len(w.sent))%len(w.sent)]
		if e.Overflow || e.Path == string(path) {
			return
		}
	}
	e := Event{Overflow: true}
	if pending < cap(w.ch)-1 {
		e = Event{Path: string(path)}
	}
	w.ch <- e
	w.sent[w.sends] = e
	w.sends = (w.sends + 1) % len(w.sent)
}
