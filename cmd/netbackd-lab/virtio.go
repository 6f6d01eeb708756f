// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/netbackd/netbackd/internal/command"
	"github.com/netbackd/netbackd/internal/lab/virtfront"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// newVirtioCmd returns the commands that play a virtio network driver and its front end.
func newVirtioCmd() *cobra.Command {
	c := &cobra.Command{
		Use:    "virtio",
		Short:  "Play the guest's side of a vhost-user network device",
		Hidden: true,
	}
	c.AddCommand(newVirtioGuestCmd(), newVirtioFrontCmd(), newVirtioPlainCmd(), newVirtioLayoutCmd(), newVirtioPeerCmd(), newVirtioEchoCmd())
	return c
}

// driverFlags adds the flags of a driver.
func driverFlags(c *cobra.Command, g *virtfront.GuestConfig) {
	c.Flags().IntVar(&g.Size, "size", 128, "descriptors of each ring")
	c.Flags().IntVar(&g.MaxFrame, "max-frame", 9014, "largest frame in `bytes`")
	for _, f := range []struct {
		name string
		bit  uint64
	}{{"event-idx", virtfront.FeatureEventIdx}, {"packed", virtfront.FeaturePacked}} {
		c.Flags().BoolFunc(f.name, "use this feature", func(string) error {
			g.Features |= f.bit
			return nil
		})
	}
}

// newVirtioGuestCmd returns the command that runs inside a guest of a real Xen.
func newVirtioGuestCmd() *cobra.Command {
	var g virtfront.GuestConfig
	c := &cobra.Command{
		Use:   "guest",
		Short: "Play the driver in a guest; commands come from standard input",
		Args:  command.Args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			return virtfront.RunGuest(c.Context(), g, c.InOrStdin(), c.OutOrStdout())
		},
	}
	driverFlags(c, &g)
	c.Flags().BoolVar(&g.Foreign, "foreign", false, "use pages that are not granted; not in a PV guest")
	return c
}

// newVirtioFrontCmd returns the command that runs in dom0.
func newVirtioFrontCmd() *cobra.Command {
	var f virtfront.FrontConfig
	c := &cobra.Command{
		Use:   "front --socket PATH --domid N --flags F",
		Short: "Hand the rings of a guest over to a back end",
		Args:  command.Args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			return virtfront.RunFront(c.Context(), f, c.OutOrStdout())
		},
	}
	c.Flags().StringVar(&f.Socket, "socket", "", "`path` of the back end's socket")
	c.Flags().Uint16Var((*uint16)(&f.Domid), "domid", 0, "`number` of the guest's domain")
	c.Flags().Uint32Var(&f.Flags, "flags", 2, "flags of the regions: 1 foreign, 2 granted, 0xa and 0x102 not in advance")
	c.Flags().BoolVar(&f.Parts, "parts", false, "a region for each part of a ring")
	c.Flags().Uint16Var((*uint16)(&f.Restrict), "restrict", 0, "restrict privcmd to the domain with this `number`")
	c.Flags().Uint16Var((*uint16)(&f.RegionDomid), "region-domid", 0, "`number` of the domain in the regions")
	c.Flags().Uint64Var(&f.Beyond, "beyond", 0, "make the last region longer by `bytes` that the guest does not share")
	return c
}

// newVirtioLayoutCmd returns the command that prints what a guest has published, for other
// front ends.
func newVirtioLayoutCmd() *cobra.Command {
	var domid xen.Domid
	c := &cobra.Command{
		Use:   "layout --domid N",
		Short: "Print where a guest has its rings and buffers",
		Args:  command.Args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) (err error) {
			store, err := xenstore.Open(c.Context())
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, store.Close()) }()
			l, err := virtfront.ReadLayout(c.Context(), store, domid)
			if err != nil {
				return err
			}
			return l.Print(c.OutOrStdout())
		},
	}
	c.Flags().Uint16Var((*uint16)(&domid), "domid", 0, "`number` of the guest's domain")
	return c
}

// newVirtioPlainCmd returns the command that is guest and front end in one process.
func newVirtioPlainCmd() *cobra.Command {
	var g virtfront.GuestConfig
	var socket string
	c := &cobra.Command{
		Use:   "plain --socket PATH",
		Short: "Play driver and front end with shared memory; commands come from standard input",
		Args:  command.Args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			return virtfront.RunPlain(c.Context(), socket, g, c.InOrStdin(), c.OutOrStdout())
		},
	}
	driverFlags(c, &g)
	c.Flags().StringVar(&socket, "socket", "", "`path` of the back end's socket")
	return c
}

// newVirtioPeerCmd returns the command that plays the host behind a TAP.
func newVirtioPeerCmd() *cobra.Command {
	var p virtfront.PeerConfig
	c := &cobra.Command{
		Use:   "peer --device NAME",
		Short: "Send frames to the guest and check its answers",
		Args:  command.Args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			if p.Window < 1 {
				return command.UsageError(fmt.Errorf("--window is %d, want at least 1", p.Window))
			}
			return virtfront.RunPeer(c.Context(), p, c.OutOrStdout())
		},
	}
	c.Flags().StringVar(&p.Device, "device", "", "`name` of the network interface")
	c.Flags().Uint64Var(&p.Count, "count", 1000, "number of frames")
	c.Flags().Uint64Var(&p.Window, "window", 16, "how many frames may be under way")
	c.Flags().Uint64Var(&p.Loss, "loss", 0, "how many frames may get no answer")
	c.Flags().IntVar(&p.MaxFrame, "max-frame", 9014, "largest frame in `bytes`")
	return c
}

// newVirtioEchoCmd returns the command that is a back end without a network.
func newVirtioEchoCmd() *cobra.Command {
	var socket string
	c := &cobra.Command{
		Use:   "echo --socket PATH",
		Short: "Be a back end that sends each frame back",
		Args:  command.Args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			l, err := virtfront.Listen(socket)
			if err != nil {
				return err
			}
			return virtfront.RunEcho(c.Context(), l)
		},
	}
	c.Flags().StringVar(&socket, "socket", "", "`path` of the socket to listen on")
	return c
}
