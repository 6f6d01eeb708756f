// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"context"
	"time"

	"go.uber.org/zap"

	"github.com/netbackd/netbackd/internal/netengine"
)

// processPoll is the time between two attempts to connect while no packet process runs.
const processPoll = 100 * time.Millisecond

// resume continues with another packet process after that of the connection has ended. It
// leaves what a daemon that was killed leaves to its successor: rings with stamps, journals,
// the record of the control ring, and packets in the TAP's queues. The TAP keeps its carrier,
// and xenstore its state.
func (v *Vif) resume(cause error) {
	c := v.conn
	v.log.Warn("packet process died, connecting again", zap.Error(cause))
	v.conn, v.resuming, v.busySince = nil, true, time.Time{}
	v.closeLink(netengine.Leave)
	v.predecessor.Connection, v.predecessor.Stalled = c.Stamp, nil
	for i, stalled := range c.stalled {
		if stalled {
			v.predecessor.Stalled = append(v.predecessor.Stalled, i)
		}
	}
	v.Poke()
}

// awaitProcess makes the vif try again while no packet process runs, and shows the reason if
// that lasts.
func (v *Vif) awaitProcess(ctx context.Context, err error) error {
	if v.noProcess.IsZero() {
		v.noProcess = time.Now()
	}
	if time.Since(v.noProcess) > busyFor {
		v.reportError(ctx, "no packet process", err)
	}
	v.alarm.In(processPoll)
	return errWait
}
