// SPDX-License-Identifier: Apache-2.0

// Package budget bounds the work outside the data path that one guest can cause on the
// host: requests to xenstored, calls into the kernel that may block, messages to the
// service manager, messages on control rings, log lines. A budget belongs to a guest. All
// its vifs share it, so that more vifs do not get more. A guest that has used up a budget
// waits or loses lines; other guests are not affected.
//
// The package counts numbers and times. Its callers do the work.
package budget

import (
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// Turns is the largest number of concurrent blocking calls, and so of the process's
// threads in such calls.
const Turns = 64

// The budget for looks. A look reads the nodes of a vif after the guest has written to
// xenstore. It costs its number of requests to xenstored, and lookPrice at least. All
// other work that a guest can cause, such as ioctls and netlink requests, follows from a
// look. A look that connects eight queues costs about 100, so a guest gets two of these
// per second.
const (
	WorkRate  = 250 // requests to xenstored per second
	WorkBurst = 3000
	lookPrice = 20
)

// The budget of one vif for looks that find no change, because the guest has written the
// value that a node already had, or has written a value and the old one again.
const (
	IdleRate  = 4 // per second
	IdleBurst = 8
)

// Idle makes the budget of one vif for looks that find no change.
func Idle() *rate.Limiter { return rate.NewLimiter(IdleRate, IdleBurst) }

// The budget for messages to the service manager: one for each TAP queue that is opened or
// closed.
const (
	ManagerRate  = 4 // per second
	ManagerBurst = 64

	// ManagerPause delays a message of a guest that has no budget left.
	ManagerPause = time.Second / ManagerRate
)

// The budget for messages on control rings. A message may cost as much as the mapping of
// eight pages; a larger one counts several times.
const (
	controlRate  = 1000 // per second
	controlBurst = 1024
)

// The budget for log lines of all vifs of a guest.
const (
	logRate  = 10 // per second
	logBurst = 64
)

// Host holds the turns that all guests share.
type Host struct{ turns turns }

// NewHost makes a Host with n turns.
func NewHost(n int) *Host {
	return &Host{turns: turns{free: n, most: max(n/2, 1)}}
}

// Guest holds the budgets of one guest. It is safe for concurrent use.
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

// Used counts a guest's use of its budgets so far.
type Used struct {
	Requests uint64 `json:"xenstore_requests"` // to xenstored
	Calls    uint64 `json:"host_calls"`        // turns of blocking calls: netlink, ioctls, files
	Blocked  uint64 `json:"host_call_ms"`      // duration of these calls in ms
	Delayed  uint64 `json:"looks_delayed"`     // looks that waited for the budget
	Messages uint64 `json:"manager_messages"`  // to the service manager
	Control  uint64 `json:"control_messages"`  // on control rings
	Cut      uint64 `json:"log_lines_cut"`     // log lines that were not written
}

// Used returns the guest's use of its budgets so far.
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

// CommandedTimes counts n messages on a control ring.
func (g *Guest) CommandedTimes(n uint64) { g.control.Add(n) }

// LineCut counts a log line that was not written.
func (g *Guest) LineCut() { g.cut.Add(1) }

func (g *Guest) busy(d time.Duration) {
	g.calls.Add(1)
	g.blocked.Add(uint64(d))
}

// Look charges lookPrice for a look, and returns the time to wait before it: at least
// until the given time.
func (g *Guest) Look(now, until time.Time) time.Duration {
	d := max(g.work.ReserveN(now, lookPrice).DelayFrom(now), until.Sub(now), 0)
	if d > 0 {
		g.delayed.Add(1)
	}
	return d
}

// Looked charges the cost of a look above lookPrice, after the look.
func (g *Guest) Looked(now time.Time, requests int) {
	if n := requests - lookPrice; n > 0 {
		g.work.ReserveN(now, min(n, WorkBurst))
	}
}
