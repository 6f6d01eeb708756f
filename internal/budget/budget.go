// SPDX-License-Identifier: Apache-2.0

// Package budget bounds what one guest can have the host do outside of the data path:
// requests to xenstored, calls into the kernel that may block, messages to the service
// manager, messages on control rings, log lines. A budget belongs to a guest, and all its
// vifs share it, so that no guest has more for having more vifs. A guest that has used
// up a budget waits or loses lines; others notice nothing.
//
// The package knows numbers and times. It does not know what they are spent on.
package budget

import (
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// Turns bounds the blocking calls at a time, and so the threads of the process that may
// be in one.
const Turns = 64

// Work of the vifs of a guest that the guest causes when it writes to xenstore: looks at
// what it has changed. A look costs what it asks of xenstored, and lookPrice at least.
// Whatever else a guest can cause, such as ioctls and netlink requests, comes of a look:
// one that connects eight queues costs about a hundred, so there are two of those per
// second.
const (
	WorkRate  = 250 // requests to xenstored per second
	WorkBurst = 3000
	lookPrice = 20
)

// Looks at one vif that find nothing new, because the guest has written what was there
// before, or has written something and taken it back.
const (
	IdleRate  = 4 // per second
	IdleBurst = 8
)

// Idle makes the budget of one vif for looks that find nothing new.
func Idle() *rate.Limiter { return rate.NewLimiter(IdleRate, IdleBurst) }

// Messages to the service manager: each queue of a TAP that comes is one, and each that
// goes.
const (
	ManagerRate  = 4 // per second
	ManagerBurst = 64

	// ManagerPause delays a message of a guest that has no budget left.
	ManagerPause = time.Second / ManagerRate
)

// Messages on control rings. One may be as expensive as mapping eight pages; larger ones
// count more than once.
const (
	controlRate  = 1000 // per second
	controlBurst = 1024
)

// Lines that all vifs of a guest write into the log.
const (
	logRate  = 10 // per second
	logBurst = 64
)

// Host holds the turns that all guests share.
type Host struct{ turns turns }

// NewHost makes a Host of so many turns.
func NewHost(n int) *Host {
	return &Host{turns: turns{free: n, most: max(n/2, 1)}}
}

// Guest is the budgets of one guest. It is safe for concurrent use.
type Guest struct {
	host  *Host
	share share // guarded by host.turns.mu

	work    *rate.Limiter
	Manager *rate.Limiter // a token is a message to the service manager
	Control *rate.Limiter // a token is a message on a control ring
	Log     *rate.Limiter // a token is a line

	requests, calls, blocked, delayed, messages, control, cut atomic.Uint64
}

// Guest makes the budgets of a guest.
func (h *Host) Guest() *Guest {
	return &Guest{
		host:    h,
		work:    rate.NewLimiter(WorkRate, WorkBurst),
		Manager: rate.NewLimiter(ManagerRate, ManagerBurst),
		Control: rate.NewLimiter(controlRate, controlBurst),
		Log:     rate.NewLimiter(logRate, logBurst),
	}
}

// Used counts what a guest has used so far.
type Used struct {
	Requests uint64 `json:"xenstore_requests"` // to xenstored
	Calls    uint64 `json:"host_calls"`        // turns of blocking calls: netlink, ioctls, files
	Blocked  uint64 `json:"host_call_ms"`      // that they took
	Delayed  uint64 `json:"looks_delayed"`     // looks at what the guest wrote that waited for its budget
	Messages uint64 `json:"manager_messages"`  // to the service manager
	Control  uint64 `json:"control_messages"`  // on control rings
	Cut      uint64 `json:"log_lines_cut"`     // that were not written
}

// Used returns what the guest has used so far.
func (g *Guest) Used() Used {
	return Used{
		Requests: g.requests.Load(), Calls: g.calls.Load(), Blocked: g.blocked.Load() / 1e6,
		Delayed: g.delayed.Load(), Messages: g.messages.Load(), Control: g.control.Load(), Cut: g.cut.Load(),
	}
}

// Requested counts n requests to xenstored.
func (g *Guest) Requested(n int) { g.requests.Add(uint64(n)) }

// Messaged counts a message to the service manager.
func (g *Guest) Messaged() { g.messages.Add(1) }

// Commanded counts a message on a control ring.
func (g *Guest) Commanded() { g.control.Add(1) }

// LineCut counts a log line that was not written.
func (g *Guest) LineCut() { g.cut.Add(1) }

func (g *Guest) busy(d time.Duration) {
	g.calls.Add(1)
	g.blocked.Add(uint64(d))
}

// Look pays for a look at what the guest has written, and returns how long to wait
// for it: until the time given, at least.
func (g *Guest) Look(now, until time.Time) time.Duration {
	d := max(g.work.ReserveN(now, lookPrice).DelayFrom(now), until.Sub(now), 0)
	if d > 0 {
		g.delayed.Add(1)
	}
	return d
}

// Looked pays for what a look that was paid for has cost more than that.
func (g *Guest) Looked(now time.Time, requests int) {
	if n := requests - lookPrice; n > 0 {
		g.work.ReserveN(now, min(n, WorkBurst))
	}
}
