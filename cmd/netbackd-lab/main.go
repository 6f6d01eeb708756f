// SPDX-License-Identifier: Apache-2.0

// Command netbackd-lab is netbackd for machines without Xen. It has all of netbackd's
// commands, with a daemon that serves guests of an embedded Xen, and commands for the
// embedded Xen, the guests, the players of scripts, and the demo. Tests use it, also inside
// the guests of a real Xen. It is not installed.
package main

import (
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/cli"
	"github.com/netbackd/netbackd/internal/command"
	"github.com/netbackd/netbackd/internal/host"
	"github.com/netbackd/netbackd/internal/host/nethost"
	"github.com/netbackd/netbackd/internal/lab/simhost"
	"github.com/netbackd/netbackd/internal/lab/systrace"
	"github.com/netbackd/netbackd/internal/netcontrol"
	"github.com/netbackd/netbackd/internal/netengine"
)

func main() {
	systrace.Enter()
	command.Main(netcontrol.Program, newRoot())
}

func newRoot() *cobra.Command {
	root := cli.New(open, adopter{})
	root.Use = "netbackd-lab"
	root.Short = "netbackd with an embedded Xen, for tests and the demo"
	root.Long = `netbackd-lab is netbackd with an embedded Xen and guests for it.

"netbackd-lab demo" shows netbackd at work on any Linux. "netbackd-lab run" and the
commands below that are not described as parts of the lab are those of netbackd.`
	root.AddCommand(newDemoCmd(), newSimCmd(), newGuestCmd(), newVirtioCmd())
	return root
}

// open opens the embedded Xen whose sockets are in dir, or a real one if there are none.
func open(dir string) (cli.Host, error) {
	if _, err := os.Stat(filepath.Join(dir, simhost.Socket)); err == nil {
		return simhost.Open(dir)
	}
	return nethost.Open(dir)
}

// adopter adopts files of the embedded Xen, which are sockets, and of a real one.
type adopter struct{ simhost.Adopter }

// Grants implements [netengine.Adopter].
func (a adopter) Grants(fd int) (netengine.GrantDevice, error) { return of(fd).Grants(fd) }

// Events implements [netengine.Adopter].
func (a adopter) Events(fds []int) netengine.Events { return of(fds[0]).Events(fds) }

// Pages implements [netengine.Adopter].
func (a adopter) Pages(fd int) host.PageDevice { return of(fd).Pages(fd) }

// of returns the adopter for a file.
func of(fd int) cli.Adopter {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err == nil && st.Mode&unix.S_IFMT == unix.S_IFSOCK {
		return simhost.Adopter{}
	}
	return nethost.Adopter{}
}
