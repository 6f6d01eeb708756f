// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"context"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/vif"
)

// report prints the daemon's counters, and fails if anything was lost.
func (s *show) report(ctx context.Context) error {
	vifs, err := s.lab.Control().Vifs(ctx)
	if err != nil {
		return err
	}
	s.say("\nCost per packet (guest to host is tx, host to guest is rx):\n")
	t := tabwriter.NewWriter(s.Out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "VIF\tQUEUE\tTX PACKETS\tRX PACKETS\tTX GSO\tRX GSO\tSYSCALLS/PKT\tGRANT OPS/PKT\tOPS/CALL\tEVENTS/PKT\tDROPS\t")
	for i := range vifs {
		for k := range vifs[i].Queues {
			writeCost(t, vifs[i].Name, k, vifs[i].Queues[k].Counters)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	s.say("")
	s.drops(vifs)
	s.violations(ctx)
	if len(s.lost) > 0 {
		for _, l := range s.lost {
			s.say("LOST: %s", l)
		}
		return ErrLost
	}
	s.say("Nothing was lost. %v in all.", time.Since(s.begin).Round(100*time.Millisecond))
	return nil
}

func writeCost(t *tabwriter.Writer, name string, queue int, n map[string]uint64) {
	packets := n["tx_packets"] + n["rx_packets"]
	fmt.Fprintf(t, "%s\t%d\t%d\t%d\t%d\t%d\t%s\t%s\t%s\t%s\t%d\t\n", name, queue,
		n["tx_packets"], n["rx_packets"], n["tx_gso"], n["rx_gso"],
		per(n["syscalls"], packets), per(n["grant_ops"], packets),
		per(n["grant_ops"], n["grant_calls"]), per(n["notifies"], packets), dropped(n))
}

func per(a, b uint64) string {
	if b == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", float64(a)/float64(b))
}

func dropped(n map[string]uint64) (sum uint64) {
	for _, c := range dataplane.Counters {
		if c.Kind == dataplane.Drop {
			sum += n[c.Name]
		}
	}
	return sum
}

// drops prints the drops by reason.
func (s *show) drops(vifs []vif.Status) {
	none := true
	for i := range vifs {
		for _, c := range dataplane.Counters {
			n := vifs[i].Counters[c.Name]
			if c.Kind != dataplane.Drop || n == 0 {
				continue
			}
			none = false
			s.say("drops: %s %s: %d (%s)", vifs[i].Name, c.Name, n, c.Help)
			s.lose("%s dropped %d: %s", vifs[i].Name, n, c.Help)
		}
	}
	if none {
		s.say("drops: none, for any reason")
	}
}

// violations asks the guests for their backend's violations of the protocol. Their
// frontends check everything that it does to the rings.
func (s *show) violations(ctx context.Context) {
	for _, g := range s.guests {
		stats, err := g.Stats(ctx, "")
		if err != nil {
			s.lose("guest %s: %v", g.Name, err)
			continue
		}
		for _, v := range stats.Violations {
			s.lose("guest %s accuses the backend: %s", g.Name, v)
		}
	}
}
