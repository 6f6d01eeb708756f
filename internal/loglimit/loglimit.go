// SPDX-License-Identifier: Apache-2.0

// Package loglimit rate-limits a zap logger, so that a guest cannot fill the log. The first
// line after dropped lines has their number.
//
// It knows log lines. It must not know their content.
package loglimit

import (
	"slices"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/time/rate"
)

// Wrap limits a logger, and those derived from it, to the rate of lines, which other
// loggers may share. It calls cut, which may be nil, for each line that it drops. Lines of
// level debug are neither counted nor limited, since they are written only on request.
func Wrap(l *zap.Logger, lines *rate.Limiter, cut func()) *zap.Logger {
	return wrap(l, lines, cut, time.Now)
}

func wrap(l *zap.Logger, lines *rate.Limiter, cut func(), now func() time.Time) *zap.Logger {
	b := &bucket{lines: lines, cut: cut, now: now}
	return l.WithOptions(zap.WrapCore(func(c zapcore.Core) zapcore.Core { return &core{Core: c, b: b} }))
}

type bucket struct {
	lines   *rate.Limiter
	cut     func()
	skipped atomic.Int64 // lines dropped since the last line that passed
	now     func() time.Time
}

// take reports whether a line may pass, and then returns the number of lines dropped since
// the last one that passed.
func (b *bucket) take() (ok bool, skipped int) {
	if !b.lines.AllowN(b.now(), 1) {
		b.skipped.Add(1)
		if b.cut != nil {
			b.cut()
		}
		return false, 0
	}
	return true, int(b.skipped.Swap(0))
}

// core keeps its fields as they are and passes them on with each line. The wrapped core
// would encode them at once, into a buffer of a kilobyte for each logger.
type core struct {
	zapcore.Core
	b      *bucket
	fields []zapcore.Field
}

func (c *core) With(f []zapcore.Field) zapcore.Core {
	return &core{c.Core, c.b, slices.Concat(c.fields, f)}
}

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
	if len(c.fields) > 0 {
		f = slices.Concat(c.fields, f)
	}
	return c.Core.Write(e, f)
}
