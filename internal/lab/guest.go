// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"

	"github.com/netbackd/netbackd/internal/lab/guest"
	"github.com/netbackd/netbackd/internal/lab/xensim/simclient"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// GuestConfig describes a guest: its domain, its vif, and its frontend's features.
type GuestConfig struct {
	Name   string
	Domain simclient.DomainConfig
	Vif    VifConfig
	Front  guest.VifConfig
}

// Guest is a running guest with one vif.
type Guest struct {
	*guest.Client
	Name  string
	Domid xen.Domid
	Devid int
	Info  guest.VifInfo // of the vif, once connected
}

// VifName returns the vif's name.
func (g *Guest) VifName() string { return xenbus.VifID{Domid: g.Domid, Devid: g.Devid}.String() }

// Stop ends the guest's process, as a crash of the guest would. Its domain
// stays until it is destroyed.
func (g *Guest) Stop() error { return g.Client.Close() }

// StartGuest makes a domain with a vif, waits for its hotplug script, and starts
// a guest in it, which connects.
func (l *Lab) StartGuest(ctx context.Context, cfg GuestConfig) (*Guest, error) {
	if cfg.Domain.GntallocLimit == 0 {
		// Rings and buffers of eight queues; a real guest raises the same limit.
		cfg.Domain.GntallocLimit = 8192
	}
	domid, err := l.CreateDomain(ctx, cfg.Name, cfg.Domain)
	if err != nil {
		return nil, err
	}
	if err := l.Attach(ctx, domid, cfg.Vif); err != nil {
		return nil, err
	}
	return l.Boot(ctx, cfg.Name, domid, cfg.Vif.Devid, cfg.Front)
}

// Boot starts a guest in a domain that has a vif already.
func (l *Lab) Boot(ctx context.Context, name string, domid xen.Domid, devid int, front guest.VifConfig) (*Guest, error) {
	c, err := guest.Start(guest.StartOptions{
		Exe:    l.opts.Exe,
		Config: guest.Config{Xen: l.XenDir(), Domid: domid},
		Env:    []string{raceEnv},
	})
	if err != nil {
		return nil, err
	}
	g := &Guest{Client: c, Name: name, Domid: domid, Devid: devid}
	l.guests = append(l.guests, g)
	front.Front.Dir = fmt.Sprintf("device/vif/%d", devid)
	if g.Info, err = c.Attach(ctx, front); err != nil {
		return nil, fmt.Errorf("guest %s: %w", name, err)
	}
	return g, nil
}
