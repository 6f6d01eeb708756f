// SPDX-License-Identifier: Apache-2.0

package killed

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/netbackd/netbackd/internal/lab/tracekill"
)

// traceTime bounds the wait for a call that may not come.
const traceTime = 10 * time.Second

// tableKey names a row of the table of calls.
type tableKey struct{ phase, call string }

// callTable counts the calls that were seen, and the kills at each kind of them.
type callTable struct {
	seen map[tableKey]int
	at   map[tableKey]map[string]int
}

func newCallTable() *callTable {
	return &callTable{map[tableKey]int{}, map[tableKey]map[string]int{}}
}

// add enters the result of a trace.
func (c *callTable) add(phase string, r tracekill.Result) {
	for _, s := range r.Seen {
		c.seen[tableKey{phase, s.Call.String()}] += s.Count
	}
	if r.Died {
		k := tableKey{phase, r.Point.Call.String()}
		if c.at[k] == nil {
			c.at[k] = map[string]int{}
		}
		c.at[k][r.Point.When]++
	}
}

// String lists the calls of each phase with the kills at their entry, at their exit, and within
// them.
func (c *callTable) String() string {
	var keys []tableKey
	for k := range c.seen {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b tableKey) int {
		return strings.Compare(a.phase+a.call, b.phase+b.call)
	})
	var b strings.Builder
	fmt.Fprintf(&b, "%-10s %-20s %8s %6s %6s %6s\n", "phase", "call", "seen", "entry", "exit", "inside")
	for _, k := range keys {
		at := c.at[k]
		fmt.Fprintf(&b, "%-10s %-20s %8d %6d %6d %6d\n", k.phase, k.call, c.seen[k], at["entry"], at["exit"], at["inside"])
	}
	return b.String()
}

// launch starts a daemon that has stopped itself before it executes its program.
func (b *bed) launch() error {
	if b.manager != nil {
		return b.manager.Launch(true)
	}
	return b.LaunchService(nil, nil, true)
}

// killed kills the daemon and waits for its end.
func (b *bed) killed() {
	b.died()
	b.Daemon().Kill()
}

// takeover starts a daemon that is killed at a call of its takeover. It reports whether it was.
func (b *bed) takeover(call int, exit bool) tracekill.Result {
	b.t.Helper()
	b.must(b.launch())
	k, err := tracekill.Start(tracekill.Order{PIDs: []int{b.Daemon().PID()}, Starting: true, Call: call, Exit: exit})
	b.must(err)
	b.died()
	r, err := k.Wait(traceTime)
	b.must(err)
	if r.Died {
		<-b.Daemon().Done()
	}
	return r
}

// TestTakeover kills a daemon at each system call of its takeover, at the entry and at the exit.
func TestTakeover(t *testing.T) {
	b := newBed(t, true)
	b.addVif(vifConfig{queues: 4, hash: true, static: 100})
	b.addVif(vifConfig{queues: 1})
	b.settled("at first")
	b.killed()
	table := newCallTable()
	begin := time.Now()
	n := 0
	for call := 1; ; call++ {
		r := b.takeover(call, call%2 == 0)
		table.add("takeover", r)
		if call%50 == 0 {
			t.Logf("%d: %+v after %v", call, r.Point, time.Since(begin))
		}
		if !r.Died || call > 300 {
			t.Logf("%d: %+v", call, r.Calls)
			break
		}
		n++
	}
	b.must(b.start())
	b.settled("after")
	t.Logf("%d\n%v", n, table)
}
