// SPDX-License-Identifier: Apache-2.0

package store

import (
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/netbackd/netbackd/pkg/xenstore"
)

func TestStrtol(t *testing.T) {
	for _, tt := range []struct {
		in   string
		base int64
		want int64
		rest string
	}{
		{"", 10, 0, ""},
		{"x", 10, 0, "x"},
		{" ", 10, 0, " "},
		{"-", 10, 0, "-"},
		{"12", 10, 12, ""},
		{" \t+12x", 10, 12, "x"},
		{"-12", 10, -12, ""},
		{"012", 10, 12, ""},
		{"012", 0, 10, ""},
		{"08", 0, 0, "8"},
		{"0", 0, 0, ""},
		{"0x1F", 0, 31, ""},
		{"-0XfF", 0, -255, ""},
		{"0x", 0, 0, "x"},
		{"0xg", 0, 0, "xg"},
		{"0x1f", 10, 0, "x1f"},
		{"9223372036854775807", 10, math.MaxInt64, ""},
		{"9223372036854775808", 10, math.MaxInt64, ""},
		{"99999999999999999999x", 10, math.MaxInt64, "x"},
		{"-99999999999999999999", 10, math.MinInt64, ""},
	} {
		v, rest := strtol(tt.in, tt.base)
		if v != tt.want || rest != tt.rest {
			t.Errorf("strtol(%q, %d) = %d, %q, want %d, %q", tt.in, tt.base, v, rest, tt.want, tt.rest)
		}
	}
}

func TestParentLeafJoin(t *testing.T) {
	for _, tt := range []struct{ path, parent, leaf string }{
		{"/a", "/", "a"},
		{"/a/b", "/a", "b"},
		{"/a/b/c", "/a/b", "c"},
	} {
		if p, l := parentOf(tt.path), leafOf(tt.path); p != tt.parent || l != tt.leaf {
			t.Errorf("%s is %q in %q, want %q in %q", tt.path, l, p, tt.leaf, tt.parent)
		}
		if p := join(tt.parent, tt.leaf); p != tt.path {
			t.Errorf("join(%q, %q) = %q", tt.parent, tt.leaf, p)
		}
	}
	if p := parentOf("/"); p != "/" {
		t.Errorf("the root is below %q", p)
	}
}

func TestWithin(t *testing.T) {
	for _, tt := range []struct {
		path, root string
		want       bool
	}{
		{"/a", "/", true},
		{"/", "/", true},
		{"/a", "/a", true},
		{"/a/b", "/a", true},
		{"/ab", "/a", false},
		{"/a", "/a/b", false},
		{"@releaseDomain", "@releaseDomain", true},
		{"@releaseDomain", "/a", false},
	} {
		if got := within(tt.path, tt.root); got != tt.want {
			t.Errorf("within(%q, %q) = %v", tt.path, tt.root, got)
		}
	}
}

// TestNoDomainIsStarvedByTheWriteRate: a domain that has to wait may write after the
// returned time, regardless of the others, and no domain writes more than the rate and the
// bursts allow.
func TestNoDomainIsStarvedByTheWriteRate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := newLimiter(200)
		start := time.Unix(0, 0)
		now := start
		domains := make([]allowance, rapid.IntRange(1, 5).Draw(t, "domains"))
		for i := range domains {
			l.join(&domains[i], now)
		}
		writes := 0
		for range rapid.IntRange(1, 500).Draw(t, "steps") {
			a := &domains[rapid.IntRange(0, len(domains)-1).Draw(t, "domain")]
			now = now.Add(time.Duration(rapid.IntRange(0, 20).Draw(t, "ms")) * time.Millisecond)
			if wait := l.wait(a, now); wait > 0 {
				if limit := time.Duration(len(domains)) * 5 * time.Millisecond; wait > limit {
					t.Fatalf("told to wait %v, one write of %d domains takes %v", wait, len(domains), limit)
				}
				if now = now.Add(wait); l.wait(a, now) > 0 {
					t.Fatalf("still to wait after %v", wait)
				}
			}
			l.spend(a, now)
			writes++
			if a.credit > domainBurst || a.credit < -writeCost || l.reserve > reserveBurst || l.reserve < -reserveDebt {
				t.Fatalf("credit %d, reserve %d", a.credit, l.reserve)
			}
		}
		allowed := now.Sub(start).Seconds()*200 + float64(5*10+len(domains)*2)
		if float64(writes) > allowed {
			t.Fatalf("%d writes in %v, %.0f allowed", writes, now.Sub(start), allowed)
		}
	})
}

func TestChangeWhileItsEventIsBeingWrittenIsToldAgain(t *testing.T) {
	s := newState(Quota{})
	writer, watcher := s.local(0), s.local(0)
	watcher.call(xenstore.MsgWatch, 0, "/a|w|")
	queued := func() int { return len(watcher.c.out) }

	writer.call(xenstore.MsgWrite, 0, "/a|1")
	watcher.c.take()
	writer.call(xenstore.MsgWrite, 0, "/a|2")
	if queued() != 2 {
		t.Errorf("%d events, want the one being written and another one", queued())
	}
	writer.call(xenstore.MsgWrite, 0, "/a|3")
	if queued() != 2 {
		t.Errorf("%d events, the second one still waits", queued())
	}
	s.written(watcher.c)
	writer.call(xenstore.MsgWrite, 0, "/a|4")
	if queued() != 1 {
		t.Errorf("%d events, the second one still waits", queued())
	}
}

func TestUnlimitedQuotas(t *testing.T) {
	q := Quota{Nodes: -1, WriteRate: -1, EventTimeout: -1}.withDefaults()
	if q.Nodes != math.MaxInt || q.Watches != 128 || newLimiter(q.WriteRate).rate != 0 || q.EventTimeout != -1 {
		t.Errorf("%+v", q)
	}
}
