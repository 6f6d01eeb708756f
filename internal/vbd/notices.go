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
	}
}

// take returns the notices that were not taken yet, and the breach.
func (n *notices) take() (bad, failed *blkplane.Notice, breach error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	bad, failed = n.bad, n.failed
	n.bad, n.failed = nil, nil
	return bad, failed, n.breach
}

// handleNotices acts on the notices of the present connection, and on the end of the one
// before.
func (v *Vbd) handleNotices(ctx context.Context) {
	v.checkEnded()
	c := v.conn.now
	if c == nil {
		return
	}
	bad, failed, breach := c.notices.take()
	if bad != nil {
		v.log.Warn("bad request refused", zap.Int("queue", bad.Queue), zap.Stringer("reason", bad.Reason), zap.Error(bad.Err))
	}
	if failed != nil {
		c.diskError = failed.Err.Error()
		v.log.Error("disk failed a request", zap.Int("queue", failed.Queue), zap.Stringer("reason", failed.Reason), zap.Error(failed.Err))
	}
	if breach != nil {
		v.quarantine(ctx, breach)
	}
}
