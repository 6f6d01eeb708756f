// SPDX-License-Identifier: Apache-2.0

package killed

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/netbackd/netbackd/internal/lab/tracekill"
)

// traceTime bounds the wait for a call that may not come.
const traceTime = 20 * time.Second

// takeoverTime bounds a takeover that may end before the call comes.
const takeoverTime = time.Second

// endless is a number of calls that no phase has.
const endless = 1 << 30

// tableKey names a row of the table of calls.
type tableKey struct{ phase, call string }

// callTable counts the calls that were seen, and the kills at each kind of them.
type callTable struct {
	seen  map[tableKey]int
	at    map[tableKey]map[string]int
	kills int
}

func newCallTable() *callTable {
	return &callTable{seen: map[tableKey]int{}, at: map[tableKey]map[string]int{}}
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
		c.kills++
	}
}

// String lists the calls of each phase with the kills at their entry, at their exit, within them,
// and some instructions after them.
func (c *callTable) String() string {
	var keys []tableKey
	for k := range c.seen {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b tableKey) int { return strings.Compare(a.phase+" "+a.call, b.phase+" "+b.call) })
	var b strings.Builder
	fmt.Fprintf(&b, "%-16s %-26s %8s %6s %6s %6s %6s\n", "phase", "call", "seen", "entry", "exit", "inside", "after")
	for _, k := range keys {
		at := c.at[k]
		fmt.Fprintf(&b, "%-16s %-26s %8d %6d %6d %6d %6d\n", k.phase, k.call, c.seen[k], at["entry"], at["exit"], at["inside"], at["after"])
	}
	return b.String()
}

// The most calls of one kind at which a daemon is killed: a daemon under load makes the same few
// calls without end. Those of a takeover, which begins with the start of the program, are in an
// order of their own.
const (
	inTakeover = 24
	underLoad  = 10
	inPhase    = 3
)

// points returns the places to kill at among the calls that a phase was seen to make: each at its
// entry and at its exit, at most so many of each kind. If that are more than *calls, it returns so
// many at random.
func points(seen []tracekill.Seen, most int) (list []tracekill.Order) {
	for _, s := range seen {
		for n := range min(s.Count, most) {
			for _, exit := range []bool{false, true} {
				list = append(list, tracekill.Order{Kind: &s.Call, Call: n + 1, Exit: exit})
			}
		}
	}
	rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	if *calls > 0 {
		list = list[:min(len(list), *calls)]
	}
	return list
}

// withSteps adds, for each kind of call, kills some instructions after such a call: a worker writes
// its journal and its ring between two calls.
func withSteps(list []tracekill.Order, seen []tracekill.Seen, most int) []tracekill.Order {
	if *calls > 0 {
		list = list[:len(list)/2]
		most = max(*calls/2, 1)
	}
	var stepped []tracekill.Order
	for _, s := range seen {
		for n := range min(s.Count, most) {
			stepped = append(stepped, tracekill.Order{Kind: &s.Call, Call: n + 1, Exit: true, Steps: 1 + rand.IntN(maxSteps)})
		}
	}
	rand.Shuffle(len(stepped), func(i, j int) { stepped[i], stepped[j] = stepped[j], stepped[i] })
	if *calls > 0 {
		stepped = stepped[:min(len(stepped), most)]
	}
	return append(list, stepped...)
}

// maxSteps is about the number of instructions between the write of a batch to the TAP and its
// answers.
const maxSteps = 3000

// launch starts a daemon that has stopped itself before it executes its program.
func (b *bed) launch() error {
	if b.manager != nil {
		return b.manager.Launch(true)
	}
	return b.LaunchService(nil, nil, true)
}

// takeover starts a daemon that is killed at a call of its takeover.
func (b *bed) takeover(o tracekill.Order) tracekill.Result {
	b.t.Helper()
	b.must(b.launch())
	o.PIDs, o.Starting = []int{b.Daemon().PID()}, true
	k, err := tracekill.Start(o)
	b.must(err)
	b.died()
	r, err := k.Wait(takeoverTime)
	b.must(err)
	if !r.Died {
		b.Daemon().Kill()
	}
	<-b.Daemon().Done()
	return r
}

// takeoverCalls counts the calls of a takeover until all vifs are back.
func (b *bed) takeoverCalls() tracekill.Result {
	b.t.Helper()
	b.must(b.launch())
	k, err := tracekill.Start(tracekill.Order{PIDs: []int{b.Daemon().PID()}, Starting: true, Call: endless})
	b.must(err)
	for _, v := range b.vifs {
		v.wire.Look(time.Now())
	}
	for _, v := range b.vifs {
		b.wait(v.name+" to be served", func() bool { _, ok := v.wire.First(); return ok })
	}
	r, err := k.Stop()
	b.must(err)
	return r
}

// livesBetween is the number of daemons in a row that are killed in their takeover.
const livesBetween = 8

// TestTakeover kills daemons at each system call of their takeover. After some the next one
// lives, and all packets are accounted for.
func TestTakeover(t *testing.T) {
	b := newBed(t, true)
	b.addVif(vifConfig{queues: 4, hash: true, static: 100})
	b.addVif(vifConfig{queues: 1})
	b.settled("at first")
	b.died()
	b.Daemon().Kill()
	profile := b.takeoverCalls()
	b.settled("after a counted takeover")
	table := newCallTable()
	table.add("takeover", profile)
	all := points(profile.Seen, inTakeover)
	b.died()
	b.Daemon().Kill()
	for i, o := range all {
		table.add("takeover", b.takeover(o))
		if i%livesBetween == livesBetween-1 || i == len(all)-1 {
			b.must(b.start())
			b.settled("after kills in takeovers")
			b.balance()
			b.died()
			b.Daemon().Kill()
		}
	}
	b.must(b.start())
	b.settled("at last")
	b.balance()
	for _, v := range b.vifs {
		v.quiet()
	}
	b.print(fmt.Sprintf("takeover of %d calls, killed at %d", profile.Calls, table.kills))
	b.table(table)
}

// traced attaches a tracer to the daemon and its packet processes, of which the first that reaches
// the call is killed, and runs act. If the daemon dies, it starts a successor. It returns when act
// has ended.
func (b *bed) traced(o tracekill.Order, act func(context.Context) error) tracekill.Result {
	b.t.Helper()
	o.PIDs = b.processes()
	k, err := tracekill.Start(o)
	b.must(err)
	b.mayDie()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- act(ctx) }()
	results := make(chan tracekill.Result, 1)
	go func() {
		r, err := k.Wait(traceTime)
		if err != nil {
			b.faults.Add("%v", err)
		}
		results <- r
	}()
	select {
	case err = <-ended:
		k.Abandon()
		ended <- err
	case r := <-results:
		results <- r
	}
	r := <-results
	if r.Died {
		b.score.deaths++
		b.replace(r.PID)
	}
	if err := <-ended; err != nil {
		b.t.Fatalf("killed at %v, %s: %v", r.Point.Call, r.Point.When, err)
	}
	return r
}

// phase is something that the daemon does when it is killed.
type phase struct {
	name    string
	prepare func(context.Context) error
	act     func(context.Context) error
	check   func()
	most    int // calls of one kind
	steps   int // the same, some instructions after them
}

// sweep kills the daemon at each call of a phase.
func (b *bed) sweep(table *callTable, p phase) {
	b.t.Helper()
	prepare := func() {
		if p.prepare != nil {
			b.must(p.prepare(b.ctx))
		}
	}
	prepare()
	r := b.traced(tracekill.Order{Call: endless}, p.act)
	table.add(p.name, r)
	list := points(r.Seen, p.most)
	if p.steps > 0 {
		list = withSteps(list, r.Seen, p.steps)
	}
	for _, o := range list {
		prepare()
		table.add(p.name, b.traced(o, p.act))
		if p.check != nil {
			p.check()
		}
		b.settled(p.name)
		b.balance()
	}
}

// pause lets the load run.
func pause(d time.Duration) error {
	time.Sleep(d)
	return nil
}

// TestCalls kills the daemon at each system call while it moves packets, carries out control
// messages, and connects and disconnects a vif.
func TestCalls(t *testing.T) {
	b := newBed(t, true)
	v := b.addVif(vifConfig{queues: 4, hash: true, static: 100})
	other := b.addVif(vifConfig{queues: 2, plain: true})
	table := newCallTable()
	b.settled("at first")
	b.rest()
	for i, p := range []phase{
		{name: "traffic", most: underLoad, steps: 3 * underLoad, act: func(context.Context) error { return pause(300 * time.Millisecond) }},
		{name: "hash", most: inPhase, act: func(ctx context.Context) error { return v.dev.Control().SetHash(ctx, v.hash()) }},
		{name: "static grants", most: inPhase, act: v.cycleGrants},
		{name: "connect", most: inPhase, prepare: other.disconnect, act: other.connect, check: other.run},
		{name: "disconnect", most: inPhase, act: other.disconnect, check: func() {
			b.must(other.connect(b.ctx))
			other.run()
		}},
	} {
		if *only != "" && *only != p.name || *only == "" && !*long && i > 0 {
			continue
		}
		b.moves = p.name == "hash"
		b.sweep(table, p)
	}
	for _, v := range b.vifs {
		v.quiet()
	}
	b.print(fmt.Sprintf("calls, killed at %d", table.kills))
	b.table(table)
}
