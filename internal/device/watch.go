// SPDX-License-Identifier: Apache-2.0

package device

import (
	"context"

	"github.com/netbackd/netbackd/pkg/xenstore"
)

// Watch watches one node at most. Its zero value watches none.
type Watch struct {
	w    *xenstore.Watch
	path string
}

// Follow watches path instead of the old path.
func (w *Watch) Follow(ctx context.Context, s *Work, path string) error {
	if w.w != nil && w.path == path {
		return nil
	}
	w.Close(s)
	x, err := s.WatchNode(ctx, path)
	if err != nil {
		return err
	}
	*w = Watch{x, path}
	return nil
}

// Blind reports whether there is no watch, so that changes may have been missed.
func (w *Watch) Blind() bool { return w.w == nil }

// Events returns the channel of events, nil if there is no watch.
func (w *Watch) Events() <-chan xenstore.Event {
	if w.w == nil {
		return nil
	}
	return w.w.C()
}

// Received is called after an event, with ok false if the channel was closed: the watch
// was lost with the connection to xenstore.
func (w *Watch) Received(ok bool) {
	if !ok {
		*w = Watch{}
	}
}

// Close ends the watch.
func (w *Watch) Close(s *Work) {
	if w.w != nil {
		s.count(1)
		w.w.Close()
	}
	*w = Watch{}
}
