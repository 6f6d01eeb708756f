// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/netbackd/netbackd/internal/control"
	"github.com/netbackd/netbackd/pkg/dataplane"
	"github.com/netbackd/netbackd/pkg/vif"
)

var errNoVif = errors.New("no such vif")

func newShowCmd() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "show VIF",
		Short: "Show all about one vif",
		Long: `Show prints everything the daemon knows about one vif. VIF is its name as the
toolstack knows it, such as vif3.0, or the name its interface has now.

With --json it prints the vif as one object; field names are stable within a
schema.`,
		Example: "  netbackd show vif3.0",
		Args:    args(cobra.ExactArgs(1)),
		ValidArgsFunction: func(c *cobra.Command, a []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(a) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return vifNames(c), cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(c *cobra.Command, a []string) error {
			client := control.NewClient(socketPath(c))
			defer client.Close()
			s, err := findVif(c.Context(), client, a[0])
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(c.OutOrStdout(), s)
			}
			return writeShow(c.OutOrStdout(), s, time.Now())
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func newResetCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "reset VIF",
		Short: "Let a quarantined vif try again",
		Long: `Reset takes a vif out of quarantine and connects it to the rings its guest has.
A guest that breaks the protocol again is quarantined again.`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, a []string) error {
			client := control.NewClient(socketPath(c))
			defer client.Close()
			s, err := findVif(c.Context(), client, a[0])
			if err != nil {
				return err
			}
			return client.Reset(c.Context(), s.Name)
		},
	}
}

// vifNames is for completion; where nobody answers there is nothing to complete.
func vifNames(c *cobra.Command) (names []string) {
	client := control.NewClient(socketPath(c))
	defer client.Close()
	vifs, err := client.Vifs(c.Context())
	if err != nil {
		return nil
	}
	for i := range vifs {
		names = append(names, vifs[i].Name)
	}
	return names
}

// findVif finds a vif by either of its names.
func findVif(ctx context.Context, client *control.Client, name string) (*vif.Status, error) {
	vifs, err := client.Vifs(ctx)
	if err != nil {
		return nil, err
	}
	var known []string
	for i := range vifs {
		if vifs[i].Name == name || vifs[i].Interface == name {
			return &vifs[i], nil
		}
		known = append(known, vifs[i].Name)
	}
	if len(known) == 0 {
		return nil, fmt.Errorf("%s: %w: the daemon has none; does the guest's config have vif=[...] and is its backend this domain?", name, errNoVif)
	}
	const most = 8
	if len(known) > most {
		known = append(known[:most], "...")
	}
	return nil, fmt.Errorf("%s: %w; there are %s", name, errNoVif, strings.Join(known, ", "))
}

// writeShow prints one vif.
func writeShow(w io.Writer, s *vif.Status, now time.Time) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(k, format string, v ...any) { fmt.Fprintf(t, "%s\t%s\n", k, fmt.Sprintf(format, v...)) }
	row("vif", "%s (domain %d, device %d)", s.Name, s.Domid, s.Devid)
	row("state", "%s, frontend %v, online %t", shownState(s), s.Frontend, s.Online)
	if s.Quarantine != "" {
		row("quarantine", "%s (`netbackd reset %s` lets it try again)", s.Quarantine, s.Name)
	}
	if s.Error != "" {
		row("last error", "%s", s.Error)
	}
	if !s.Since.IsZero() {
		row("connected", "%v ago", now.Sub(s.Since).Round(time.Second))
	}
	row("hotplug", "%s", orNone(s.Hotplug))
	row("script", "%s", orNone(s.Script))
	row("mac", "%s", orNone(s.MAC))
	row("bridge", "%s", orNone(s.Bridge))
	if s.Interface != "" {
		row("interface", "%s, %s, carrier %s, mtu %d", s.Interface, upDown(s.Up), onOff(s.Carrier), s.MTU)
	}
	row("rate", "%s", s.Rate)
	row("features", "%s", orNone(strings.Join(s.Features, " ")))
	if len(s.Mcast) > 0 {
		row("multicast", "%s", strings.Join(s.Mcast, " "))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if err := writeQueues(w, s); err != nil {
		return err
	}
	return writeCounters(w, s)
}

func writeQueues(w io.Writer, s *vif.Status) error {
	if len(s.Queues) == 0 {
		return nil
	}
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "QUEUE\tWORKER\tTX PKTS\tRX PKTS\tTX PENDING\tRX SLOTS FREE\tHELD\tSYSCALLS/PKT\tGRANT OPS/PKT\tEVENTS/PKT")
	for i := range s.Queues {
		q := &s.Queues[i]
		n := q.Counters["tx_packets"] + q.Counters["rx_packets"]
		fmt.Fprintf(t, "%d\t%d\t%d\t%d\t%d\t%d\t%d\t%s\t%s\t%s\n", i, q.Worker,
			q.Counters["tx_packets"], q.Counters["rx_packets"],
			q.Tx.ReqProd-q.Tx.ReqCons, q.Rx.ReqProd-q.Rx.ReqCons, q.Held,
			ratio(q.Counters["syscalls"], n), ratio(q.Counters["grant_ops"], n), ratio(q.Counters["notifies"], n))
	}
	return t.Flush()
}

func writeCounters(w io.Writer, s *vif.Status) error {
	any := false
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, c := range dataplane.Counters {
		n := s.Counters[c.Name]
		if n == 0 {
			continue
		}
		if !any {
			fmt.Fprintln(t, "\nCOUNTER\tVALUE\tMEANING")
			any = true
		}
		name := c.Name
		if c.Kind == dataplane.Drop {
			name = "drop " + name
		}
		fmt.Fprintf(t, "%s\t%d\t%s\n", name, n, c.Help)
	}
	return t.Flush()
}

// ratio is a over b, as a person reads it.
func ratio(a, b uint64) string {
	if b == 0 {
		return "-"
	}
	return fmt.Sprintf("%.3f", float64(a)/float64(b))
}

func orNone(v string) string {
	if v == "" {
		return "-"
	}
	return v
}

func upDown(v bool) string {
	if v {
		return "up"
	}
	return "down"
}

func onOff(v bool) string {
	if v {
		return "on"
	}
	return "off"
}
