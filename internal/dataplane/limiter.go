// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// minBurst is the minimum capacity of a bucket in bytes. A packet waits until the bucket
// has enough for all of it, so the capacity must allow the largest packet. xen-netback
// has the same minimum (tx_add_credit).
const minBurst = 131072

// Limiter is the token bucket of one vif's traffic from guest to host. All
// queues of the vif share it, so the rate of the vif does not depend on their
// number. A token is a byte on the wire. The headers that segments repeat are known
// only when their packet has been sent, so they may leave the bucket in debt, which is
// paid before the next packet. Tokens that come in while queues wait are split evenly
// among these. A nil Limiter does not limit.
type Limiter struct {
	limited atomic.Bool // there is a rate

	mu      sync.Mutex // taken twice per pass, never per packet
	rate    float64    // bytes per nanosecond; 0 means unlimited
	burst   float64
	tokens  float64
	last    time.Time
	waiting []*share
}

// share is one queue's part of a Limiter, whose lock guards it.
type share struct {
	tokens  float64
	waiting bool // changed by the queue's worker alone
}

// Set sets the limit to bytes per interval, the two values of the xenstore key "rate",
// and fills the bucket. 0 bytes remove the limit.
func (l *Limiter) Set(bytes uint64, interval time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.waiting {
		s.tokens = 0
	}
	l.rate = 0
	l.limited.Store(false)
	if bytes == 0 || interval <= 0 {
		return
	}
	l.rate = float64(bytes) / float64(interval)
	l.burst = max(float64(bytes), minBurst)
	l.tokens = l.burst
	l.last = time.Time{}
	l.limited.Store(true)
}

// limits reports whether there is a rate. If not, take and settle need no time.
func (l *Limiter) limits() bool { return l != nil && l.limited.Load() }

// unlimited is the result of take without a limit: more bytes than all packets in a
// ring have.
const unlimited = 1 << 30

// take draws up to want bytes for the queue with share s, and returns how many it got.
// It is followed by settle.
func (l *Limiter) take(now time.Time, s *share, want uint32) uint32 {
	if l == nil {
		return unlimited
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rate == 0 {
		return unlimited
	}
	l.fill(now)
	got := uint32(max(0, min(s.tokens+l.tokens, float64(want))))
	own := min(s.tokens, float64(got))
	s.tokens -= own
	l.tokens -= float64(got) - own
	return got
}

// settle gives back the unused bytes of a take; a negative number charges bytes that were
// used in addition. If next is not 0, the queue has a packet of next bytes for which take
// did not return enough. It waits from then on, and settle returns the expected wait.
func (l *Limiter) settle(now time.Time, s *share, unused int64, next uint32) time.Duration {
	if l == nil {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rate == 0 {
		l.leave(s)
		return 0
	}
	l.fill(now)
	if next == 0 {
		l.tokens = min(l.tokens+float64(unused), l.burst)
		l.leave(s)
		return 0
	}
	s.tokens += float64(unused)
	if !s.waiting {
		s.waiting = true
		l.waiting = append(l.waiting, s)
	}
	missing := float64(next) - s.tokens - l.tokens
	if missing <= 0 {
		return 0
	}
	return time.Duration(min(missing/l.rate*float64(len(l.waiting)), math.MaxInt64/2)) + 1
}

// release ends the wait of a queue. The bytes that came in for it go to the vif.
func (l *Limiter) release(s *share) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.leave(s)
}

// leave is release with mu held.
func (l *Limiter) leave(s *share) {
	if !s.waiting {
		return
	}
	s.waiting = false
	l.tokens = min(l.tokens+s.tokens, l.burst)
	s.tokens = 0
	l.waiting = slices.DeleteFunc(l.waiting, func(o *share) bool { return o == s })
}

// fill adds the bytes that came in since the last call. Preconditions: mu held.
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
	gain := min(float64(d)*l.rate, l.burst)
	for _, s := range l.waiting {
		s.tokens = min(s.tokens+gain/float64(len(l.waiting)), l.burst)
	}
	if len(l.waiting) == 0 {
		l.tokens = min(l.tokens+gain, l.burst)
	}
}
