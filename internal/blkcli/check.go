// SPDX-License-Identifier: Apache-2.0

package blkcli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/netbackd/netbackd/internal/blkcheck"
	"github.com/netbackd/netbackd/internal/blkcontrol"
	"github.com/netbackd/netbackd/internal/command"
	"github.com/netbackd/netbackd/internal/hostcheck"
)

func newCheckCmd() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "check [DIRECTORY...]",
		Short: "Tell whether this host is ready for blkbackd",
		Long: `Check checks everything that blkbackd needs of a host. It changes nothing. Each line is ok,
a note, or a problem. Below a note or a problem is the command that repairs it, if any.

DIRECTORY is where disks of guests are stored. There it makes a small file, tries locks,
O_DIRECT and discard with it, and removes it.

With --json it prints {"schema":1,"ready":true,"checks":[{"name","level","text",
"fix"}]}. The exit code is 0 if there is no problem, 1 otherwise.`,
		Example: "  blkbackd check\n  blkbackd check /srv/xen --json",
		RunE: func(c *cobra.Command, dirs []string) error {
			h := thisHost(command.SocketPath(c))
			h.Stores = dirs
			return command.Report(c, h.Run(c.Context()), asJSON)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// thisHost returns the machine that the command runs on.
func thisHost(socket string) *blkcheck.Host {
	return &blkcheck.Host{
		Machine: hostcheck.This(string(blkcontrol.Program), command.Version(), func(ctx context.Context) (string, error) {
			client := blkcontrol.NewClient(socket)
			defer client.Close()
			d, err := client.Daemon(ctx)
			return d.Version, err
		}),
		Store: blkcheck.TryStore,
		Limit: blkcheck.Limit,
	}
}
