// SPDX-License-Identifier: Apache-2.0

package killed

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/netbackd/netbackd/internal/lab/ledger"
)

// score counts the cost of the deaths of a bed.
type score struct {
	deaths   int
	away     []time.Duration // of each vif, for each death: until its first packet
	peer     []time.Duration // at the same time: the start of a program that does nothing
	repeated []uint64        // packets from the guest, for each queue and death
	toGuest  []ledger.Tally  // for each vif and death
	toHost   uint64          // packets that arrived
	received uint64          // at the guest
}

// The bar: how long a vif may be away, at p99. On a machine so busy that a program which does
// nothing takes long to start, it may be busyRatio times that.
const (
	awayBar   = 250 * time.Millisecond
	busyRatio = 40
)

// slow returns what is wrong with the times of a score, "" if nothing is.
func (s *score) slow() string {
	got, peer := percentile(s.away, 99), percentile(s.peer, 99)
	if got <= max(awayBar, busyRatio*peer) {
		return ""
	}
	return fmt.Sprintf("vifs were away for %v at p99, at most %v, or %d times the %v of a program that does nothing", got, awayBar, busyRatio, peer)
}

// percentile returns the value that p percent of a list do not exceed.
func percentile[T interface{ ~int64 | ~uint64 }](list []T, p int) T {
	if len(list) == 0 {
		return 0
	}
	l := slices.Sorted(slices.Values(list))
	return l[min((len(l)*p+99)/100, len(l))-1]
}

func mean(list []uint64) float64 {
	var sum uint64
	for _, n := range list {
		sum += n
	}
	return float64(sum) / float64(max(len(list), 1))
}

// of collects one number of each tally.
func (s *score) of(f func(ledger.Tally) uint64) (list []uint64) {
	for _, t := range s.toGuest {
		list = append(list, f(t))
	}
	return list
}

// String is a line of figures.
func (s *score) String() string {
	lost := s.of(func(t ledger.Tally) uint64 { return t.Lost })
	again := s.of(func(t ledger.Tally) uint64 { return t.Repeated })
	late := s.of(func(t ledger.Tally) uint64 { return t.Late })
	ms := func(p int) int64 { return percentile(s.away, p).Milliseconds() }
	return fmt.Sprintf("deaths %d; away median %d ms, p99 %d ms, worst %d ms (a program that does nothing: median %d ms, p99 %d ms); from guest %d, repeated per queue worst %d mean %.1f; to guest %d, per death lost worst %d mean %.1f, repeated worst %d mean %.1f, late worst %d",
		s.deaths, ms(50), ms(99), ms(100), percentile(s.peer, 50).Milliseconds(), percentile(s.peer, 99).Milliseconds(), s.toHost, percentile(s.repeated, 100), mean(s.repeated),
		s.received, percentile(lost, 100), mean(lost), percentile(again, 100), mean(again), percentile(late, 100))
}

// print logs the figures, and appends them to the report.
func (b *bed) print(class string) {
	b.t.Helper()
	b.score.toHost, b.score.received = 0, 0
	for _, v := range b.vifs {
		h, g := v.traffic.Arrived()
		b.score.toHost += h
		b.score.received += g
	}
	if bad := b.score.slow(); bad != "" && len(b.score.peer) > 0 && *long {
		b.t.Error(bad)
	}
	line := fmt.Sprintf("%s: %v", class, &b.score)
	b.report(line)
}

// table reports a table of calls.
func (b *bed) table(c *callTable) { b.report(c.String()) }

// report logs a text, and appends it to the report.
func (b *bed) report(text string) {
	b.t.Helper()
	write(b.t, text)
}

// write logs a text, and appends it to the report.
func write(t *testing.T, text string) {
	t.Helper()
	t.Log(text)
	if *report == "" {
		return
	}
	f, err := os.OpenFile(*report, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err == nil {
		_, err = fmt.Fprintln(f, text)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}
