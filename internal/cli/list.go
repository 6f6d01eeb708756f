// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/netbackd/netbackd/internal/command"
	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/netcontrol"
	"github.com/netbackd/netbackd/internal/vhostnet"
	"github.com/netbackd/netbackd/internal/vif"
)

func newListCmd() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the vifs and the vhost-user devices",
		Long: `List prints one line per vif: state, queues, features in use, traffic, drops, and its
error, if any, or the side that it waits for. Devices of vhost-user follow, which have no
domain. They are listed without a daemon as well.

With --json it prints {"schema":1,"vifs":[...],"vhost_user":[...]}, each as in "show --json".`,
		Example: "  netbackd list\n  netbackd list --json | jq '.vifs[] | {name, state}'",
		Args:    command.Args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			if asJSON {
				return listJSON(c)
			}
			vifs, devices, err := vifsAndDevices(c, (*netcontrol.Client).Lines)
			if err != nil {
				return err
			}
			return writeList(c.OutOrStdout(), vifs, devices)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// listJSON prints the whole status of all.
func listJSON(c *cobra.Command) error {
	vifs, devices, err := vifsAndDevices(c, (*netcontrol.Client).Vifs)
	if err != nil {
		return err
	}
	for i := range vifs {
		hideKey(&vifs[i])
	}
	return command.WriteJSON(c.OutOrStdout(), listed{netcontrol.Vifs{Schema: netcontrol.Schema, Vifs: vifs}, devices})
}

// listed is the output of list --json.
type listed struct {
	netcontrol.Vifs
	Devices []vhostnet.Status `json:"vhost_user"`
}

// writeList prints the table of vifs and devices.
func writeList(w io.Writer, vifs []vif.Line, devices []vhostnet.Status) error {
	if len(vifs)+len(devices) == 0 {
		_, err := fmt.Fprintln(w, "no vifs")
		return err
	}
	t := command.Table(w)
	fmt.Fprintln(t, "VIF\tDOMID\tSTATE\tQUEUES\tFEATURES\tTX PKTS\tTX BYTES\tRX PKTS\tRX BYTES\tDROPS\tNOTE")
	for i := range vifs {
		s := &vifs[i]
		fmt.Fprintf(t, "%s\t%d\t%s\t%d\t%s\t%d\t%s\t%d\t%s\t%d\t%s\n",
			s.Name, s.Domid, shownState(s), len(s.Queues), shortFeatures(s.Features),
			s.Counters["tx_packets"], command.Size(s.Counters["tx_bytes"]),
			s.Counters["rx_packets"], command.Size(s.Counters["rx_bytes"]),
			drops(s.Counters), note(s))
	}
	for i := range devices {
		writeDeviceRow(t, &devices[i])
	}
	return t.Flush()
}

// shownState returns the state, or a condition that matters more.
func shownState(s *vif.Line) string {
	switch {
	case s.ServedBy != "":
		return s.ServedBy
	case s.Quarantine != "":
		return "quarantine"
	case s.Stalled:
		return "stalled"
	}
	return s.State.String()
}

// note returns the error of a vif, or the side that it waits for.
func note(s *vif.Line) string {
	switch {
	case s.ServedBy == "kernel":
		return "served by xen-netback; `netbackd adopt " + s.Name + "` moves it"
	case s.ServedBy != "":
		return "no back end serves it; `netbackd adopt " + s.Name + "` does"
	case s.Quarantine != "":
		return s.Quarantine
	case s.Error != "":
		return s.Error
	case s.Waits != "":
		return "waits for " + s.Waits
	}
	return "-"
}

// shortFeatures abbreviates a list of features.
func shortFeatures(names []string) string {
	if len(names) == 0 {
		return "-"
	}
	var short []string
	has := map[string]bool{}
	for _, n := range names {
		has[n] = true
	}
	if has["sg"] {
		short = append(short, "sg")
	}
	for _, f := range []string{"gso", "csum"} {
		v := ""
		if has[f+"-tcpv4"] || has[f+"-ipv4"] {
			v += "4"
		}
		if has[f+"-tcpv6"] || has[f+"-ipv6"] {
			v += "6"
		}
		if v != "" {
			short = append(short, f+v)
		}
	}
	if has["multicast-control"] {
		short = append(short, "mcast")
	}
	if len(short) == 0 {
		return "-"
	}
	return strings.Join(short, ",")
}

// drops sums the counters of dropped packets.
func drops(counters map[string]uint64) (n uint64) {
	for _, c := range dataplane.Counters {
		if c.Kind == dataplane.Drop {
			n += counters[c.Name]
		}
	}
	return n
}
