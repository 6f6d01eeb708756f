// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/netbackd/netbackd/internal/handover"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

func newAdoptCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "adopt VIF",
		Short: "Take a running guest's vif from the kernel's xen-netback",
		Long: `Adopt takes a vif from the kernel's xen-netback while its guest uses it, and puts
netbackd's TAP where the kernel's interface was: same name, address, MTU and place in
the bridge. The guest stays connected, with the same rings. Connections go on.

What the guest sends meanwhile waits in its rings: none of it is lost. What comes for
it in that time is lost, and counted. Not counted are packets that the kernel held
back because the guest had given it no buffers.

An interface that is no port of a plain Linux bridge gets its place by running the
vif's hotplug script again, which takes longer.

It refuses where the guest would lose what it told the kernel and tells once only: a
hash configuration by its control ring (Windows). An XDP program that the guest has
attached goes on.

It holds until the guest is destroyed, saved or migrated; for ever it is
script=vif-netbackd in the guest's config. "netbackd release" is the way back.`,
		Example:           "  netbackd adopt vif3.0",
		Args:              Args(cobra.ExactArgs(1)),
		ValidArgsFunction: completeVif,
		RunE: func(c *cobra.Command, a []string) error {
			return withMover(c, a[0], func(m *handover.Mover, id xenbus.VifID) error {
				r, err := m.Adopt(c.Context(), id)
				if err != nil {
					return err
				}
				return writeReport(c.OutOrStdout(), id.String()+" is netbackd's", r)
			})
		},
	}
}

// writeReport says what moving a vif took.
func writeReport(w io.Writer, what string, r handover.Report) error {
	lost := "packets that came for the guest meanwhile were lost and could not be counted"
	if r.Lost >= 0 {
		atLeast := ""
		if r.AtLeast {
			atLeast = "at least "
		}
		lost = fmt.Sprintf("%s%d packets to the guest lost", atLeast, r.Lost)
	}
	how := "its place was copied"
	if r.Script {
		how = "its script was run"
	}
	_, err := fmt.Fprintf(w, "%s: %v without service, %s, none from the guest (%s)\n", what, r.Gap.Round(time.Millisecond), lost, how)
	return err
}
