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
