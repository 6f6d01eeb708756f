// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"github.com/spf13/cobra"

	"github.com/netbackd/netbackd/internal/handover"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

func newReleaseCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "release VIF",
		Short: "Give a running guest's vif back to the kernel's xen-netback",
		Long: `Release is the inverse of adopt: the kernel's xen-netback goes on with the rings
of a guest that uses them, and its interface gets the place that netbackd's TAP had.

Packets that come for the guest meanwhile, or wait in netbackd for it, are lost and
counted; none that it sends is.

The driver must be loaded. To load it while netbackd serves vifs, its probing has to
be off, or it cuts off all their guests:

  ` + handover.SafeLoad + `

Release refuses where the kernel would close the vif, because its guest has more
queues than the driver takes. And it refuses where the guest would lose what it says
only once: which multicast it wants, since the kernel would not know and drop all of
it, and what it settled by a control ring.`,
		Example:           "  netbackd release vif3.0",
		Args:              Args(cobra.ExactArgs(1)),
		ValidArgsFunction: completeVif,
		RunE: func(c *cobra.Command, a []string) error {
			return withMover(c, a[0], func(m *handover.Mover, id xenbus.VifID) error {
				r, err := m.Release(c.Context(), id)
				if err != nil {
					return err
				}
				return writeReport(c.OutOrStdout(), id.String()+" is the kernel's", r)
			})
		},
	}
}
