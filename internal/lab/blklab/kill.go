// SPDX-License-Identifier: Apache-2.0

package blklab

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/blkplane"
)

// killEnv is the environment variable that names the step at which the daemon kills itself,
// and which time it does: rsp:3 is the third response that its queues record.
const killEnv = "BLKBACKD_LAB_KILL"

// AtStep returns what `blkbackd-lab run` has for blkplane.Options.AtStep: nil, or a function
// that kills the process at the step that the environment names.
func AtStep() (func(step string), error) { return killer(os.Getenv(killEnv)) }

// killer returns the function that kills the process as value says; nil if it is empty.
func killer(value string) (func(step string), error) {
	if value == "" {
		return nil, nil
	}
	name, number, _ := strings.Cut(value, ":")
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n < 1 || !slices.Contains(blkplane.Steps(), name) {
		return nil, fmt.Errorf("%s=%s: want one of %v, a colon and a number from 1 on", killEnv, value, blkplane.Steps())
	}
	var reached atomic.Int64
	return func(step string) {
		if step != name || reached.Add(1) != n {
			return
		}
		_, _ = os.Stderr.WriteString(killedAt(name, int(n)))
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		select {} // the signal comes before this ends
	}, nil
}

// killedAt returns the line that a daemon logs before it kills itself. Other threads may still
// log after it.
func killedAt(step string, n int) string {
	return fmt.Sprintf("\nkilled at step %s, time %d\n", step, n)
}

// KillAt returns the environment variable for StartDaemon that makes blkbackd kill itself at
// a step of its queues, when they reach it for the n-th time. See blkplane.Steps.
func KillAt(step string, n int) string { return fmt.Sprintf("%s=%s:%d", killEnv, step, n) }

// DieAt starts blkbackd with KillAt and waits until it has killed itself, which may be before
// it is ready. The error is as of AwaitDeath.
func (l *Lab) DieAt(ctx context.Context, step string, n int) error {
	if err := l.launch(ctx, "", KillAt(step, n)); err != nil {
		return err
	}
	return l.AwaitDeath(ctx, step, n)
}

// AwaitDeath waits until blkbackd, which was started with KillAt, has killed itself. The error
// is that of a daemon that ended otherwise, or of ctx.
func (l *Lab) AwaitDeath(ctx context.Context, step string, n int) error {
	select {
	case <-l.daemon.Done():
	case <-ctx.Done():
		return fmt.Errorf("blkbackd does not die at step %s, time %d: %w\n%s", step, n, ctx.Err(), l.daemon.Log())
	}
	if said := l.daemon.Log(); !strings.Contains(said, killedAt(step, n)) {
		return fmt.Errorf("blkbackd ended, and not at step %s, time %d:\n%s", step, n, said)
	}
	return nil
}
