// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/netbackd/netbackd/internal/command"
	"github.com/netbackd/netbackd/internal/lab/blkdemo"
)

func newDemoCmd() *cobra.Command {
	var o blkdemo.Options
	c := &cobra.Command{
		Use:   "demo",
		Short: "Show blkbackd at work, without Xen",
		Long: `Demo starts an embedded Xen, blkbackd and a guest, writes the guest's disk, kills the
daemon in the middle of writes and flushes, checks every byte, and prints what requests
cost. Nothing is left behind. It fails if anything was lost.

It needs no rights.`,
		Args: command.Args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			exe, err := os.Executable()
			if err != nil {
				return err
			}
			o.Exe, o.Out = exe, c.OutOrStdout()
			return blkdemo.Run(c.Context(), o)
		},
	}
	c.Flags().StringVar(&o.Dir, "dir", "", "`directory` for the file of the disk; empty: a temporary one")
	c.Flags().DurationVar(&o.Stretch, "stretch", 300*time.Millisecond, "how long each measurement runs")
	c.Flags().StringSliceVar(&o.Daemon, "daemon", nil, "more arguments for blkbackd run, such as --daemon=--io-uring=false")
	return c
}
