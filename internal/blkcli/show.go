// SPDX-License-Identifier: Apache-2.0

package blkcli

import (
	"cmp"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/netbackd/netbackd/internal/blkcontrol"
	"github.com/netbackd/netbackd/internal/command"
	"github.com/netbackd/netbackd/internal/vbd"
)

func newShowCmd() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "show [VBD]",
		Short: "Show everything about one disk, or about the daemon",
		Long: `Show prints everything that the daemon knows about one disk. VBD is its name, such as
vbd-3-51712, or its domain and its name in the guest, such as 3/xvda. Without VBD it prints
the status of the daemon.

With --json it prints one object. Field names are stable within a schema.`,
		Example: "  blkbackd show 3/xvda\n  blkbackd show --json",
		Args:    command.Args(cobra.MaximumNArgs(1)),

		ValidArgsFunction: completeVbd,
		RunE: func(c *cobra.Command, a []string) error {
			client := blkcontrol.NewClient(command.SocketPath(c))
			defer client.Close()
			if len(a) == 0 {
				return showDaemon(c, client, asJSON)
			}
			s, err := client.Vbd(c.Context(), a[0], 0)
			switch {
			case err != nil:
				return err
			case asJSON:
				return command.WriteJSON(c.OutOrStdout(), s)
			}
			return writeShow(c.OutOrStdout(), &s, time.Now())
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// showDaemon prints the status of the daemon.
func showDaemon(c *cobra.Command, client *blkcontrol.Client, asJSON bool) error {
	d, err := client.Daemon(c.Context())
	switch {
	case err != nil:
		return err
	case asJSON:
		return command.WriteJSON(c.OutOrStdout(), d)
	}
	return writeDaemon(c.OutOrStdout(), &d, time.Now())
}

// completeVbd completes the name of a vbd.
func completeVbd(c *cobra.Command, a []string, _ string) (names []string, _ cobra.ShellCompDirective) {
	if len(a) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	client := blkcontrol.NewClient(command.SocketPath(c))
	defer client.Close()
	names, _ = client.Names(c.Context())
	return names, cobra.ShellCompDirectiveNoFileComp
}

// writeDaemon prints the status of the daemon.
func writeDaemon(w io.Writer, d *blkcontrol.Daemon, now time.Time) error {
	t := command.Table(w)
	row := func(k, format string, v ...any) { fmt.Fprintf(t, "%s\t%s\n", k, fmt.Sprintf(format, v...)) }
	row("blkbackd", "%s, process %d, started %v ago", d.Version, d.PID, now.Sub(d.Since).Round(time.Second))
	row("io_uring", "%s", d.Uring)
	row("cache", "%s", d.Cache)
	row("offers", "%s for each disk, %d segments for each request, persistent grants %s",
		plural(d.MaxQueues, "queue"), max(d.MaxSegments, 11), command.OnOff(d.Persistent))
	row("of a guest", "at most %d disks, and %s bytes in flight", d.MaxVbds, command.Size(uint64(d.GuestMemory)))
	row("queues", "%d, at most %d", d.Queues, d.AllQueues)
	row("mapped", "%d pages by persistent grants, at most %d", d.Maps, d.MaxMaps)
	row("threads", "%d, at most %d", d.Threads, d.MaxThreads)
	row("log", "%d lines lost", d.LogLost)
	if d.Isolation != "" {
		row("isolate", "%s", d.Isolation)
	}
	for i := range d.Processes {
		row("disk process", "%s", processRow(&d.Processes[i]))
	}
	return t.Flush()
}

// processRow describes a disk process.
func processRow(p *blkcontrol.DiskProcess) string {
	text := fmt.Sprintf("%s: process %d, %s, io_uring %s, %s", p.For, p.PID, plural(p.Vbds, "vbd"), command.OrNone(p.Uring), plural(p.Restarts, "restart"))
	if p.LastDeath != "" {
		text += ", the last one because " + p.LastDeath
	}
	return text
}

// writeShow prints one vbd.
func writeShow(w io.Writer, s *vbd.Status, now time.Time) error {
	t := command.Table(w)
	row := func(k, format string, v ...any) { fmt.Fprintf(t, "%s\t%s\n", k, fmt.Sprintf(format, v...)) }
	row("vbd", "%s (domain %d, %s)", s.Name, s.Domid, s.Vdev)
	if s.ServedBy != "" {
		row("state", "%s: %s", shownState(s), note(s))
		return t.Flush()
	}
	row("state", "%s, frontend %v, online %t", shownState(s), s.Frontend, s.Online)
	if s.Quarantine != "" {
		row("quarantine", "%s (`blkbackd reset %s` lets it try again)", s.Quarantine, s.Name)
	}
	if s.Error != "" {
		row("last error", "%s", s.Error)
	}
	if s.Waits != "" {
		row("waits for", "%s", s.Waits)
	}
	row("hotplug", "%s", command.OrNone(s.Hotplug))
	row("weight", "%d", max(s.Weight, 1))
	row("script", "%s", command.OrNone(s.Script))
	row("disk", "%s", describeDisk(&s.Disk))
	if s.Disk.Open {
		row("size", "%d sectors of 512 bytes, %s bytes; sectors of %d, physical %d", s.Disk.Sectors, diskSize(&s.Disk), s.Disk.SectorSize, s.Disk.PhysicalSize)
		row("cache", "%s", cache(&s.Disk))
		row("discard", "%s", discard(&s.Disk))
	}
	if c := s.Connection; c != nil {
		row("connected", "%v ago, %s, rings of %s, requests of up to %d segments", now.Sub(c.Since).Round(time.Second),
			c.Protocol, plural(1<<c.RingOrder, "page"), c.MaxSegments)
		row("persistent", "grants %s", command.OnOff(c.Persistent))
		row("restart", "%s", restart(c))
		if c.Ending {
			row("ends", "it waits for its disk")
		}
		if c.DiskError != "" {
			row("disk error", "%s", c.DiskError)
		}
	}
	row("work", "for all vbds of the guest: %d requests to xenstored, %d host calls of %d ms", s.Guest.Requests, s.Guest.Calls, s.Guest.Blocked)
	if err := t.Flush(); err != nil {
		return err
	}
	if err := writeQueues(w, s); err != nil {
		return err
	}
	return writeCounters(w, s.Counters)
}

// describeDisk describes the file or device.
func describeDisk(d *vbd.DiskStatus) string {
	text := command.OrNone(d.Path) + ", "
	if d.Open {
		text += d.Kind.String()
	} else {
		text += "not open"
	}
	switch {
	case d.CDROM:
		text += ", a CD-ROM"
	case d.ReadOnly:
		text += ", read-only"
	}
	return text
}

// cache describes the use of the page cache.
func cache(d *vbd.DiskStatus) string {
	switch {
	case d.Direct:
		return "direct, without the host's page cache"
	case d.Buffered != "":
		return "writeback: " + d.Buffered
	}
	return "writeback, through the host's page cache"
}

// discard describes the discards of a disk.
func discard(d *vbd.DiskStatus) string {
	if !d.Discard {
		return "off"
	}
	return fmt.Sprintf("on, in units of %d bytes", d.Granularity)
}

// restart describes the effect of a restart of the daemon on a connection.
func restart(c *vbd.ConnStatus) string {
	text := "a successor goes on from the journal"
	if !c.Journal {
		text = "no journal: a successor makes the guest connect again"
	}
	if c.Adopted {
		text += "; this one has succeeded another"
	}
	return text
}

// writeQueues prints the queues of a connected vbd.
func writeQueues(w io.Writer, s *vbd.Status) error {
	if s.Connection == nil || len(s.Connection.Queues) == 0 {
		return nil
	}
	fmt.Fprintln(w)
	t := command.Table(w)
	fmt.Fprintln(t, "QUEUE\tI/O\tSLOTS\tPENDING\tIN FLIGHT\tWAITING\tAT DISK\tBYTES\tMAPPED\tREQUESTS\tSEGMENTS/REQ\tSYSCALLS/REQ\tGRANT OPS/REQ\tEVENTS/REQ\tOWES")
	for i := range s.Connection.Queues {
		q := &s.Connection.Queues[i]
		n := requests(q.Counters)
		io := "threads"
		if q.IOUring {
			io = "io_uring"
		}
		fmt.Fprintf(t, "%d\t%s\t%d\t%d\t%d\t%d\t%d\t%s\t%d\t%d\t%s\t%s\t%s\t%s\t%s\n", i, io, q.Slots,
			uint32(q.Ring.ReqProd-q.Ring.ReqCons), q.InFlight, q.Waiting, q.Operations, command.Size(uint64(max(q.Bytes, 0))), q.Persistent, n,
			command.Ratio(q.Counters["segments"], n), command.Ratio(q.Counters["syscalls"], n),
			command.Ratio(q.Counters["grant_ops"], n), command.Ratio(q.Counters["notifies"], n), owes(q))
	}
	return t.Flush()
}

// requests sums the counters of requests that were started.
func requests(counters map[string]uint64) (n uint64) {
	for _, name := range []string{"reads", "writes", "flushes", "barriers", "discards", "secure_discards"} {
		n += counters[name]
	}
	return n
}

// owes returns the side that a queue waits for.
func owes(q *vbd.QueueStatus) string {
	return cmp.Or(
		when(q.Held, "the host's kernel: its thread does not come back"),
		when(q.Broken, "guest: to connect again"),
		when(q.Memory, "memory"),
		when(q.Operations > 0, "disk"),
		when(q.Waiting > 0 || q.Ring.ReqProd != q.Ring.ReqCons, "blkbackd"),
		"-",
	)
}

// when returns text if is holds, else nothing.
func when(is bool, text string) string {
	if is {
		return text
	}
	return ""
}
