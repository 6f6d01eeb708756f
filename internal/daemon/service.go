// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/netbackd/netbackd/internal/sdnotify"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// controlTimeout is the silence of the control loop after which the watchdog is not fed any
// more. While the loop waits for xenstored, packets move, and a new process would have to
// wait as well.
const controlTimeout = xenstore.DefaultTimeout + 30*time.Second

// barrierTime bounds the wait for the service manager at the end.
const barrierTime = time.Second

// service reports to the service manager. Without one it does nothing.
type service struct {
	notify *sdnotify.Notifier
	log    *zap.Logger

	workers func(context.Context) error // waits until every worker has answered
	control func(context.Context) error // waits until the control loop has answered
	text    func() string               // the status to report

	answered time.Time // time of the control loop's last answer
	reported string    // last status that was sent
	failure  string    // error of the last message; empty: it was sent
}

// check logs the failure of a message to the manager, once for each error. It reports
// whether the message was sent.
func (s *service) check(err error) bool {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != "" && text != s.failure {
		s.log.Warn("message to the service manager failed", zap.Error(err))
	}
	s.failure = text
	return err == nil
}

// readyInterval separates the attempts to report that the daemon is ready.
const readyInterval = time.Second

// serve reports that the daemon is ready, and feeds the watchdog until ctx ends. It has its
// own goroutine, because the manager may be busy.
func (s *service) serve(ctx context.Context) {
	for s.status(); !s.check(s.notify.Ready()); {
		select {
		case <-ctx.Done():
			return
		case <-time.After(readyInterval):
		}
	}
	s.watch(ctx)
}

// stopped reports that the daemon ends, and waits until the manager has received all
// messages, for at most three seconds.
func (s *service) stopped() {
	if !s.check(s.notify.Stopping()) {
		return // the barrier would fail as well
	}
	ctx, cancel := context.WithTimeout(context.Background(), barrierTime)
	defer cancel()
	s.check(s.notify.Barrier(ctx))
}

// status sends the status, if it has changed.
func (s *service) status() {
	if text := s.text(); text != s.reported {
		s.reported = text
		s.check(s.notify.Status(text))
	}
}

// watch feeds the watchdog until ctx ends, as long as the daemon is alive. It does so three
// times per period, so that one late answer does no harm.
func (s *service) watch(ctx context.Context) {
	period := s.notify.Watchdog() / 3
	if period == 0 {
		return
	}
	t := time.NewTicker(period)
	defer t.Stop()
	s.answered = time.Now()
	for {
		if err := s.alive(ctx, period); err == nil {
			s.check(s.notify.Alive())
			s.status()
		} else if ctx.Err() == nil {
			s.log.Error("not alive; the watchdog is not fed", zap.Error(err))
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// alive waits for an answer of the workers and the control loop.
func (s *service) alive(ctx context.Context, within time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	if err := s.workers(ctx); err != nil {
		return err
	}
	err := s.control(ctx)
	now := time.Now()
	if err == nil {
		s.answered = now
		return nil
	}
	if silent := now.Sub(s.answered); silent > controlTimeout {
		return fmt.Errorf("the control loop has not answered for %v: %w", silent.Round(time.Second), err)
	}
	return nil
}
