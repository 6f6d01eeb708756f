// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/netbackd/netbackd/internal/budget"
	"github.com/netbackd/netbackd/internal/command"
	"github.com/netbackd/netbackd/internal/ctrlserver"
	"github.com/netbackd/netbackd/internal/netcontrol"
	"github.com/netbackd/netbackd/internal/vhostnet"
	"github.com/netbackd/netbackd/internal/vif"
)

func newShowCmd() *cobra.Command {
	var asJSON, key bool
	c := &cobra.Command{
		Use:   "show [VIF]",
		Short: "Show everything about one vif or vhost-user device, or about the daemon",
		Long: `Show prints everything that the daemon knows about one vif. VIF is its name in the
toolstack, such as vif3.0, or the present name of its interface. It may also be the name of
a vhost-user device, or of its interface. Without VIF it prints the status of the daemon.

With --json it prints one object. Field names are stable within a schema.`,
		Example: "  netbackd show vif3.0\n  netbackd show --json",
		Args:    command.Args(cobra.MaximumNArgs(1)),

		ValidArgsFunction: completeVif,
		RunE: func(c *cobra.Command, a []string) error {
			if len(a) == 0 {
				return showDaemon(c, asJSON)
			}
			return showVif(c, a[0], asJSON, key)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().BoolVar(&key, "key", false, "also print the guest's hash key, by which others could choose the queue of a flow")
	return c
}

// showVif prints the status of one vif, or of one vhost-user device.
func showVif(c *cobra.Command, name string, asJSON, key bool) error {
	if d, err := findDevice(c.Context(), c, name); d != nil || err != nil {
		return showDevice(c, d, asJSON, err)
	}
	client := netcontrol.NewClient(command.SocketPath(c))
	defer client.Close()
	s, err := client.Vif(c.Context(), name, 0)
	if err != nil {
		return err
	}
	if !key {
		hideKey(&s)
	}
	if asJSON {
		return command.WriteJSON(c.OutOrStdout(), s)
	}
	return writeShow(c.OutOrStdout(), &s, time.Now())
}

// showDevice prints the status of a device that was found, or returns err.
func showDevice(c *cobra.Command, d *vhostnet.Status, asJSON bool, err error) error {
	switch {
	case err != nil:
		return err
	case asJSON:
		return command.WriteJSON(c.OutOrStdout(), d)
	}
	return writeDevice(c.OutOrStdout(), d, time.Now())
}

// showDaemon prints the status of the daemon.
func showDaemon(c *cobra.Command, asJSON bool) error {
	client := netcontrol.NewClient(command.SocketPath(c))
	defer client.Close()
	d, err := client.Daemon(c.Context())
	if err != nil {
		return err
	}
	if asJSON {
		return command.WriteJSON(c.OutOrStdout(), d)
	}
	return writeDaemon(c.OutOrStdout(), &d, time.Now())
}

// writeDaemon prints the status of the daemon.
func writeDaemon(w io.Writer, d *netcontrol.Daemon, now time.Time) error {
	t := command.Table(w)
	row := func(k, format string, v ...any) { fmt.Fprintf(t, "%s\t%s\n", k, fmt.Sprintf(format, v...)) }
	row("netbackd", "%s, process %d, started %v ago", d.Version, d.PID, now.Sub(d.Since).Round(time.Second))
	if d.Workers != 0 { // else each packet process has its own
		row("workers", "%d", d.Workers)
	}
	row("io_uring", "%s", d.Uring)
	row("offload", "%s", command.OnOff(d.Offload))
	if d.Coalesce != "" {
		row("coalescing", "%s", d.Coalesce)
	}
	row("priority", "%s", priorityRow(d))
	if o := d.OwnPages; o != nil {
		row("own pages", "%s", ownPagesText(o))
	}
	row("threads", "%d, at most %d", d.Threads, d.MaxThreads)
	if d.Isolation != "" {
		isolate := d.Isolation
		if d.Unconfined != "" {
			isolate += " (" + d.Unconfined + ")"
		}
		row("isolate", "%s", isolate)
	}
	for i := range d.Processes {
		row("process", "%s", processRow(&d.Processes[i]))
	}
	if m := d.Memory; m != nil {
		row("memory", "%s resident, at most %s: heap %s, waiting packets %s, buffers %s", mib(m.Resident), mib(m.Max), mib(m.Heap), mib(m.Waiting), mib(m.BuffersMax))
		row("waiting packets", "%s of the %s that vifs share", mib(m.WaitUsed), mib(m.WaitShared))
		row("one vif", "at most %s, and %d static grants for each queue", mib(m.VifMax), m.StaticPages)
	}
	row("log", "%d lines lost", d.LogLost)
	return t.Flush()
}

// mib writes a number of bytes in MiB.
func mib(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

// ownPagesText describes how packets are copied.
func ownPagesText(o *netcontrol.OwnPages) string {
	switch {
	case o.Reason != "":
		return "none, packets are copied by address: " + o.Reason
	case o.Wanted == 0:
		return "none yet, a worker takes them with its first vif"
	case o.Granted < o.Wanted:
		return fmt.Sprintf("%d of %d, other packets are copied by address", o.Granted, o.Wanted)
	}
	return fmt.Sprintf("%d of %d", o.Granted, o.Wanted)
}

func newResetCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "reset VIF",
		Short: "End the quarantine of a vif, or the session of a vhost-user device",
		Long: `Reset ends the quarantine of a vif and connects it to its guest's rings. A guest that
breaks the protocol again is quarantined again.

Of a vhost-user device it closes the connection of the front end. The same or another one
may connect.`,
		Example:           "  netbackd reset vif3.0",
		Args:              command.Args(cobra.ExactArgs(1)),
		ValidArgsFunction: completeVif,
		RunE: func(c *cobra.Command, a []string) error {
			d, err := findDevice(c.Context(), c, a[0])
			if err != nil {
				return err
			}
			if d != nil {
				client := netcontrol.NewClient(netcontrol.DeviceSocket(command.RunDir(c), d.Name))
				defer client.Close()
				return client.ResetDevice(c.Context())
			}
			client := netcontrol.NewClient(command.SocketPath(c))
			defer client.Close()
			s, err := client.Vif(c.Context(), a[0], 0) // by either of its names
			if err != nil {
				return err
			}
			return client.Reset(c.Context(), s.Name)
		},
	}
}

// completeVif completes the name of a vif or of a vhost-user device.
func completeVif(c *cobra.Command, a []string, _ string) (names []string, _ cobra.ShellCompDirective) {
	if len(a) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	client := netcontrol.NewClient(command.SocketPath(c))
	defer client.Close()
	names, _ = client.Names(c.Context())
	return append(names, deviceNames(c)...), cobra.ShellCompDirectiveNoFileComp
}

// writeShow prints one vif.
func writeShow(w io.Writer, s *vif.Status, now time.Time) error {
	t := command.Table(w)
	row := func(k, format string, v ...any) { fmt.Fprintf(t, "%s\t%s\n", k, fmt.Sprintf(format, v...)) }
	l := s.Line()
	row("vif", "%s (domain %d, device %d)", s.Name, s.Domid, s.Devid)
	if s.ServedBy != "" {
		row("state", "%s: %s", shownState(&l), note(&l))
		return t.Flush()
	}
	row("state", "%s, frontend %v, online %t", shownState(&l), s.Frontend, s.Online)
	if s.Quarantine != "" {
		row("quarantine", "%s (`netbackd reset %s` lets it try again)", s.Quarantine, s.Name)
	}
	if s.Error != "" {
		row("last error", "%s", s.Error)
	}
	if s.Waits != "" {
		row("waits for", "%s", s.Waits)
	}
	if !s.Since.IsZero() {
		row("connected", "%v ago, %d grants mapped, %d event channels bound", now.Sub(s.Since).Round(time.Second), s.Grants, s.Ports)
	}
	row("hotplug", "%s", command.OrNone(s.Hotplug))
	row("script", "%s", command.OrNone(s.Script))
	row("mac", "%s", command.OrNone(s.MAC))
	row("bridge", "%s", command.OrNone(s.Bridge))
	if s.Interface != "" {
		row("interface", "%s, %s, carrier %s", s.Interface, command.UpDown(s.Up), command.OnOff(s.Carrier))
		if s.Network != "" {
			row("network", "another network namespace, %s", s.Network)
		}
		row("mtu", "%s", mtus(s))
	}
	row("rate", "%s", s.Rate)
	if s.Weight > 1 {
		row("weight", "%d", s.Weight)
	}
	row("features", "%s", command.OrNone(strings.Join(s.Features, " ")))
	if s.Headroom != 0 {
		row("xdp headroom", "%d bytes", s.Headroom)
	}
	row("work", "%s", work(&s.Guest))
	if len(s.Mcast) > 0 {
		row("multicast", "%s", strings.Join(s.Mcast, " "))
	}
	if c := s.Control; c != nil {
		row("control ring", "%s", controlRing(c))
		row("hashing", "%s", hashing(c))
		for i, line := range mapping(c) {
			label := "hash mapping"
			if i > 0 {
				label = ""
			}
			row(label, "%s", line)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if err := writeQueues(w, s); err != nil {
		return err
	}
	if err := writeStatic(w, s); err != nil {
		return err
	}
	return writeCounterTable(w, s.Counters)
}

// work describes the work outside of the data path that a guest has caused.
func work(u *budget.Used) string {
	text := fmt.Sprintf("for all vifs of the guest: %d requests to xenstored, %d host calls of %d ms, %d messages to the service manager, %d on control rings",
		u.Requests, u.Calls, u.Blocked, u.Messages, u.Control)
	if u.Delayed+u.Cut > 0 {
		text += fmt.Sprintf("; beyond its budget: %d looks delayed, %d log lines cut", u.Delayed, u.Cut)
	}
	return text
}

// hideKey removes the guest's hash key, which is a secret.
func hideKey(s *vif.Status) {
	if s.Control != nil {
		s.Control.Key = ""
	}
}

// controlRing describes the control ring.
func controlRing(c *ctrlserver.Status) string {
	text := fmt.Sprintf("%s, %d messages, %d refused", command.OrNone(c.Protocol), c.Messages, c.Refused)
	if c.Error != "" {
		text += ", out of use: " + c.Error
	}
	return text
}

// hashing describes the guest's hash configuration.
func hashing(c *ctrlserver.Status) string {
	key := "empty"
	switch {
	case c.Key != "":
		key = c.Key
	case c.KeyBytes > 0:
		key = fmt.Sprintf("of %d bytes (--key shows it)", c.KeyBytes)
	}
	types := strings.Join(c.Types, " ")
	if c.Algorithm == "none" || types == "" {
		return fmt.Sprintf("off: algorithm %s, types %s, key %s", c.Algorithm, cmp.Or(types, "none"), key)
	}
	return fmt.Sprintf("%s of %s, key %s, queues chosen by %s", c.Algorithm, types, key, c.Steering)
}

// mappingRow is the number of entries printed in one line.
const mappingRow = 32

// mapping formats the hash mapping table, in lines.
func mapping(c *ctrlserver.Status) []string {
	if len(c.Mapping) == 0 {
		return []string{"hash modulo queues"}
	}
	lines := []string{fmt.Sprintf("%d entries:", len(c.Mapping))}
	if len(c.Mapping) <= mappingRow {
		lines[0] += " " + numbers(c.Mapping)
		return lines
	}
	for part := range slices.Chunk(c.Mapping, mappingRow) {
		lines = append(lines, numbers(part))
	}
	return lines
}

func numbers(list []uint16) string { return strings.Trim(fmt.Sprint(list), "[]") }

// writeStatic prints the static grants of each queue, if the guest may have any.
func writeStatic(w io.Writer, s *vif.Status) error {
	if !slices.ContainsFunc(s.Queues, func(q vif.QueueStatus) bool { return q.StaticMax > 0 }) {
		return nil
	}
	fmt.Fprintln(w)
	t := command.Table(w)
	fmt.Fprintln(t, "QUEUE\tSTATIC GRANTS\tOF\tIN USE\tHITS\tMISSES")
	for i := range s.Queues {
		q := &s.Queues[i]
		fmt.Fprintf(t, "%d\t%d\t%d\t%d\t%d\t%d\n", i, q.Static, q.StaticMax, q.StaticInUse,
			q.Counters["static_hits"], q.Counters["static_misses"])
	}
	return t.Flush()
}

// mtus prints the three MTUs, which should be equal.
func mtus(s *vif.Status) string {
	text := fmt.Sprintf("interface %d, guest %d", s.MTU, s.GuestMTU)
	if s.ConfigMTU != 0 {
		text += fmt.Sprintf(", configured %d", s.ConfigMTU)
	}
	if s.MTU != s.GuestMTU || s.ConfigMTU != 0 && s.ConfigMTU != s.MTU {
		text += " (they differ)"
	}
	return text
}

// owes returns the side that a queue waits for.
func owes(q *vif.QueueStatus) string {
	switch {
	case q.Held > 0 || q.Stalled:
		return "guest: rx slots"
	case q.RateWaiting:
		return "rate limit"
	case q.Tx.Pending() > 0:
		return "netbackd: tx"
	}
	return "-"
}

func writeQueues(w io.Writer, s *vif.Status) error {
	if len(s.Queues) == 0 {
		return nil
	}
	fmt.Fprintln(w)
	t := command.Table(w)
	fmt.Fprintln(t, "QUEUE\tWORKER\tTX PKTS\tRX PKTS\tTX PENDING\tRX SLOTS FREE\tHELD\tOWES\tSYSCALLS/PKT\tGRANT OPS/PKT\tEVENTS/PKT")
	for i := range s.Queues {
		q := &s.Queues[i]
		n := q.Counters["tx_packets"] + q.Counters["rx_packets"]
		fmt.Fprintf(t, "%d\t%d\t%d\t%d\t%d\t%d\t%d\t%s\t%s\t%s\t%s\n", i, q.Worker,
			q.Counters["tx_packets"], q.Counters["rx_packets"],
			q.Tx.Pending(), q.Rx.Pending(), q.Held, owes(q),
			command.Ratio(q.Counters["syscalls"], n), command.Ratio(q.Counters["grant_ops"], n), command.Ratio(q.Counters["notifies"], n))
	}
	return t.Flush()
}
