// SPDX-License-Identifier: Apache-2.0

package blkcli

import (
	"context"
	"errors"
	"os"

	"github.com/spf13/cobra"

	"github.com/netbackd/netbackd/internal/blkcontrol"
	"github.com/netbackd/netbackd/internal/blkhotplug"
	"github.com/netbackd/netbackd/internal/command"
	"github.com/netbackd/netbackd/internal/xendriver"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

func newHotplugCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "hotplug add|remove [VBD]",
		Short: "Make blkbackd serve a new disk, for hotplug scripts",
		Long: `The hotplug script block-blkbackd calls hotplug with its own argument. "add" takes a disk
that the toolstack has just made from the kernel's xen-blkback, if that has taken it, and
returns when blkbackd has opened the file or device. "remove" does nothing: blkbackd closes
a disk by itself.

VBD is a name such as vbd-3-51712, or domain and name in the guest, such as 3/xvda; by
default it is that of $XENBUS_PATH. The reason for a failure is also written to the disk's
node hotplug-error, which xl prints.`,
		Example:   "  blkbackd hotplug add 3/xvda",
		Args:      command.Args(cobra.RangeArgs(1, 2)),
		ValidArgs: []string{"add", "remove"},
		RunE: func(c *cobra.Command, a []string) error {
			name := os.Getenv("XENBUS_PATH")
			if len(a) > 1 {
				name = a[1]
			}
			switch {
			case a[0] != "add" && a[0] != "remove":
				return command.Usagef("hotplug wants add or remove, not %q; see `%s --help`", a[0], c.CommandPath())
			case name == "":
				return command.Usagef("hotplug wants the name of a vbd, or $XENBUS_PATH")
			case a[0] == "remove":
				return nil
			}
			return plug(c, name)
		},
	}
}

// plug makes blkbackd serve the vbd of that name.
func plug(c *cobra.Command, name string) (err error) {
	id, err := blkhotplug.ParseID(name)
	if err != nil {
		return command.UsageError(err)
	}
	store, err := xenstore.Open(c.Context())
	if err != nil {
		return err
	}
	client := blkcontrol.NewClient(command.SocketPath(c))
	defer func() {
		client.Close()
		err = errors.Join(err, store.Close())
	}()
	p := &blkhotplug.Plugger{Kernel: xendriver.New("/sys", xendriver.Blkback), Daemon: client, Store: store}
	if err := p.Add(c.Context(), id); err != nil {
		// The toolstack wants the reason even if it was an interrupt.
		return errors.Join(err, p.Fail(context.WithoutCancel(c.Context()), id, err))
	}
	return nil
}
