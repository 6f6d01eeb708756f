// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/netbackd/netbackd/internal/command"
	"github.com/netbackd/netbackd/internal/lab/demo"
	"github.com/netbackd/netbackd/internal/lab/netns"
)

func newDemoCmd() *cobra.Command {
	var o demo.Options
	c := &cobra.Command{
		Use:   "demo",
		Short: "Show netbackd at work, without Xen",
		Long: `Demo sets up an embedded Xen, netbackd and three guests in a private network of
this machine, sends real traffic between guests and host, checks every byte,
and prints what it cost. Nothing outside of that network is touched, and nothing
is left behind. It fails if anything was lost.

It needs to make network namespaces and to open /dev/net/tun: run it as root, or
as a user who may do both.`,
		Args: command.Args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			// Starts the program again, in namespaces of its own.
			if code, done := netns.Enter(); done {
				os.Exit(code)
			}
			if err := netns.Available(); err != nil {
				return err
			}
			if err := netns.CheckTUN(); err != nil {
				return err
			}
			if o.Queues < 1 || o.Queues > 8 {
				return command.UsageError(fmt.Errorf("--queues is %d, want 1 to 8", o.Queues))
			}
			exe, err := os.Executable()
			if err != nil {
				return err
			}
			o.Exe, o.Out = exe, c.OutOrStdout()
			return demo.Run(c.Context(), o)
		},
	}
	c.Flags().IntVar(&o.Queues, "queues", 4, "queues of each guest")
	c.Flags().DurationVar(&o.Stretch, "stretch", time.Second, "how long each TCP stream runs")
	c.Flags().StringSliceVar(&o.Daemon, "daemon", nil, "more arguments for netbackd run, such as --daemon=--io-uring=false")
	return c
}
