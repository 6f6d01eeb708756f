// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/internal/lab/systrace"
)

// long reports whether every failure is injected.
func long() bool { return os.Getenv("FAULTS") == "long" }

// sample returns the number of failures of a class in a run that is not long, which is usual
// unless FAULTS says another one.
func sample(usual int) int {
	if n, err := strconv.Atoi(os.Getenv("FAULTS")); err == nil {
		return n
	}
	return usual
}

// opener makes the host of a class.
type opener func(context.Context, *systrace.Tracer) (subject, error)

// campaign injects failures into one class of devices.
type campaign struct {
	t     *testing.T
	open  opener
	usual int // size of a sample
	inj   *injector
	trace *systrace.Tracer
	s     subject // nil: the last one is gone
	clean books   // of s
}

// TestFaults lets every kind of call fail, for each class of devices.
func TestFaults(t *testing.T) {
	netns.NeedTUN(t)
	injected := 0
	for _, c := range []struct {
		name  string
		usual int
		open  opener
	}{
		{"vifs", 6, func(ctx context.Context, tr *systrace.Tracer) (subject, error) { return newVifs(ctx, tr) }},
		{"vhost-user", 2, func(ctx context.Context, tr *systrace.Tracer) (subject, error) { return newVhosts(ctx, tr) }},
		{"disks", 2, func(ctx context.Context, tr *systrace.Tracer) (subject, error) { return newDisks(ctx, tr) }},
	} {
		t.Run(c.name, func(t *testing.T) { injected += newCampaign(t, c.usual, c.open).run() })
	}
	if injected == 0 && !t.Failed() {
		t.Fatal("there is no such failure")
	}
}

func newCampaign(t *testing.T, usual int, open opener) *campaign {
	c := &campaign{t: t, open: open, usual: usual, inj: newInjector()}
	c.trace = systrace.New(c.inj.handle, calls...)
	t.Cleanup(c.drop)
	return c
}

// fresh makes a host if there is none.
func (c *campaign) fresh(ctx context.Context) error {
	if c.s != nil {
		return nil
	}
	s, err := c.open(ctx, c.trace)
	if err != nil {
		return err
	}
	c.s = s
	// Whatever is made at first use exists after this.
	for _, p := range []phase{connecting, inTraffic, detaching} {
		if err := s.perform(ctx, p); err != nil {
			return fmt.Errorf("%v without a failure: %w", p, err)
		}
		if p == connecting {
			if err := s.serves(ctx); err != nil {
				return err
			}
		}
	}
	if err := s.gone(ctx); err != nil {
		return err
	}
	return c.note(ctx)
}

// note notes the present books as those without the device.
func (c *campaign) note(ctx context.Context) (err error) {
	if err = c.s.bystander(ctx); err == nil {
		c.clean, err = c.s.books(ctx)
	}
	return err
}

// drop ends the present host.
func (c *campaign) drop() {
	if c.s != nil {
		if err := c.s.close(); err != nil {
			c.t.Log(err)
		}
		c.s = nil
	}
}

// enumerate counts the calls of each phase and lists the rules for them.
func (c *campaign) enumerate(ctx context.Context) (rules []rule, err error) {
	for _, p := range []phase{connecting, inTraffic, takeover, detaching} {
		n, err := c.inj.counting(func() error {
			if err := c.s.perform(ctx, p); err != nil {
				return err
			}
			if p == detaching {
				return c.s.gone(ctx)
			}
			return errors.Join(c.s.serves(ctx), c.s.bystander(ctx))
		})
		if err != nil {
			return nil, fmt.Errorf("%v, counted: %w", p, err)
		}
		for _, kind := range slices.Sorted(maps.Keys(n)) {
			c.t.Logf("%-8v %6d %s", p, n[kind], kind)
			for _, f := range faultsOf(kind) {
				rules = append(rules, rule{phase: p, kind: kind, fault: f})
				if mayLast(kind, f) {
					rules = append(rules, rule{phase: p, kind: kind, fault: f, lasts: true})
				}
			}
		}
	}
	return rules, c.note(ctx)
}

// run injects all failures, or a sample of them, and returns how many.
func (c *campaign) run() int {
	ctx, cancel := context.WithTimeout(c.t.Context(), 4*time.Hour)
	defer cancel()
	if err := c.fresh(ctx); err != nil {
		c.t.Fatal(err)
	}
	rules, err := c.enumerate(ctx)
	if err != nil {
		c.t.Fatal(err)
	}
	if only := os.Getenv("FAULTS_ONLY"); only != "" {
		rules = slices.DeleteFunc(rules, func(r rule) bool { return !strings.Contains(r.String(), only) })
	} else if !long() {
		rules = pick(rules, sample(c.usual))
	}
	if len(rules) == 0 {
		return 0
	}
	c.t.Logf("%d failures to inject", len(rules))
	seen := map[string]int{}
	for _, r := range rules {
		begin := time.Now()
		outcome, err := c.inject(ctx, r)
		if err != nil {
			c.t.Errorf("%v: %v", r, err)
			if c.s != nil && c.s.daemon() != nil {
				said := c.s.daemon().Log()
				c.t.Logf("the daemon said:\n%s", said[max(0, len(said)-6000):])
			}
			c.drop()
			outcome = "FAILED"
		}
		seen[outcome]++
		if len(rules) > 20 {
			fmt.Printf("%s: %-60s %s (%v)\n", c.t.Name(), r, outcome, time.Since(begin).Round(time.Millisecond))
		}
	}
	c.t.Logf("%d failures: %v", len(rules), seen)
	if seen["not reached"] == len(rules) {
		c.t.Error("no failure happened, so nothing is proven")
	}
	return len(rules)
}

// pick chooses a sample of n by FAULTS_SEED. A rule is in it or not regardless of which others there
// are: some kinds of call are not seen in each run.
func pick(rules []rule, n int) []rule {
	rank := func(r rule) uint64 {
		h := fnv.New64a()
		fmt.Fprintf(h, "%s %v", os.Getenv("FAULTS_SEED"), r)
		return h.Sum64()
	}
	slices.SortFunc(rules, func(a, b rule) int { return cmp.Compare(rank(a), rank(b)) })
	rules = rules[:min(len(rules), n)]
	slices.SortStableFunc(rules, func(a, b rule) int { return cmp.Compare(a.phase, b.phase) })
	return rules
}

// inject has one failure happen, and returns what became of the device.
func (c *campaign) inject(ctx context.Context, r rule) (outcome string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	if err := c.fresh(ctx); err != nil {
		return "", err
	}
	order := []phase{connecting, inTraffic, detaching}
	if r.phase == takeover {
		order = []phase{connecting, takeover, detaching}
	}
	for _, p := range order {
		if p != r.phase {
			if err := until(ctx, fmt.Sprintf("%v, where nothing fails", p), func() error { return c.s.perform(ctx, p) }); err != nil {
				return "", err
			}
			continue
		}
		if outcome, err = c.strike(ctx, r); err != nil {
			return "", err
		}
	}
	if outcome, err = c.removed(ctx, r, outcome); err != nil {
		return "", err
	}
	if r.phase == takeover || outcome == leftForNext {
		return outcome, c.note(ctx)
	}
	return outcome, settled(ctx, c.s, c.clean)
}

// leftForNext is the outcome if the daemon could not remove a file.
const leftForNext = "told, files removed by the next start"

// removed checks that nothing is left of the device. Files that the daemon could not remove
// during the whole phase are removed by the next start.
func (c *campaign) removed(ctx context.Context, r rule, outcome string) (string, error) {
	if !r.lasts || !strings.HasPrefix(r.kind, "unlinkat") {
		return outcome, c.s.gone(ctx)
	}
	soon, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	err := c.s.gone(soon)
	if err == nil {
		return outcome, nil
	}
	if said := c.s.daemon().Log(); !strings.Contains(said, "not removed") {
		return "", fmt.Errorf("nothing is told of what is left: %w", err)
	}
	return leftForNext, errors.Join(c.s.perform(ctx, takeover), c.s.gone(ctx))
}

// strike performs the phase of a rule and checks what it did.
func (c *campaign) strike(ctx context.Context, r rule) (string, error) {
	limit := 12 * time.Second
	switch {
	case r.phase == takeover:
		limit = 40 * time.Second // a daemon that does not start ends by itself
	case r.lasts:
		limit = 5 * time.Second // it cannot succeed
	}
	limited, cancel := context.WithTimeout(ctx, limit)
	n, failed := c.inj.failing(r, func() error {
		err := c.s.perform(limited, r.phase)
		if err == nil && !r.lasts && r.phase != detaching {
			err = c.s.serves(limited)
		}
		return err
	})
	cancel()
	if c.s.daemon() == nil {
		if failed == nil || !strings.Contains(failed.Error(), "ended before it said") {
			return "", fmt.Errorf("the daemon did not start, and did not end: %w", failed)
		}
		if err := c.s.restart(ctx); err != nil {
			return "", fmt.Errorf("the start: %w (%w)", err, failed)
		}
		return "daemon ended with an error, the next one serves", c.s.serves(ctx)
	}
	if said := c.s.daemon().Log(); strings.Contains(said, "panic") || strings.Contains(said, "internal error") || strings.Contains(said, "fatal error") {
		return "", errors.New("the daemon failed inside")
	}
	if c.s.daemon().Ended() {
		if r.phase != takeover {
			return "", errors.New("the daemon ended")
		}
		if err := c.s.restart(ctx); err != nil {
			return "", fmt.Errorf("the next start: %w", err)
		}
		if err := c.s.serves(ctx); err != nil {
			return "", fmt.Errorf("after the next start: %w", err)
		}
		return "daemon ended with an error, the next one serves", nil
	}
	if err := c.s.bystander(ctx); err != nil {
		return "", err
	}
	switch {
	case n == 0 && failed == nil:
		return "not reached", nil
	case r.phase == detaching:
		if failed != nil {
			return c.detachAgain(ctx, failed)
		}
		return "done", nil
	}
	return c.recovered(ctx, r, failed)
}

// detachAgain is for a detach that failed: the toolstack removes what is left by force.
func (c *campaign) detachAgain(ctx context.Context, failed error) (string, error) {
	told := c.s.told(ctx)
	if err := c.s.perform(ctx, detaching); err != nil {
		return "", fmt.Errorf("the detach failed: %w, and again: %w", failed, err)
	}
	return "told, and done again: " + told, nil
}

// recovered checks that the guest is served when nothing fails any more, or that the daemon
// tells why not and a reset helps.
func (c *campaign) recovered(ctx context.Context, r rule, failed error) (string, error) {
	soon, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	err := c.s.serves(soon)
	if err == nil {
		if failed != nil {
			return "served again", nil
		}
		return "served", nil
	}
	told := c.s.told(ctx)
	if told == "" {
		// A busy machine may need longer.
		late, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		if err := c.s.serves(late); err != nil {
			return "", fmt.Errorf("the guest is not served, and nothing is told: %w (the phase: %w)", err, failed)
		}
		return "served again", nil
	}
	if failed == nil || r.phase != connecting {
		if err := c.s.mend(ctx); err != nil {
			return "", fmt.Errorf("%s: the reset: %w", told, err)
		}
		late, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		if err := c.s.serves(late); err != nil {
			return "", fmt.Errorf("%s: not served after the reset: %w, now: %s", told, err, c.s.told(ctx))
		}
		return "served after a reset", nil
	}
	// The toolstack has given up this device, and so tells its user.
	if err := errors.Join(c.s.perform(ctx, detaching), c.s.gone(ctx), c.s.perform(ctx, connecting)); err != nil {
		return "", fmt.Errorf("%s: attached again: %w", told, err)
	}
	return "refused to the toolstack, served when attached again", c.s.serves(ctx)
}
