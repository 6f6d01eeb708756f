// SPDX-License-Identifier: Apache-2.0

// Package loglimit keeps whoever makes a logger speak from filling the log: a
// zap core that passes so many lines per second and says how many it left out.
//
// It knows log lines. It must not know what they are about.
package loglimit

import (
	"sync"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// Wrap limits a logger, and those derived from it together, to burst lines at
// once and perSecond lines per second. Lines of level debug and lower do not
// count and are not limited, since they are only written when asked for.
func Wrap(l *zap.Logger, burst, perSecond int) *zap.Logger {
	return wrap(l, burst, perSecond, time.Now)
}

func wrap(l *zap.Logger, burst, perSecond int, now func() time.Time) *zap.Logger {
	b := &bucket{tokens: float64(burst), burst: float64(burst), rate: float64(perSecond), now: now}
	return l.WithOptions(zap.WrapCore(func(c zapcore.Core) zapcore.Core { return &core{Core: c, b: b} }))
}

type bucket struct {
	mu      sync.Mutex // guards all below
	tokens  float64
	burst   float64
	rate    float64
	last    time.Time
	skipped int
	now     func() time.Time
}

// take reports whether a line may pass, and how many did not since the last one
// that did.
func (b *bucket) take() (ok bool, skipped int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	if passed := now.Sub(b.last); !b.last.IsZero() && passed > 0 {
		b.tokens = min(b.tokens+passed.Seconds()*b.rate, b.burst)
	}
	b.last = now
	if b.tokens < 1 {
		b.skipped++
		return false, 0
	}
	b.tokens--
	skipped, b.skipped = b.skipped, 0
	return true, skipped
}

type core struct {
	zapcore.Core
	b *bucket
}

func (c *core) With(f []zapcore.Field) zapcore.Core { return &core{c.Core.With(f), c.b} }

func (c *core) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c *core) Write(e zapcore.Entry, f []zapcore.Field) error {
	if e.Level > zapcore.DebugLevel {
		ok, skipped := c.b.take()
		if !ok {
			return nil
		}
		if skipped > 0 {
			f = append(f[:len(f):len(f)], zap.Int("lines_left_out", skipped))
		}
	}
	return c.Core.Write(e, f)
}
