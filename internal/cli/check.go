// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/netbackd/netbackd/internal/command"
	"github.com/netbackd/netbackd/internal/confine"
	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/hostcheck"
	"github.com/netbackd/netbackd/internal/netcheck"
	"github.com/netbackd/netbackd/internal/netcontrol"
	"github.com/netbackd/netbackd/internal/steer"
	"github.com/netbackd/netbackd/pkg/tap"
)

func newCheckCmd() *cobra.Command {
	var asJSON, perVif bool
	c := &cobra.Command{
		Use:   "check",
		Short: "Tell whether this host is ready for netbackd",
		Long: `Check checks everything that netbackd needs of a host. It also looks for the kernel's
xen-netback, which cannot serve the same vifs. It changes nothing. Each line is ok, a
note, or a problem. Below a note or a problem is the command that repairs it, if any.

With --per-vif the kernel's driver is expected, and netbackd is to serve only vifs with
script=vif-netbackd.

With --json it prints {"schema":1,"ready":true,"checks":[{"name","level","text",
"fix"}]}. The exit code is 0 if there is no problem, 1 otherwise.`,
		Example: "  netbackd check\n  netbackd check --per-vif --json",
		Args:    command.Args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			h := thisHost(command.SocketPath(c))
			h.PerVif = perVif
			return command.Report(c, h.Run(c.Context()), asJSON)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().BoolVar(&perVif, "per-vif", false, "expect xen-netback to serve vifs without script=vif-netbackd")
	return c
}

// thisHost returns the machine that the command runs on.
func thisHost(socket string) *netcheck.Host {
	ask := func(ctx context.Context) (netcontrol.Daemon, error) {
		client := netcontrol.NewClient(socket)
		defer client.Close()
		return client.Daemon(ctx)
	}
	return &netcheck.Host{
		Machine: hostcheck.This("netbackd", command.Version(), func(ctx context.Context) (string, error) {
			d, err := ask(ctx)
			return d.Version, err
		}),
		OwnPages: func(ctx context.Context) int {
			workers := runtime.NumCPU()
			ctx, cancel := context.WithTimeout(ctx, hostcheck.AnswerTimeout)
			defer cancel()
			if d, err := ask(ctx); err == nil {
				workers = d.Workers
			}
			return workers * dataplane.MaxOwnPages
		},
		Priority: func(ctx context.Context) string {
			ctx, cancel := context.WithTimeout(ctx, hostcheck.AnswerTimeout)
			defer cancel()
			d, err := ask(ctx)
			if err != nil {
				return "" // another item has it
			}
			return d.Denied
		},
		Steering: steer.Probe,
		Confined: confine.Supported,
		MultiTAP: func() error { return tap.Probe(tap.MultiQueue) },
	}
}
