// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"os"

	"github.com/spf13/cobra"

	"github.com/netbackd/netbackd/internal/control"
	"github.com/netbackd/netbackd/internal/handover"
	"github.com/netbackd/netbackd/internal/xennetback"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

func newHotplugCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "hotplug [VIF]",
		Short: "Have netbackd serve a new vif (for hotplug scripts)",
		Long: `Hotplug is what the hotplug script vif-netbackd calls before it goes on with the
stock script: it takes a vif that the toolstack has just made from the kernel's
xen-netback, if that has it, and returns when netbackd has made its TAP.

VIF is a name such as vif3.0; without it $XENBUS_PATH says which. When it fails the
reason is also in the vif's node hotplug-error, which xl prints.`,
		Args: Args(cobra.MaximumNArgs(1)),
		RunE: func(c *cobra.Command, a []string) error {
			name := os.Getenv("XENBUS_PATH")
			if len(a) > 0 {
				name = a[0]
			}
			if name == "" {
				return usageError{errors.New("hotplug wants the name of a vif, or $XENBUS_PATH")}
			}
			return withMover(c, name, func(m *handover.Mover, id xenbus.VifID) error {
				err := m.Hotplug(c.Context(), id)
				if err != nil {
					err = errors.Join(err, m.Fail(id, err))
				}
				return err
			})
		},
	}
}

// withMover calls f with what it takes to move the vif of that name.
func withMover(c *cobra.Command, name string, f func(*handover.Mover, xenbus.VifID) error) (err error) {
	id, err := handover.ParseID(name)
	if err != nil {
		return usageError{err}
	}
	store, err := xenstore.Open()
	if err != nil {
		return err
	}
	client := control.NewClient(SocketPath(c))
	defer func() {
		client.Close()
		err = errors.Join(err, store.Close())
	}()
	return f(&handover.Mover{Kernel: xennetback.New("/sys"), Daemon: client, Store: handover.NewStore(store)}, id)
}
