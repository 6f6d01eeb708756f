// SPDX-License-Identifier: Apache-2.0

// Package cli holds the commands of netbackd, one file per command: `netbackd run`, which is
// the daemon, and the commands that administer it.
//
// Command netbackd is this package on a real Xen. Command netbackd-lab, for tests and the
// demo, is the same package on an embedded Xen. Their Openers differ.
package cli

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
	"github.com/netbackd/netbackd/internal/vif"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// Host opens the interfaces of the Xen that the daemon serves.
type Host interface {
	vif.Host

	// DialStore connects to xenstore.
	DialStore(context.Context) (*xenstore.Client, error)

	// Real reports whether the kernel may serve vifs here as well.
	Real() bool

	Close() error
}

// Opener opens the Xen whose devices are in a directory.
type Opener func(dir string) (Host, error)

// Exit codes besides 0 and 1.
const (
	exitUsage      = 2
	exitNotRunning = 3
	exitNoVif      = 4
)

// errorTimeout bounds the time that a command waits at its end for the reader of its error.
const errorTimeout = 2 * time.Second

// defaultRunDir holds the control socket and the journals.
const defaultRunDir = "/run/netbackd"

// Main runs the command that the process's arguments name, and ends the process if the
// command fails.
func Main(root *cobra.Command) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := root.ExecuteContext(ctx); err != nil {
		logsink.Last(stderr, errorTimeout, "netbackd: %v\n", err)
		os.Exit(exitCode(err))
	}
}

// usageError is a mistake in the call of a command.
type usageError struct{ error }

// UsageError marks err as a mistake in the call of a command, for the exit code.
func UsageError(err error) error { return usageError{err} }

func exitCode(err error) int {
	var usage usageError
	switch {
	case errors.As(err, &usage):
		return exitUsage
	case errors.Is(err, control.ErrNotRunning):
		return exitNotRunning
	case errors.Is(err, control.ErrNotFound), errors.Is(err, handover.ErrNoVif):
		return exitNoVif
	}
	return 1
}

// New makes netbackd's commands. The daemon serves the Xen that open opens.
func New(open Opener) *cobra.Command {
	root := &cobra.Command{
		Use:   "netbackd",
		Short: "Xen network back end in userspace",
		Long: `netbackd serves the network devices (vifs) of Xen guests from userspace.

In dom0, or in a driver domain, "netbackd run" takes the place of the kernel's
xen-netback. On any host "netbackd vhost-user" serves a virtio network device.`,
		SilenceUsage:      true,
		SilenceErrors:     true,
		DisableAutoGenTag: true,

		Args: cobra.ArbitraryArgs, // cobra's own error is not a usageError
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
		newRunCmd(open), newListCmd(), newShowCmd(), newResetCmd(),
		newVhostUserCmd(), newCheckCmd(), newHotplugCmd(), newAdoptCmd(), newReleaseCmd(),
		newVersionCmd(),
	)
	return root
}

func unknownCommand(root *cobra.Command, name string) error {
	hint := ""
	if like := root.SuggestionsFor(name); len(like) > 0 {
		hint = fmt.Sprintf(" (did you mean %s?)", strings.Join(like, " or "))
	}
	return fmt.Errorf("unknown command %q%s; see `%s --help`", name, hint, root.Name())
}

// SocketPath returns the path of the daemon's control socket.
func SocketPath(c *cobra.Command) string {
	dir, _ := c.Flags().GetString("run-dir")
	return dir + "/control.sock"
}

// Args makes a check of arguments return a usage error.
func Args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(c *cobra.Command, a []string) error {
		if err := check(c, a); err != nil {
			return usageError{fmt.Errorf("%w; see `%s --help`", err, c.CommandPath())}
		}
		return nil
	}
}
