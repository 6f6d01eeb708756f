// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"github.com/spf13/cobra"

	"github.com/netbackd/netbackd/internal/command"
	"github.com/netbackd/netbackd/internal/handover"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

func newReleaseCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "release VIF",
		Short: "Give a running guest's vif back to the kernel's xen-netback",
		Long: `Release undoes adopt: the kernel's xen-netback continues with the rings of a guest
while the guest uses them, and its interface gets the settings of netbackd's TAP.

Packets to the guest in that time, and those that wait for it in netbackd, are lost and
counted. No packet from the guest is lost.

The driver must be loaded. While netbackd serves vifs, load it with its probing off, or
it cuts off their guests:

  ` + handover.SafeLoad + `

Release refuses if the guest has more queues than the driver takes, because the driver
would close the vif. It also refuses if the guest has made settings that it makes only
once: a multicast list, without which the driver drops all multicast, or settings over
a control ring.`,
		Example:           "  netbackd release vif3.0",
		Args:              command.Args(cobra.ExactArgs(1)),
		ValidArgsFunction: completeVif,
		RunE: func(c *cobra.Command, a []string) error {
			return withMover(c, a[0], func(m *handover.Mover, id xenbus.VifID) error {
				r, err := m.Release(c.Context(), id)
				if err != nil {
					return err
				}
				return writeReport(c.OutOrStdout(), "the kernel serves "+id.String(), r)
			})
		},
	}
}
