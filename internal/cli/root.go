// SPDX-License-Identifier: Apache-2.0

// Package cli holds the commands of netbackd, one file per command: `netbackd run`, which is
// the daemon, and the commands that administer it.
//
// Command netbackd is this package on a real Xen. Command netbackd-lab, for tests and the
// demo, is the same package on an embedded Xen. Their Openers differ.
package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/netbackd/netbackd/internal/command"
	"github.com/netbackd/netbackd/internal/host"
	"github.com/netbackd/netbackd/internal/netcontrol"
	"github.com/netbackd/netbackd/internal/netengine"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// Host opens the interfaces of the Xen that the daemon serves.
type Host interface {
	netengine.Host
	netengine.Opener

	// DialStore connects to xenstore.
	DialStore(context.Context) (*xenstore.Client, error)

	// OpenOwnPages opens the device for pages that this domain grants to itself.
	OpenOwnPages() (*host.OwnPages, error)

	// Real reports whether the kernel may serve vifs here as well.
	Real() bool

	Close() error
}

// Opener opens the Xen whose devices are in a directory.
type Opener func(dir string) (Host, error)

// defaultRunDir holds the control socket and the journals.
const defaultRunDir = "/run/netbackd"

// New makes netbackd's commands. The daemon serves the Xen that open opens, and its packet
// processes that of adopter.
func New(open Opener, adopter Adopter) *cobra.Command {
	root := command.NewRoot(netcontrol.Program, "Xen network back end in userspace",
		`netbackd serves the network devices (vifs) of Xen guests from userspace.

In dom0, or in a driver domain, "netbackd run" takes the place of the kernel's
xen-netback. On any host "netbackd vhost-user" serves a virtio network device.`, defaultRunDir)
	root.AddCommand(
		newRunCmd(open), newPacketProcessCmd(adopter), newListCmd(), newShowCmd(), newResetCmd(),
		newVhostUserCmd(), newCheckCmd(), newHotplugCmd(), newAdoptCmd(), newReleaseCmd(),
		command.NewVersionCmd(netcontrol.Program),
	)
	return root
}
