// SPDX-License-Identifier: Apache-2.0

// Command blkbackd-lab is blkbackd for machines without Xen. It has all of blkbackd's
// commands, with a daemon that serves guests of an embedded Xen, and commands for the embedded
// Xen, the guests and the demo. Tests use it, also inside the guests of a real Xen. It is not
// installed.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/blkcli"
	"github.com/netbackd/netbackd/internal/blkcontrol"
	"github.com/netbackd/netbackd/internal/blkplane"
	"github.com/netbackd/netbackd/internal/command"
	"github.com/netbackd/netbackd/internal/host/blkhost"
	"github.com/netbackd/netbackd/internal/lab"
	"github.com/netbackd/netbackd/internal/lab/blkguest"
	"github.com/netbackd/netbackd/internal/lab/blklab"
	"github.com/netbackd/netbackd/internal/lab/simblkhost"
	"github.com/netbackd/netbackd/internal/lab/systrace"
	"github.com/netbackd/netbackd/internal/lab/xensim"
)

func main() {
	systrace.Enter()
	lab.Session()
	command.Main(blkcontrol.Program, newRoot())
}

func newRoot() *cobra.Command {
	root := blkcli.New(open, adopter{}, blkcli.Steps{At: blklab.AtStep, Env: []string{blklab.KillEnv}})
	root.Use = "blkbackd-lab"
	root.Short = "blkbackd with an embedded Xen, for tests and the demo"
	root.Long = `blkbackd-lab is blkbackd with an embedded Xen and guests for it.

"blkbackd-lab demo" shows blkbackd at work on any Linux. "blkbackd-lab run" and the commands
below that are not described as parts of the lab are those of blkbackd.`
	root.AddCommand(newDemoCmd(), newSimCmd(), newGuestCmd())
	return root
}

// open opens the embedded Xen whose sockets are in dir, or a real one if there are none.
func open(dir string) (blkcli.Host, error) {
	if _, err := os.Stat(filepath.Join(dir, simblkhost.Socket)); err == nil {
		return simblkhost.Open(dir)
	}
	return blkhost.Open(dir)
}

// adopter adopts files of the embedded Xen, which are sockets, and of a real one.
type adopter struct{ simblkhost.Adopter }

// Grants implements [blkengine.Adopter].
func (adopter) Grants(fd int) (blkplane.Grants, error) { return of(fd).Grants(fd) }

// Events implements [blkengine.Adopter].
func (adopter) Events(fds []int) blkplane.Events { return of(fds[0]).Events(fds) }

// of returns the adopter for a file.
func of(fd int) blkcli.Adopter {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err == nil && st.Mode&unix.S_IFMT == unix.S_IFSOCK {
		return simblkhost.Adopter{}
	}
	return blkhost.Adopter{}
}

// newSimCmd returns the command that runs the embedded Xen as a process.
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
				Ready: func() { fmt.Fprintln(c.OutOrStdout(), "ready") },
			})
		},
	}
	c.Flags().StringVar(&dir, "dir", "", "directory of the sockets")
	_ = c.MarkFlagRequired("dir")
	return c
}

// newGuestCmd returns the command of the agent that plays a guest, on the embedded Xen or
// inside a guest of a real one.
func newGuestCmd() *cobra.Command {
	return &cobra.Command{
		Use:                "guest",
		Short:              "Play a guest's block driver",
		Hidden:             true,
		DisableFlagParsing: true, // the agent parses its own flags
		RunE: func(c *cobra.Command, a []string) error {
			cfg, err := blkguest.ParseArgs(a, c.ErrOrStderr())
			if errors.Is(err, flag.ErrHelp) {
				return nil
			}
			if err != nil {
				return command.UsageError(err)
			}
			return blkguest.Main(c.Context(), cfg, os.Stdin, os.Stdout)
		},
	}
}
