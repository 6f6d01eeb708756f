// SPDX-License-Identifier: Apache-2.0

package blkplane

import (
	"fmt"
	"time"
)

const (
	outlastMin = time.Millisecond
	outlastMax = time.Second
)

// outlast waits until the operations under way have ended, after the wait of the engine has
// failed. Threads report the ends of theirs all the same, and the kernel does if a later
// wait succeeds. Until then the buffers, the pages of the guest, the disk and its lock are
// in use, so the queue keeps them: for good if an operation's end cannot be learned.
func (q *queue) outlast() {
	for pause := outlastMin; ; pause = min(2*pause, outlastMax) {
		q.complete()
		n := q.engine.UnderWay()
		if n == 0 {
			return
		}
		if pause == outlastMin {
			q.conn.pool.opts.Warn(fmt.Errorf("queue %d of domain %d keeps its memory and its disk: its engine has failed, and %d operations have not ended", q.index, q.conn.cfg.Domid, n))
		}
		time.Sleep(pause)
		_ = q.engine.SubmitAndWait(0, 0) // completions may be there also after an error
	}
}
