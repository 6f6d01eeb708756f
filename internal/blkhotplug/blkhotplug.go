// SPDX-License-Identifier: Apache-2.0

// Package blkhotplug makes blkbackd serve a new vbd, for the hotplug script block-blkbackd.
//
// If the kernel's xen-blkback is loaded, it has taken the vbd before the toolstack runs the
// script, and waits for the script to name a device. Then it is unbound from the vbd, and
// blkbackd adopts the vbd. The script is done when blkbackd has opened the disk.
//
// The package runs in a process of root. It must not know how blkbackd serves a vbd.
package blkhotplug

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/netbackd/netbackd/internal/control"
	"github.com/netbackd/netbackd/internal/disk"
	"github.com/netbackd/netbackd/internal/vbd"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// Kernel is the kernel's driver. *xendriver.Driver is one.
type Kernel interface {
	Serves(id xenbus.DeviceID) bool
	Unbind(id xenbus.DeviceID) error
	Bind(id xenbus.DeviceID) error
}

// Daemon is the running blkbackd. *blkcontrol.Client is one. An error for an unknown vbd is
// control.ErrNotFound.
type Daemon interface {
	Vbd(ctx context.Context, name string, after uint64) (vbd.Status, error)
	// Await waits until a daemon listens, or until ctx ends.
	Await(ctx context.Context) error
	CanAdopt(ctx context.Context, name string) error
	Adopt(ctx context.Context, name string) error
}

// Store is the part of xenstore that a Plugger uses. *xenstore.Client is one.
type Store interface {
	Read(ctx context.Context, path string) (string, error)
	Write(ctx context.Context, path, value string) error
	Remove(ctx context.Context, path string) error
}

// Plugger makes blkbackd serve vbds.
type Plugger struct {
	Kernel Kernel
	Daemon Daemon
	Store  Store
}

// Times of a hotplug script. libxl gives it 40 s.
const (
	// lockTimeout bounds the wait for the lock of a disk, which another guest may be
	// about to free.
	lockTimeout = 5 * time.Second

	// openTimeout bounds the wait until blkbackd has opened the disk.
	openTimeout = 15 * time.Second
)

// ParseID parses a name such as vbd-1-51712 or 1/xvda, or a path that ends in vbd/1/51712, as
// the toolstack passes it to scripts.
func ParseID(s string) (xenbus.DeviceID, error) {
	id, err := xenbus.ParseDeviceID(s)
	if err != nil {
		id, err = xenbus.ParseDevicePath(s)
	}
	if domid, vdev, ok := strings.Cut(s, "/"); err != nil && ok {
		if n, verr := xenbus.ParseVdev(vdev); verr == nil {
			id, err = xenbus.ParseDevicePath("vbd/" + domid + "/" + strconv.Itoa(int(n)))
		}
	}
	if err != nil || id.Class != xenbus.VBD && id.Class != xenbus.VBD3 {
		return xenbus.DeviceID{}, fmt.Errorf("%q is not a vbd, such as vbd-1-51712 or 1/xvda", xenbus.Clip(s))
	}
	return id, nil
}

// Add makes blkbackd serve a vbd, and returns when it has opened the disk. It does not wait
// for a disk that a migrating guest still uses at the sending end.
func (p *Plugger) Add(ctx context.Context, id xenbus.DeviceID) error {
	dir, err := p.directory(ctx, id)
	if err != nil {
		return err
	}
	if err := p.take(ctx, id); err != nil {
		return err
	}
	o, err := vbd.DiskOptions(ctx, p.Store, dir)
	if err != nil {
		return err
	}
	s, err := p.Daemon.Vbd(ctx, id.String(), 0)
	if err != nil {
		return err
	}
	held := false
	if !s.Disk.Open {
		var e *disk.Error
		err := canOpen(ctx, o)
		held = errors.As(err, &e) && e.Reason == disk.ReasonBusy && p.arrives(ctx, id)
		if err != nil && !held {
			return err
		}
	}
	if err := p.connected(ctx, dir, o); err != nil || held {
		return err
	}
	return p.awaitOpen(ctx, id)
}

// arrives reports whether the vbd's domain is the receiving end of a migration: xl names it
// so until it runs (migrate_receive in xl_migrate.c). The sending end has the lock of a
// shared disk until it is destroyed, which it is only after this script. blkbackd opens the
// disk then.
func (p *Plugger) arrives(ctx context.Context, id xenbus.DeviceID) bool {
	name, err := p.Store.Read(ctx, xenstore.DomainPath(id.Domid)+"/name")
	return err == nil && strings.HasSuffix(name, "--incoming")
}

// take makes blkbackd serve the vbd. If the kernel's driver has it, and blkbackd cannot serve
// it, it is bound to the driver again.
func (p *Plugger) take(ctx context.Context, id xenbus.DeviceID) error {
	name := id.String()
	adopt := func(ctx context.Context) error { return p.Daemon.Adopt(ctx, name) }
	answers := func(ctx context.Context) bool {
		_, err := p.Daemon.Vbd(ctx, name, 0)
		return err == nil || errors.Is(err, control.ErrNotFound)
	}
	if !p.Kernel.Serves(id) {
		return control.Insist(ctx, p.Daemon, answers, adopt)
	}
	err := control.Insist(ctx, p.Daemon, answers, func(ctx context.Context) error { return p.Daemon.CanAdopt(ctx, name) })
	if err != nil {
		return err
	}
	// An interrupt from here on would leave the vbd without a back end.
	ctx = context.WithoutCancel(ctx)
	if err := p.Kernel.Unbind(id); err != nil {
		return err
	}
	if err := control.Insist(ctx, p.Daemon, answers, adopt); err != nil {
		if berr := p.Kernel.Bind(id); berr != nil {
			return errors.Join(err, fmt.Errorf("returning it to the kernel failed, so no back end serves it now: %w", berr))
		}
		return err
	}
	return nil
}

// canOpen returns an error if the disk cannot be opened or stays locked.
func canOpen(ctx context.Context, o disk.Options) error {
	ctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	d, err := disk.Open(ctx, o)
	if err != nil {
		return err
	}
	return d.Close()
}

// connected tells that the script is done. Toolstacks read the path for disks that they
// attach to their own domain.
func (p *Plugger) connected(ctx context.Context, dir string, o disk.Options) error {
	err := p.Store.Remove(ctx, dir+"/hotplug-error")
	if errors.Is(err, xenstore.ErrNotExist) {
		err = nil
	}
	if err == nil && o.Path != "" {
		err = p.Store.Write(ctx, dir+"/physical-device-path", o.Path)
	}
	if err == nil {
		err = p.Store.Write(ctx, dir+"/hotplug-status", "connected")
	}
	return err
}

// awaitOpen waits until blkbackd has opened the disk.
func (p *Plugger) awaitOpen(ctx context.Context, id xenbus.DeviceID) error {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	var revision uint64
	for {
		s, err := p.Daemon.Vbd(ctx, id.String(), revision)
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("%v: blkbackd has not opened the disk after %v; `blkbackd show %[1]v` says more", id, openTimeout)
		case err != nil:
			return err
		case s.Disk.Open:
			return nil
		case s.Error != "" && s.Hotplug == "connected":
			return errors.New(s.Error)
		}
		revision = s.Revision
	}
}

// Fail writes the reason of a failed hotplug to the nodes of the vbd's directory that the
// toolstack reads.
func (p *Plugger) Fail(ctx context.Context, id xenbus.DeviceID, cause error) error {
	dir, err := p.directory(ctx, id)
	if err != nil {
		return err
	}
	return errors.Join(
		p.Store.Write(ctx, dir+"/hotplug-error", cause.Error()),
		p.Store.Write(ctx, dir+"/hotplug-status", "error"),
	)
}

// directory returns the vbd's directory in xenstore.
func (p *Plugger) directory(ctx context.Context, id xenbus.DeviceID) (string, error) {
	own, err := xenbus.OwnDomid(ctx, p.Store)
	return id.BackendPath(own), err
}
