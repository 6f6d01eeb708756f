// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"sync"
	"time"
)

// minBurst is the least a bucket holds. A packet waits until the bucket holds
// all of it, so the bucket must hold the largest; xen-netback's floor is the
// same (tx_add_credit).
const minBurst = 131072

// Limiter is the token bucket of one vif's traffic from guest to host. All
// queues of the vif share it, so the rate of the vif does not depend on their
// number. A nil Limiter does not limit.
type Limiter struct {
	mu     sync.Mutex // taken once per pass, never per packet
	rate   float64    // octets per nanosecond; 0 means unlimited
	burst  float64
	tokens float64
	last   time.Time
}

// Set makes the limit bytes per interval, as the xenstore key "rate" says it,
// and fills the bucket. Bytes of 0 take the limit away.
func (l *Limiter) Set(bytes uint64, interval time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rate = 0
	if bytes == 0 || interval <= 0 {
		return
	}
	l.rate = float64(bytes) / float64(interval)
	l.burst = max(float64(bytes), minBurst)
	l.tokens = l.burst
	l.last = time.Time{}
}

// unlimited is what take gives when there is no limit: more than a ring can ask
// for.
const unlimited = 1 << 30

// take draws up to want octets from the bucket. What is not used is given back.
func (l *Limiter) take(now time.Time, want uint32) uint32 {
	if l == nil {
		return unlimited
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rate == 0 {
		return unlimited
	}
	l.fill(now)
	got := min(l.tokens, float64(want))
	if got < 0 {
		got = 0
	}
	l.tokens -= float64(uint32(got))
	return uint32(got)
}

func (l *Limiter) giveBack(n uint32) {
	if l == nil || n == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tokens = min(l.tokens+float64(n), l.burst)
}

// wait is how long the bucket needs to hold n octets.
func (l *Limiter) wait(now time.Time, n uint32) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rate == 0 {
		return 0
	}
	l.fill(now)
	missing := float64(n) - l.tokens
	if missing <= 0 {
		return 0
	}
	return time.Duration(missing/l.rate) + 1
}

// fill adds what the time since the last call is worth. Preconditions: mu held.
func (l *Limiter) fill(now time.Time) {
	if l.last.IsZero() {
		l.last = now
		return
	}
	d := now.Sub(l.last)
	if d <= 0 {
		return
	}
	l.last = now
	l.tokens = min(l.tokens+float64(d)*l.rate, l.burst)
}
