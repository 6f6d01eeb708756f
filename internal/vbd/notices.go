// SPDX-License-Identifier: Apache-2.0

package vbd

import (
	"context"
	"fmt"
	"sync"

	"go.uber.org/zap"

	"github.com/netbackd/netbackd/internal/blkplane"
)

// notices collects the data path's notices of one connection: the last of each kind. So they
// take no more memory while the vbd is busy.
type notices struct {
	mu     sync.Mutex // guards all below
	breach error      // the first breach of the ring protocol
	bad    *blkplane.Notice
	failed *blkplane.Notice
	held   *blkplane.Notice
	died   error // the process of the connection has ended
}

func (n *notices) add(x blkplane.Notice) {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch x.Kind {
	case blkplane.Broken:
		if n.breach == nil {
			n.breach = fmt.Errorf("queue %d: %w", x.Queue, x.Err)
		}
	case blkplane.BadRequest:
		n.bad = &x
	case blkplane.DiskError:
		n.failed = &x
	case blkplane.Held:
		n.held = &x
	}
}

// die notes that the process of the connection has ended.
func (n *notices) die(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.died = err
}

// death returns the reason for which the process of the connection has ended, nil if it runs.
func (n *notices) death() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.died
}

// take returns the notices that were not taken yet, and the breach.
func (n *notices) take() (bad, failed, held *blkplane.Notice, breach error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	bad, failed, held = n.bad, n.failed, n.held
	n.bad, n.failed, n.held = nil, nil, nil
	return bad, failed, held, n.breach
}

// handleNotices acts on the notices of the present connection, and on the end of the one
// before.
func (v *Vbd) handleNotices(ctx context.Context) {
	v.checkDied()
	v.checkEnded()
	c := v.conn.now
	if c == nil {
		return
	}
	bad, failed, held, breach := c.notices.take()
	if bad != nil {
		v.log.Warn("bad request refused", zap.Int("queue", bad.Queue), zap.Stringer("reason", bad.Reason), zap.Error(bad.Err))
	}
	if failed != nil {
		c.diskError = failed.Err.Error()
		v.log.Error("disk failed a request", zap.Int("queue", failed.Queue), zap.Stringer("reason", failed.Reason), zap.Error(failed.Err))
	}
	if held != nil {
		v.log.Error("queue held up; other queues go on", zap.Int("queue", held.Queue), zap.Error(held.Err))
	}
	if breach != nil {
		v.quarantine(ctx, breach)
	}
}
