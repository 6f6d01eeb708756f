// SPDX-License-Identifier: Apache-2.0

// Package blkcli holds the commands of blkbackd, one file per command: `blkbackd run`, which
// is the daemon, and the commands that administer it.
//
// Command blkbackd is this package on a real Xen. Command blkbackd-lab, for tests and the
// demo, is the same package on an embedded Xen. Their Openers differ.
package blkcli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/netbackd/netbackd/internal/blkcontrol"
	"github.com/netbackd/netbackd/internal/blkengine"
	"github.com/netbackd/netbackd/internal/blkplane"
	"github.com/netbackd/netbackd/internal/command"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// Host opens the interfaces of the Xen that the daemon serves.
type Host interface {
	// Guest returns what opens the devices for one domain.
	Guest(domid xen.Domid) blkplane.Host

	// DialStore connects to xenstore.
	DialStore(context.Context) (*xenstore.Client, error)

	// Real reports whether the kernel may serve vbds here as well.
	Real() bool

	blkengine.Opener

	Close() error
}

// Adopter makes Xen's devices of the files of another process.
type Adopter interface {
	blkengine.Adopter
	// Calls are system calls that the devices make, beside those of a real Xen.
	Calls() []uintptr
	// Traced reports whether the Xen reads the memory of its processes by ptrace.
	Traced() bool
}

// Opener opens the Xen whose devices are in a directory.
type Opener func(dir string) (Host, error)

// defaultRunDir holds the control socket and the journals.
const defaultRunDir = "/run/blkbackd"

// Steps ends a process at a step of its queues, for tests. It is empty in the installed program.
type Steps struct {
	// At returns [blkplane.Options.AtStep]. The process that serves disks calls it once, before it
	// is confined. nil: nothing is called.
	At func() (func(step string), error)
	// Env has the names of variables of the environment that a disk process gets for At.
	Env []string
}

// at returns [blkplane.Options.AtStep].
func (s *Steps) at() (func(step string), error) {
	if s.At == nil {
		return nil, nil
	}
	return s.At()
}

// New makes blkbackd's commands. The daemon serves the Xen that open opens, whose files adopter
// adopts in a disk process.
func New(open Opener, adopter Adopter, steps Steps) *cobra.Command {
	root := command.NewRoot(blkcontrol.Program, "Xen block back end in userspace",
		`blkbackd serves disks (vbds) of Xen guests from files and block devices, in userspace.

In dom0, or in a driver domain, "blkbackd run" serves the disks whose configuration has
script=block-blkbackd. Other back ends may serve other disks beside it.`, defaultRunDir)
	root.AddCommand(
		newRunCmd(open, steps), newListCmd(), newShowCmd(), newStatsCmd(), newResetCmd(), newResizeCmd(),
		newCheckCmd(), newHotplugCmd(), newDiskProcessCmd(adopter, steps),
		command.NewVersionCmd(blkcontrol.Program),
	)
	return root
}
