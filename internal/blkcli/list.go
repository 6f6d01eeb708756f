// SPDX-License-Identifier: Apache-2.0

package blkcli

import (
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/netbackd/netbackd/internal/blkcontrol"
	"github.com/netbackd/netbackd/internal/command"
	"github.com/netbackd/netbackd/internal/vbd"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

func newListCmd() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the disks",
		Long: `List prints one line per disk: state, name in the guest, queues, size, traffic, the file
or device, and its error, if any, or the side that it waits for. Disks that other back ends
serve are listed as well.

With --json it prints {"schema":1,"vbds":[...]}, each as in "show --json".`,
		Example: "  blkbackd list\n  blkbackd list --json | jq '.vbds[] | {name, state}'",
		Args:    command.Args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			client := blkcontrol.NewClient(command.SocketPath(c))
			defer client.Close()
			vbds, err := client.Vbds(c.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return command.WriteJSON(c.OutOrStdout(), blkcontrol.Vbds{Schema: blkcontrol.Schema, Vbds: vbds})
			}
			return writeList(c.OutOrStdout(), vbds)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// writeList prints the table of vbds.
func writeList(w io.Writer, vbds []vbd.Status) error {
	if len(vbds) == 0 {
		_, err := fmt.Fprintln(w, "no vbds")
		return err
	}
	t := command.Table(w)
	fmt.Fprintln(t, "VBD\tDOMID\tVDEV\tSTATE\tQUEUES\tMODE\tSIZE\tREADS\tREAD BYTES\tWRITES\tWRITE BYTES\tFAILED\tPATH\tNOTE")
	for i := range vbds {
		s := &vbds[i]
		queues := 0
		if s.Connection != nil {
			queues = len(s.Connection.Queues)
		}
		fmt.Fprintf(t, "%s\t%d\t%s\t%s\t%d\t%s\t%s\t%d\t%s\t%d\t%s\t%d\t%s\t%s\n",
			s.Name, s.Domid, s.Vdev, shownState(s), queues, mode(&s.Disk), diskSize(&s.Disk),
			s.Counters["reads"], command.Size(s.Counters["read_bytes"]),
			s.Counters["writes"], command.Size(s.Counters["write_bytes"]),
			failures(s.Counters), command.OrNone(s.Disk.Path), note(s))
	}
	return t.Flush()
}

// shownState returns the state, or a condition that matters more.
func shownState(s *vbd.Status) string {
	switch {
	case s.ServedBy != "":
		return s.ServedBy
	case s.Quarantine != "":
		return "quarantine"
	}
	return s.State.String()
}

// note returns the error of a vbd, or the side that it waits for.
func note(s *vbd.Status) string {
	switch {
	case s.Quarantine != "":
		return s.Quarantine
	case s.Error != "":
		return s.Error
	case s.ServedBy == "kernel":
		return "served by xen-blkback"
	case s.ServedBy == "other":
		return "its script is not block-blkbackd"
	case s.ServedBy != "":
		return "no back end serves it; `blkbackd hotplug add " + s.Name + "` does"
	case s.Connection != nil && s.Connection.DiskError != "":
		return s.Connection.DiskError
	case s.Waits != "":
		return "waits for " + s.Waits
	case s.State == xenbus.Unknown:
		return "begins"
	}
	return "-"
}

// mode describes the guest's access to the disk.
func mode(d *vbd.DiskStatus) string {
	switch {
	case d.CDROM:
		return "cdrom"
	case d.ReadOnly:
		return "r"
	case d.Path == "":
		return "-"
	}
	return "w"
}

// diskSize formats the size of an open disk.
func diskSize(d *vbd.DiskStatus) string {
	if !d.Open {
		return "-"
	}
	return command.Size(d.Sectors * 512)
}

// plural returns a number with a noun.
func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return strconv.Itoa(n) + " " + noun + "s"
}
