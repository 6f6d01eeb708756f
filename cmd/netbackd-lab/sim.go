// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/netbackd/netbackd/internal/command"
	"github.com/netbackd/netbackd/internal/lab/xensim"
	"github.com/netbackd/netbackd/internal/lab/xensim/wire"
)

// dom0Pages is the number of pages that dom0 may grant, enough for the own pages of some
// workers.
const dom0Pages = 8192

// newSimCmd returns the command that runs the embedded Xen as a process, for demo and tests.
func newSimCmd() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:    "sim",
		Short:  "Run an embedded Xen",
		Long:   `Sim plays hypervisor and xenstored for the processes that join it in --dir. It prints "ready" when they can.`,
		Hidden: true,
		Args:   command.Args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			return xensim.Run(c.Context(), dir, xensim.Options{
				Dom0:  wire.DomainConfig{GntallocLimit: dom0Pages},
				Ready: func() { fmt.Fprintln(c.OutOrStdout(), "ready") },
			})
		},
	}
	c.Flags().StringVar(&dir, "dir", "", "directory of the sockets")
	_ = c.MarkFlagRequired("dir")
	return c
}
