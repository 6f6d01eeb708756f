// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/netbackd/netbackd/internal/command"
	"github.com/netbackd/netbackd/internal/handover"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

func newAdoptCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "adopt VIF",
		Short: "Take a running guest's vif from the kernel's xen-netback",
		Long: `Adopt takes a vif from the kernel's xen-netback while its guest uses it, and gives
netbackd's TAP the name, address, MTU and bridge port settings of the kernel's
interface. The guest stays connected, with the same rings.

Packets that the guest sends meanwhile wait in its rings, and none is lost. Packets to
the guest are lost in that time, and counted. Packets that the kernel held because the
guest had no free rx slots are lost and not counted.

For an interface that is not a port of a plain Linux bridge adopt runs the vif's
hotplug script again, which takes longer.

Adopt refuses if the guest has configured hashing over its control ring (Windows),
because the guest would not do so again. An XDP program of the guest continues.

An adoption lasts until the guest is destroyed, saved or migrated. For a permanent one
write script=vif-netbackd into the guest's config. "netbackd release" undoes it.`,
		Example:           "  netbackd adopt vif3.0",
		Args:              command.Args(cobra.ExactArgs(1)),
		ValidArgsFunction: completeVif,
		RunE: func(c *cobra.Command, a []string) error {
			return withMover(c, a[0], func(m *handover.Mover, id xenbus.VifID) error {
				r, err := m.Adopt(c.Context(), id)
				if err != nil {
					return err
				}
				return writeReport(c.OutOrStdout(), "netbackd serves "+id.String(), r)
			})
		},
	}
}

// writeReport prints the cost of moving a vif.
func writeReport(w io.Writer, what string, r handover.Report) error {
	lost := "packets to the guest were lost and could not be counted"
	if r.Lost >= 0 {
		atLeast := ""
		if r.AtLeast {
			atLeast = "at least "
		}
		lost = fmt.Sprintf("%s%d packets to the guest lost", atLeast, r.Lost)
	}
	how := "interface settings copied"
	if r.Script {
		how = "hotplug script run"
	}
	_, err := fmt.Fprintf(w, "%s: %v without service, %s, none from the guest (%s)\n", what, r.Gap.Round(time.Millisecond), lost, how)
	return err
}
