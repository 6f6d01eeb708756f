// SPDX-License-Identifier: Apache-2.0

// Command netbackd is a Xen network back end in userspace, and the commands to
// look after it. See `netbackd help`.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/netbackd/netbackd/internal/control"
	"github.com/netbackd/netbackd/internal/handover"
	"github.com/netbackd/netbackd/internal/logsink"
)

// Exit codes besides 0 and 1.
const (
	exitUsage      = 2
	exitNotRunning = 3
	exitNoVif      = 4
)

// lastWords bounds how long a command waits, at its end, for the reader of its error.
const lastWords = 2 * time.Second

// defaultRunDir is where the control socket and the journals are.
const defaultRunDir = "/run/netbackd"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := newRoot().ExecuteContext(ctx); err != nil {
		logsink.Last(stderr, lastWords, "netbackd: %v\n", err)
		os.Exit(exitCode(err))
	}
}

// usageError is a mistake in how the command was called.
type usageError struct{ error }

func exitCode(err error) int {
	var usage usageError
	switch {
	case errors.As(err, &usage):
		return exitUsage
	case errors.Is(err, control.ErrNotRunning):
		return exitNotRunning
	case errors.Is(err, errNoVif), errors.Is(err, control.ErrNotFound), errors.Is(err, handover.ErrNoVif):
		return exitNoVif
	}
	return 1
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "netbackd",
		Short: "Xen network back end in userspace",
		Long: `netbackd serves the network devices (vifs) of Xen guests from userspace.

In dom0, or in a driver domain, "netbackd run" takes the place of the kernel's
xen-netback. "netbackd demo" shows it at work on any Linux, without Xen.`,
		SilenceUsage:      true,
		SilenceErrors:     true,
		DisableAutoGenTag: true,

		Args: cobra.ArbitraryArgs, // cobra's own error is no usageError
		RunE: func(c *cobra.Command, a []string) error {
			if len(a) == 0 {
				return c.Help()
			}
			return usageError{unknownCommand(c, a[0])}
		},
		DisableFlagsInUseLine:      true, // there is nothing to do without a command
		SuggestionsMinimumDistance: 2,
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; see `%s --help`", err, c.CommandPath())}
	})
	root.PersistentFlags().String("run-dir", defaultRunDir, "directory of the control socket and the journals")
	root.AddCommand(
		newRunCmd(), newListCmd(), newShowCmd(), newResetCmd(),
		newCheckCmd(), newHotplugCmd(), newAdoptCmd(), newReleaseCmd(),
		newDemoCmd(), newVersionCmd(), newSimCmd(), newGuestCmd(),
	)
	return root
}

func unknownCommand(root *cobra.Command, name string) error {
	hint := ""
	if like := root.SuggestionsFor(name); len(like) > 0 {
		hint = fmt.Sprintf(" (did you mean %s?)", strings.Join(like, " or "))
	}
	return fmt.Errorf("unknown command %q%s; see `netbackd --help`", name, hint)
}

// socketPath is where the daemon answers.
func socketPath(c *cobra.Command) string {
	dir, _ := c.Flags().GetString("run-dir")
	return dir + "/control.sock"
}

// args turns cobra's complaint about arguments into a usage error.
func args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(c *cobra.Command, a []string) error {
		if err := check(c, a); err != nil {
			return usageError{fmt.Errorf("%w; see `%s --help`", err, c.CommandPath())}
		}
		return nil
	}
}
