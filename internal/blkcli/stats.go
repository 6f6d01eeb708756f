// SPDX-License-Identifier: Apache-2.0

package blkcli

import (
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"github.com/netbackd/netbackd/internal/blkcontrol"
	"github.com/netbackd/netbackd/internal/blkplane"
	"github.com/netbackd/netbackd/internal/command"
)

func newStatsCmd() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "stats [VBD]",
		Short: "Print the counters of one disk, or of each",
		Long: `Stats prints the counters of one disk, with their meaning, or those of all disks, in lines
of name, counter and value. They only grow, also over reconnects.

With --json it prints {"schema":1,"stats":{"vbd-3-51712":{"reads":1,...}}}.`,
		Example:           "  blkbackd stats 3/xvda\n  blkbackd stats --json",
		Args:              command.Args(cobra.MaximumNArgs(1)),
		ValidArgsFunction: completeVbd,
		RunE: func(c *cobra.Command, a []string) error {
			client := blkcontrol.NewClient(command.SocketPath(c))
			defer client.Close()
			all, err := stats(c, client, a)
			switch {
			case err != nil:
				return err
			case asJSON:
				return command.WriteJSON(c.OutOrStdout(), all)
			case len(a) > 0:
				for _, counters := range all.Stats {
					return writeCounters(c.OutOrStdout(), counters)
				}
			}
			return writeStats(c.OutOrStdout(), all)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// counted is the output of stats --json.
type counted struct {
	Schema int                          `json:"schema"`
	Stats  map[string]map[string]uint64 `json:"stats"`
	names  []string                     // in order
}

// stats asks for the counters of the named vbd, or of all that are served.
func stats(c *cobra.Command, client *blkcontrol.Client, names []string) (counted, error) {
	all := counted{Schema: blkcontrol.Schema, Stats: map[string]map[string]uint64{}}
	if len(names) > 0 {
		s, err := client.Vbd(c.Context(), names[0], 0)
		all.Stats[s.Name] = s.Counters
		return all, err
	}
	list, err := client.Vbds(c.Context())
	for i := range list {
		if s := &list[i]; s.ServedBy == "" {
			all.Stats[s.Name] = s.Counters
			all.names = append(all.names, s.Name)
		}
	}
	return all, err
}

// writeStats prints the counters that are not 0, one in a line.
func writeStats(w io.Writer, all counted) error {
	t := command.Table(w)
	for _, name := range all.names {
		for _, c := range blkplane.Counters {
			if n := all.Stats[name][c.Name]; n != 0 {
				fmt.Fprintf(t, "%s\t%s\t%d\n", name, c.Name, n)
			}
		}
	}
	return t.Flush()
}

// writeCounters prints the counters that are not 0, with their meaning.
func writeCounters(w io.Writer, counters map[string]uint64) error {
	if !slices.ContainsFunc(blkplane.Counters[:], func(c blkplane.CounterInfo) bool { return counters[c.Name] != 0 }) {
		return nil
	}
	fmt.Fprintln(w)
	t := command.Table(w)
	fmt.Fprintln(t, "COUNTER\tVALUE\tMEANING")
	for _, c := range blkplane.Counters {
		if n := counters[c.Name]; n != 0 {
			name := c.Name
			if c.Kind == blkplane.Failure {
				name = "failed " + name
			}
			fmt.Fprintf(t, "%s\t%d\t%s\n", name, n, c.Help)
		}
	}
	return t.Flush()
}

// failures sums the counters of requests that were not answered with OKAY.
func failures(counters map[string]uint64) (n uint64) {
	for _, c := range blkplane.Counters {
		if c.Kind == blkplane.Failure {
			n += counters[c.Name]
		}
	}
	return n
}
