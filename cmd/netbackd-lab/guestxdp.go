// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/netbackd/netbackd/internal/command"
	"github.com/netbackd/netbackd/internal/lab/guest"
)

// newGuestXDPCmd returns the command that attaches an XDP program to an interface of a
// guest, with any driver.
func newGuestXDPCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "xdp INTERFACE pass|drop|ip|echo|redirect [TO]",
		Short: "Attach an XDP program to an interface until interrupted",
		Args:  command.Args(cobra.RangeArgs(2, 3)),
		RunE: func(c *cobra.Command, a []string) error {
			to := ""
			if len(a) == 3 {
				to = a[2]
			}
			x, err := guest.AttachXDP(a[0], a[1], to)
			if err != nil {
				return err
			}
			fmt.Fprintln(c.OutOrStdout(), "attached")
			<-c.Context().Done()
			return x.Close()
		},
	}
}
