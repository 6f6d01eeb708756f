// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"os"

	"github.com/spf13/cobra"

	"github.com/netbackd/netbackd/internal/command"
	"github.com/netbackd/netbackd/internal/handover"
	"github.com/netbackd/netbackd/internal/netcontrol"
	"github.com/netbackd/netbackd/internal/xennetback"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

func newHotplugCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "hotplug [VIF]",
		Short: "Make netbackd serve a new vif, for hotplug scripts",
		Long: `The hotplug script vif-netbackd calls hotplug before it calls the stock script.
Hotplug adopts a vif that the toolstack has just made, if the kernel's xen-netback has
taken it, and returns when netbackd has made its TAP.

VIF is a name such as vif3.0, by default that of $XENBUS_PATH. The reason for a failure
is also written to the vif's node hotplug-error, which xl prints.`,
		Example: "  netbackd hotplug vif3.0",
		Args:    command.Args(cobra.MaximumNArgs(1)),
		RunE: func(c *cobra.Command, a []string) error {
			name := os.Getenv("XENBUS_PATH")
			if len(a) > 0 {
				name = a[0]
			}
			if name == "" {
				return command.Usagef("hotplug wants the name of a vif, or $XENBUS_PATH")
			}
			return withMover(c, name, func(m *handover.Mover, id xenbus.VifID) error {
				err := m.Hotplug(c.Context(), id)
				if err != nil {
					// The toolstack wants the reason even if it was an interrupt.
					err = errors.Join(err, m.Fail(context.WithoutCancel(c.Context()), id, err))
				}
				return err
			})
		},
	}
}

// withMover calls f with a Mover and the vif of that name.
func withMover(c *cobra.Command, name string, f func(*handover.Mover, xenbus.VifID) error) (err error) {
	id, err := handover.ParseID(name)
	if err != nil {
		return command.UsageError(err)
	}
	store, err := xenstore.Open(c.Context())
	if err != nil {
		return err
	}
	client := netcontrol.NewClient(command.SocketPath(c))
	defer func() {
		client.Close()
		err = errors.Join(err, store.Close())
	}()
	return f(&handover.Mover{Kernel: xennetback.New("/sys"), Daemon: client, Store: handover.NewStore(store)}, id)
}
