// SPDX-License-Identifier: Apache-2.0

package store

import (
	"math"
	"time"
)

// The write rate limit of xenstored ("wrl"). While a transaction is open, every write of
// an unprivileged domain costs credit, and the store does not read from a domain without
// credit until it has earned some. Credit is distributed evenly among the introduced
// domains over time. The unused credit of a domain goes, up to a bound, to a common
// reserve, which others use before they have to wait.
//
// Amounts are thousandths of a write.
const (
	writeCost    = 1000
	domainBurst  = 10 * writeCost     // a domain's credit
	reserveBurst = 1000 * writeCost   // the reserve's credit
	reserveDebt  = 5 * domainBurst    // how far new domains may draw the reserve below zero
	maxCredit    = 1000 * 1000 * 1000 // no sum of these overflows 32 bits
)

// limiter is the part of the rate limit that all domains share.
type limiter struct {
	rate    int                 // thousandths of a write per second, over all domains; 0: no limit
	members map[*allowance]bool // of the introduced domains
	reserve int
}

// allowance is a domain's part.
type allowance struct {
	credit int
	at     time.Time // credit is right for this time
}

func newLimiter(writesPerSecond int) limiter {
	l := limiter{members: map[*allowance]bool{}}
	if writesPerSecond <= math.MaxInt32/writeCost {
		l.rate = writesPerSecond * writeCost
	}
	return l
}

// move shifts as much as keeps from above floor and to below ceiling.
func move(from *int, floor int, to *int, ceiling int) {
	if n := min(*from-floor, ceiling-*to); n > 0 {
		*from -= n
		*to += n
	}
}

func (l *limiter) join(a *allowance, now time.Time) {
	*a = allowance{at: now}
	l.members[a] = true
	move(&l.reserve, -reserveDebt, &a.credit, domainBurst)
}

func (l *limiter) leave(a *allowance) {
	delete(l.members, a)
	move(&a.credit, 0, &l.reserve, domainBurst)
}

// refresh gives a the credit of the time that has passed. If a is still below zero, it
// lends the difference from the reserve; the credit above a's burst goes to the reserve.
func (l *limiter) refresh(a *allowance, now time.Time) {
	ms := min(max(now.Sub(a.at).Milliseconds(), 0), 1000*1000*1000)
	// Credit is given for whole milliseconds, so the clock advances by these.
	a.at = a.at.Add(time.Duration(ms) * time.Millisecond)
	a.credit = min(a.credit+int(ms)*l.rate/(len(l.members)*1000), maxCredit)

	move(&l.reserve, 0, &a.credit, 0)
	surplus := 0
	move(&a.credit, domainBurst, &surplus, maxCredit)
	move(&surplus, 0, &l.reserve, reserveBurst)
}

// spend takes the price of one write.
func (l *limiter) spend(a *allowance, now time.Time) {
	if l.rate == 0 {
		return
	}
	l.refresh(a, now)
	a.credit -= writeCost
}

// wait returns the time until a may write again, 0 if it may now. Unused credit of the
// others may shorten it.
func (l *limiter) wait(a *allowance, now time.Time) time.Duration {
	if l.rate == 0 || a.credit >= 0 {
		return 0
	}
	for other := range l.members {
		if other != a {
			l.refresh(other, now)
		}
	}
	if l.refresh(a, now); a.credit >= 0 {
		return 0
	}
	ms := (-a.credit*1000*len(l.members) + l.rate - 1) / l.rate
	return time.Duration(ms) * time.Millisecond
}
