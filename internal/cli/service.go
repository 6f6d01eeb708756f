// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/netbackd/netbackd/internal/backend"
	"github.com/netbackd/netbackd/internal/sdnotify"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// controlPatience is how long the control loop may take to answer before the
// watchdog is not fed any more: while it waits for xenstored packets move, and a
// new process would wait as well.
const controlPatience = xenstore.DefaultTimeout + 30*time.Second

// barrierTime bounds the wait, at the end, for the service manager.
const barrierTime = time.Second

// service is the daemon as its service manager sees it. It is of no effect without
// one.
type service struct {
	notify *sdnotify.Notifier
	log    *zap.Logger

	workers func(context.Context) error // waits for an answer of each
	control func(context.Context) error // of the control loop
	vifs    func() int

	heard time.Time // when the control loop answered last
	said  string    // the status the manager knows
	fails string    // why it could not be told something; empty: it could
}

// keeper is the manager as the keeper of TAP queues, nil if there is none.
func keeper(n *sdnotify.Notifier) backend.Keeper {
	if n == nil {
		return nil
	}
	return n
}

// check logs what could not be said to the manager, once for each reason. It reports
// whether it could be said.
func (s *service) check(err error) bool {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != "" && text != s.fails {
		s.log.Warn("service manager", zap.Error(err))
	}
	s.fails = text
	return err == nil
}

// readyAgain separates the attempts to tell the manager that the daemon serves, until it
// takes that.
const readyAgain = time.Second

// serve says that the daemon serves, and feeds the watchdog until ctx ends. It has a
// goroutine of its own: the manager may be busy.
func (s *service) serve(ctx context.Context) {
	for s.status(); !s.check(s.notify.Ready()); {
		select {
		case <-ctx.Done():
			return
		case <-time.After(readyAgain):
		}
	}
	s.watch(ctx)
}

// stopped says that the daemon serves no more, and sees to it that the manager has
// taken note of all it was told. It takes three seconds at most.
func (s *service) stopped() {
	if !s.check(s.notify.Stopping()) {
		return // nor would it take note
	}
	ctx, cancel := context.WithTimeout(context.Background(), barrierTime)
	defer cancel()
	s.check(s.notify.Barrier(ctx))
}

// status says how many vifs there are, whoever serves them.
func (s *service) status() {
	text := fmt.Sprintf("%d vifs", s.vifs())
	if n := s.vifs(); n == 1 {
		text = "1 vif"
	}
	if text != s.said {
		s.said = text
		s.check(s.notify.Status(text))
	}
}

// watch feeds the watchdog until ctx ends, as long as the daemon is alive: three
// times in the time allowed, so that one answer that is late does no harm.
func (s *service) watch(ctx context.Context) {
	period := s.notify.Watchdog() / 3
	if period == 0 {
		return
	}
	t := time.NewTicker(period)
	defer t.Stop()
	s.heard = time.Now()
	for {
		if err := s.alive(ctx, period); err == nil {
			s.check(s.notify.Alive())
			s.status()
		} else if ctx.Err() == nil {
			s.log.Error("not alive; leaving the rest to the watchdog", zap.Error(err))
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// alive asks all there is for an answer.
func (s *service) alive(ctx context.Context, within time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	if err := s.workers(ctx); err != nil {
		return err
	}
	err := s.control(ctx)
	now := time.Now()
	if err == nil {
		s.heard = now
		return nil
	}
	if away := now.Sub(s.heard); away > controlPatience {
		return fmt.Errorf("the control loop has not answered for %v: %w", away.Round(time.Second), err)
	}
	return nil
}
