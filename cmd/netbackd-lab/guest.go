// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"flag"
	"os"

	"github.com/spf13/cobra"

	"github.com/netbackd/netbackd/internal/command"
	"github.com/netbackd/netbackd/internal/lab/guest"
)

// newGuestCmd returns the command of the agent that plays a guest, on the embedded Xen or
// inside a guest of a real one.
func newGuestCmd() *cobra.Command {
	c := &cobra.Command{
		Use:                "guest",
		Short:              "Play a guest's network driver",
		Hidden:             true,
		DisableFlagParsing: true, // the agent parses its own flags
		RunE: func(c *cobra.Command, a []string) error {
			cfg, err := guest.ParseArgs(a, c.ErrOrStderr())
			if errors.Is(err, flag.ErrHelp) {
				return nil
			}
			if err != nil {
				return command.UsageError(err)
			}
			return guest.Main(c.Context(), cfg, os.Stdin, os.Stdout)
		},
	}
	c.AddCommand(newGuestScriptCmd(), newGuestUmpireCmd(), newGuestXDPCmd())
	return c
}
