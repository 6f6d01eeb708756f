// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
)

// callKinds are netbackd's counters of system calls by kind, and their names in the table.
// What is left of all calls of its threads is that of Go's runtime and of control.
var callKinds = [...]struct{ counter, name string }{
	{"polls", "polls"},
	{"event_calls", "events"},
	{"grant_calls", "grant copy"},
	{"notifies", "notify"},
	{"tap_read_calls", "TAP read"},
	{"tap_write_calls", "TAP write"},
}

// callsByKind takes netbackd's system calls per unit by kind, as of counts them.
func callsByKind(of func(traced bool, count func(*record) uint64) float64) (calls map[string]float64) {
	for _, k := range callKinds {
		n := of(true, func(r *record) uint64 { return r.Counters[k.counter] })
		if n == 0 {
			continue
		}
		if calls == nil {
			calls = map[string]float64{}
		}
		calls[k.counter] = n
	}
	return calls
}

// printCalls prints netbackd's system calls per unit.
func (rep *report) printCalls(t io.Writer) {
	var last group
	for _, n := range rep.Counts {
		if len(n.Calls) == 0 {
			continue
		}
		if n.group != last {
			last = n.group
			fmt.Fprintf(t, "\nsystem calls of netbackd, boot for %s\t\tall", last)
			for _, k := range callKinds {
				fmt.Fprintf(t, "\t%s", k.name)
			}
			fmt.Fprint(t, "\t\n")
		}
		fmt.Fprintf(t, "%s, per %s\t%s\t%.3f", n.Item, n.Unit, n.Backend, n.SystemCalls)
		for _, k := range callKinds {
			fmt.Fprintf(t, "\t%.3f", n.Calls[k.counter])
		}
		fmt.Fprint(t, "\t\n")
	}
}
