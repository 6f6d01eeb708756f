// SPDX-License-Identifier: Apache-2.0

package blkcli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/netbackd/netbackd/internal/blkcontrol"
	"github.com/netbackd/netbackd/internal/command"
)

func newResetCmd() *cobra.Command {
	c := oneVbd("reset VBD", func(client *blkcontrol.Client) func(context.Context, string) error { return client.Reset })
	c.Short = "End the quarantine of a disk, and open its file again"
	c.Long = `Reset ends the quarantine of a disk and connects it to its guest's rings. A guest that
breaks the protocol again is quarantined again. It also makes blkbackd try at once to open a
file that it could not open.`
	c.Example = "  blkbackd reset 3/xvda"
	return c
}

func newResizeCmd() *cobra.Command {
	c := oneVbd("resize VBD", func(client *blkcontrol.Client) func(context.Context, string) error { return client.Resize })
	c.Short = "Tell a guest the present size of its disk"
	c.Long = `Resize reads the size of a file or block device again and tells the guest if it has
changed. blkbackd does the same by itself every second.`
	c.Example = "  truncate -s 20G /srv/guest.img && blkbackd resize 3/xvda"
	return c
}

// oneVbd makes a command that does one thing with one vbd.
func oneVbd(use string, do func(*blkcontrol.Client) func(context.Context, string) error) *cobra.Command {
	return &cobra.Command{
		Use:               use,
		Args:              command.Args(cobra.ExactArgs(1)),
		ValidArgsFunction: completeVbd,
		RunE: func(c *cobra.Command, a []string) error {
			client := blkcontrol.NewClient(command.SocketPath(c))
			defer client.Close()
			return do(client)(c.Context(), a[0])
		},
	}
}
