// SPDX-License-Identifier: Apache-2.0

package blklab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/blkplane"
)

// KillEnv is the environment variable that names the step at which the process that serves disks
// kills itself, and which time it does: rsp:3 is the third response that its queues record. With
// rsp:3:file only the process does that makes the file.
const KillEnv = "BLKBACKD_LAB_KILL"

// AtStep returns what `blkbackd run` has for blkplane.Options.AtStep: nil, or a function
// that kills the process at the step that the environment names.
func AtStep() (func(step string), error) { return killer(os.Getenv(KillEnv)) }

// killer returns the function that kills the process as value says; nil if it is empty, or if
// another process has made the file.
func killer(value string) (func(step string), error) {
	if value == "" {
		return nil, nil
	}
	name, rest, _ := strings.Cut(value, ":")
	number, file, once := strings.Cut(rest, ":")
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n < 1 || !slices.Contains(blkplane.Steps(), name) {
		return nil, fmt.Errorf("%s=%s: want one of %v, a colon and a number from 1 on", KillEnv, value, blkplane.Steps())
	}
	if once {
		f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL, 0o600)
		if errors.Is(err, os.ErrExist) {
			return nil, nil
		}
		if err = errors.Join(err, f.Close()); err != nil {
			return nil, err
		}
	}
	var reached atomic.Int64
	return func(step string) {
		if step != name || reached.Add(1) != n {
			return
		}
		_, _ = os.Stderr.WriteString("\n" + killedAt(name, int(n)) + "\n")
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		select {} // the signal comes before this ends
	}, nil
}

// killedAt returns the line that a process logs before it kills itself. Other threads may still
// log after it.
func killedAt(step string, n int) string {
	return fmt.Sprintf("killed at step %s, time %d", step, n)
}

// Isolated reports whether disk processes serve the disks.
func (l *Lab) Isolated() bool {
	return os.Getenv(IsolateEnv) != "" || slices.ContainsFunc(l.opts.Daemon, func(a string) bool { return strings.HasPrefix(a, "--isolate") })
}

// KillAt returns the environment variable for StartDaemon that makes the process which serves
// disks kill itself at a step of its queues, when they reach it for the n-th time. See
// blkplane.Steps. Of disk processes the first one does, and others continue.
func (l *Lab) KillAt(step string, n int) string {
	value := fmt.Sprintf("%s=%s:%d", KillEnv, step, n)
	if l.Isolated() {
		l.deaths++
		value += fmt.Sprintf(":%s/death%d", l.opts.Dir, l.deaths)
	}
	return value
}

// DieAt starts blkbackd with KillAt and waits until the process that serves disks has killed
// itself, which may be before blkbackd is ready. Then blkbackd does not run. The error is as of
// AwaitDeath.
func (l *Lab) DieAt(ctx context.Context, step string, n int) error {
	if err := l.launch(ctx, "", l.KillAt(step, n)); err != nil {
		return err
	}
	if err := l.AwaitDeath(ctx, step, n); err != nil {
		return err
	}
	l.daemon.Kill()
	return nil
}

// AwaitDeath waits until the process that serves disks has killed itself, as blkbackd was told by
// KillAt. A disk process that dies does not end blkbackd. The error is that of a daemon that ended
// otherwise, or of ctx.
func (l *Lab) AwaitDeath(ctx context.Context, step string, n int) error {
	if l.Isolated() {
		return l.daemon.WaitLog(ctx, killedAt(step, n))
	}
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
