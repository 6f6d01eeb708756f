// SPDX-License-Identifier: Apache-2.0

package loglimit

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/time/rate"
)

// limited makes a limited logger. advance moves its clock, which otherwise stands still.
// lines returns the lines that it wrote since the last call.
func limited(burst, perSecond int) (l *zap.Logger, advance func(time.Duration), lines func() []string) {
	now := time.Unix(1000, 0)
	core, logs := observer.New(zapcore.DebugLevel)
	l = wrap(zap.New(core), rate.NewLimiter(rate.Limit(perSecond), burst), nil, func() time.Time { return now })
	return l, func(d time.Duration) { now = now.Add(d) }, func() []string {
		var lines []string
		for _, e := range logs.TakeAll() {
			line := e.Message
			if n, ok := e.ContextMap()["lines_left_out"]; ok {
				line += fmt.Sprintf(" (%d left out)", n)
			}
			lines = append(lines, line)
		}
		return lines
	}
}

func want(t *testing.T, got []string, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("unexpected lines (-want +got):\n%s", diff)
	}
}

func TestBurstAndRate(t *testing.T) {
	l, advance, lines := limited(3, 2)
	for i := range 10 {
		l.Error(fmt.Sprint(i))
	}
	want(t, lines(), "0", "1", "2")
	advance(499 * time.Millisecond)
	l.Error("too early")
	want(t, lines())
	advance(time.Millisecond)
	l.Info("in time")
	want(t, lines(), "in time (8 left out)")
	l.Info("too early")
	want(t, lines())
	// A pause fills the bucket, and no more.
	advance(time.Hour)
	for i := range 10 {
		l.Warn(fmt.Sprint(i))
	}
	want(t, lines(), "0 (1 left out)", "1", "2")
}

// TestLongRun: the number of lines per second is bounded.
func TestLongRun(t *testing.T) {
	l, advance, lines := limited(20, 10)
	n := 0
	for range 100 * 100 { // 100 lines a second for 100 seconds
		l.Error("again")
		advance(10 * time.Millisecond)
		n += len(lines())
	}
	if n < 1000 || n > 1020 {
		t.Errorf("%d lines in 100 s, want 1000 to 1020", n)
	}
}

// TestDerived: a logger made from a limited one shares its limit.
func TestDerived(t *testing.T) {
	l, _, lines := limited(2, 1)
	l.With(zap.Int("queue", 0)).Error("one")
	l.Named("x").Error("two")
	l.With(zap.Int("queue", 1)).Error("three")
	want(t, lines(), "one", "two")
}

// TestShared: the loggers of all vifs of a guest share one limit. Each reports how many
// lines it left out, and all are counted.
func TestShared(t *testing.T) {
	now := time.Unix(1000, 0)
	core, logs := observer.New(zapcore.InfoLevel)
	lines, n := rate.NewLimiter(1, 2), 0
	var vifs []*zap.Logger
	for range 2 {
		vifs = append(vifs, wrap(zap.New(core), lines, func() { n++ }, func() time.Time { return now }))
	}
	for range 3 {
		vifs[0].Error("again")
		vifs[1].Error("again")
	}
	now = now.Add(2 * time.Second)
	vifs[0].Error("once more")
	vifs[1].Error("once more")
	if got := logs.All(); len(got) != 4 || n != 4 || got[2].ContextMap()["lines_left_out"] != int64(2) || got[3].ContextMap()["lines_left_out"] != int64(2) {
		t.Errorf("%d lines, %d cut: %v", len(got), n, got)
	}
}

// TestFieldsStay: a line keeps its fields, and the caller's slice of fields is not
// written to.
func TestFieldsStay(t *testing.T) {
	now := time.Unix(1000, 0)
	core, logs := observer.New(zapcore.InfoLevel)
	l := wrap(zap.New(core), rate.NewLimiter(1, 1), nil, func() time.Time { return now }).With(zap.String("vif", "vif1.0"))
	fields := make([]zap.Field, 1, 4)
	fields[0] = zap.Int("queue", 3)
	l.Error("first", fields...)
	l.Error("left out", fields...)
	now = now.Add(time.Second)
	l.Error("second", fields...)
	if fields[:2][1] != (zap.Field{}) {
		t.Error("wrote behind the caller's fields")
	}
	got := logs.All()
	if len(got) != 2 {
		t.Fatalf("%d lines", len(got))
	}
	if diff := cmp.Diff(map[string]any{"vif": "vif1.0", "queue": int64(3), "lines_left_out": int64(1)}, got[1].ContextMap()); diff != "" {
		t.Errorf("unexpected fields (-want +got):\n%s", diff)
	}
}

// TestDebugIsFree: debug lines are not limited, and do not count against the limit of
// other lines.
func TestDebugIsFree(t *testing.T) {
	l, _, lines := limited(1, 1)
	for range 100 {
		l.Debug("step")
	}
	l.Error("trouble")
	got := lines()
	if len(got) != 101 || !strings.HasPrefix(got[100], "trouble") {
		t.Errorf("%d lines, the last %q", len(got), got[len(got)-1])
	}

	core, logs := observer.New(zapcore.InfoLevel)
	Wrap(zap.New(core), rate.NewLimiter(1, 1), nil).Debug("step")
	if n := logs.Len(); n != 0 {
		t.Errorf("%d lines below the level", n)
	}
}

// TestClockGoesBack: a clock that goes back takes no lines from the bucket.
func TestClockGoesBack(t *testing.T) {
	l, advance, lines := limited(3, 1)
	l.Error("one")
	advance(-time.Hour)
	l.Error("two")
	l.Error("three")
	want(t, lines(), "one", "two", "three")
	advance(time.Second)
	l.Error("four")
	want(t, lines(), "four")
}

func TestConcurrent(t *testing.T) {
	l, _, lines := limited(50, 1)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				l.Error("x")
			}
		})
	}
	wg.Wait()
	if n := len(lines()); n != 50 {
		t.Errorf("%d lines, want 50", n)
	}
}

// TestFields: a logger's own fields come before those of a line, and those of the logger that
// it was made from before its own.
func TestFields(t *testing.T) {
	core, logs := observer.New(zapcore.DebugLevel)
	l := Wrap(zap.New(core), rate.NewLimiter(1, 1), nil).With(zap.Int("a", 1))
	two := l.With(zap.Int("b", 2))
	_ = l.With(zap.Int("x", 9)) // shares no memory with the one before
	two.Debug("line", zap.Int("c", 3))
	var keys []string
	for _, f := range logs.TakeAll()[0].Context {
		keys = append(keys, f.Key)
	}
	want(t, keys, "a", "b", "c")
}
