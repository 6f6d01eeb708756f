// SPDX-License-Identifier: Apache-2.0

// Package command holds the common part of the programs' command lines: the root command,
// mistakes in a call and their exit codes, tables, the version, and the report of check.
//
// It must not know what the commands do.
package command

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
	"github.com/netbackd/netbackd/internal/logsink"
)

// Exit codes besides 0 and 1.
const (
	ExitUsage      = 2
	ExitNotRunning = 3
	ExitNotFound   = 4
)

// errorTimeout bounds the time that a command waits at its end for the reader of its error.
const errorTimeout = 2 * time.Second

// stderr is the file that errors are written to.
const stderr = 2

// Main runs the command that the process's arguments name, and ends the process if the
// command fails. Errors are printed after the name of the program.
func Main(program control.Program, root *cobra.Command) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := root.ExecuteContext(ctx); err != nil {
		logsink.Last(stderr, errorTimeout, "%s: %v\n", program, err)
		os.Exit(ExitCode(err))
	}
}

// usageError is a mistake in the call of a command.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// UsageError marks err as a mistake in the call of a command, for the exit code.
func UsageError(err error) error { return usageError{err} }

// Usagef makes a usage error.
func Usagef(format string, a ...any) error { return usageError{fmt.Errorf(format, a...)} }

// ExitCode returns the exit code for the error of a command.
func ExitCode(err error) int {
	var usage usageError
	switch {
	case errors.As(err, &usage):
		return ExitUsage
	case errors.Is(err, control.ErrNotRunning):
		return ExitNotRunning
	case errors.Is(err, control.ErrNotFound):
		return ExitNotFound
	}
	return 1
}

// NewRoot makes a root command without commands, with the flag --run-dir.
func NewRoot(program control.Program, short, long, runDir string) *cobra.Command {
	root := &cobra.Command{
		Use: string(program), Short: short, Long: long,
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
		return Usagef("%w; see `%s --help`", err, c.CommandPath())
	})
	root.PersistentFlags().String("run-dir", runDir, "directory of the control socket and the journals")
	return root
}

func unknownCommand(root *cobra.Command, name string) error {
	hint := ""
	if like := root.SuggestionsFor(name); len(like) > 0 {
		hint = fmt.Sprintf(" (did you mean %s?)", strings.Join(like, " or "))
	}
	return fmt.Errorf("unknown command %q%s; see `%s --help`", name, hint, root.Name())
}

// RunDir returns the directory of the control socket.
func RunDir(c *cobra.Command) string {
	dir, _ := c.Flags().GetString("run-dir")
	return dir
}

// SocketPath returns the path of the daemon's control socket.
func SocketPath(c *cobra.Command) string { return SocketIn(RunDir(c)) }

// SocketIn returns the path of the control socket of the daemon with a run directory.
func SocketIn(runDir string) string { return runDir + "/control.sock" }

// Args makes a check of arguments return a usage error.
func Args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(c *cobra.Command, a []string) error {
		if err := check(c, a); err != nil {
			return Usagef("%w; see `%s --help`", err, c.CommandPath())
		}
		return nil
	}
}
