// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"testing"
	"time"
)

// TestSchedulerJudges: a vif whose packets take the processor for too long is costly, and
// rests beside others. Time alone decides nothing: the thread may have waited.
func TestSchedulerJudges(t *testing.T) {
	start := time.Unix(1000, 0)
	const long = 2 * costlyPacket
	for _, tt := range []struct {
		name    string
		suspect int
		took    time.Duration
		cpu     time.Duration
		packets uint32
		last    bool          // the last turn that was not costly was its own
		other   time.Duration // since the last such turn of another vif ended
		spare   bool

		costly bool
		after  int // suspect, afterwards
		rest   time.Duration
	}{
		{name: "quick", took: costlyPacket, cpu: costlyPacket, packets: 1},
		{name: "long for the first time", took: long, cpu: long, packets: 1, after: suspectTurns},
		{name: "long for many packets", suspect: 3, took: long, cpu: long, packets: 2, after: 2},
		{name: "long, and the thread waited", suspect: 3, took: long, cpu: costlyPacket, packets: 1, after: suspectTurns},
		{name: "costly", suspect: 3, took: long, cpu: long, packets: 1, costly: true, after: suspectTurns, rest: restTimes * long},
		{name: "costly, no packet moved", suspect: 3, took: long, cpu: long, costly: true, after: suspectTurns, rest: restTimes * long},
		{name: "costly for very long", suspect: 3, took: time.Second, cpu: time.Second, packets: 1, costly: true, after: suspectTurns, rest: maxRest},
		{name: "costly, others are idle", suspect: 3, took: long, cpu: long, packets: 1, other: restFor, costly: true, after: suspectTurns},
		{name: "costly, others are idle, on a spare", suspect: 3, took: long, cpu: long, packets: 1, other: restFor, spare: true, costly: true, after: suspectTurns, rest: restTimes * long},
		{name: "costly, and was the last", suspect: 3, took: long, cpu: long, packets: 1, last: true, costly: true, after: suspectTurns, rest: restTimes * long},
		{name: "costly, was the last, others are idle", suspect: 3, took: long, cpu: long, packets: 1, last: true, other: restFor, costly: true, after: suspectTurns},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, other := &account{suspect: tt.suspect}, &account{}
			s := scheduler{cpu: func() time.Duration { return time.Hour + tt.cpu }, cpuAt: time.Hour}
			s.ended(other, start.Add(-tt.other))
			if tt.last {
				s.ended(a, start)
			}
			rest := s.judge(a, start, tt.took, tt.packets, tt.spare)
			if a.costly != tt.costly || a.suspect != tt.after || rest != tt.rest {
				t.Errorf("costly %t, suspect %d, rest %v; want %t, %d, %v", a.costly, a.suspect, rest, tt.costly, tt.after, tt.rest)
			}
			last := s.last
			s.ended(a, start.Add(tt.took))
			if tt.costly && s.last != last || !tt.costly && s.last != a {
				t.Error("the end of a turn counts unless it was costly")
			}
		})
	}
}
