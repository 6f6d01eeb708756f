// SPDX-License-Identifier: Apache-2.0

// Package blkbackend holds all vbds of one backend domain: a [devices.Set] of [vbd.Vbd]. It
// adds the memory that the vbds of a guest share, and the choice of the vbds that blkbackd is
// meant to serve.
//
// The package knows the set of vbds. It must not know how a vbd works, or look into
// requests.
package blkbackend

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"

	"go.uber.org/zap"

	"github.com/netbackd/netbackd/internal/blkengine"
	"github.com/netbackd/netbackd/internal/blkplane"
	"github.com/netbackd/netbackd/internal/budget"
	"github.com/netbackd/netbackd/internal/devices"
	"github.com/netbackd/netbackd/internal/vbd"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// Script is the file name of the hotplug script of the vbds that blkbackd serves.
const Script = "block-blkbackd"

// Config holds the settings of a backend.
type Config struct {
	// Dial connects to xenstore. It is called again when the connection is lost.
	Dial   func(context.Context) (*xenstore.Client, error)
	Engine blkengine.Engine
	Log    *zap.Logger

	vbd.Options

	Kernel      devices.Kernel // nil: the kernel can serve no vbds of this domain
	MaxPerGuest int            // bound of the vbds of a guest; 0: none
	GuestMemory int64          // bytes of a guest's data in flight; 0: blkplane's default
}

// Backend is a running backend.
type Backend struct {
	cfg    Config
	set    *devices.Set[served, vbd.Status]
	guests map[xen.Domid]*blkplane.Guest // belongs to the set's goroutine while it runs
}

// served is a vbd as the set knows it.
type served struct{ *vbd.Vbd }

// SetStore gives the vbd another connection to xenstore.
func (s served) SetStore(ctx context.Context, c *xenstore.Client) { s.Vbd.SetStore(ctx, c) }

// ErrNoVbd is returned for a vbd that does not exist.
var ErrNoVbd = errors.New("no such vbd")

// Classes are the classes of directories that are watched. A toolstack uses the second one
// for disks with backendtype=tap, which the kernel's driver does not serve.
var classes = []xenbus.Class{xenbus.VBD, xenbus.VBD3}

// New makes a backend.
func New(cfg Config) *Backend {
	b := &Backend{cfg: cfg, guests: map[xen.Domid]*blkplane.Guest{}}
	b.set = devices.New(devices.Config[served, vbd.Status]{
		Words: devices.Words{
			Program: "blkbackd", One: "vbd", Many: "vbds", Example: "vbd-1-51712, or 1/xvda",
			Config: "disk=[...] with script=" + Script,
			Driver: "xen-blkback", Lives: "disks are served",
		},
		Kind: kind{b}, Classes: classes,
		Dial: cfg.Dial, Log: cfg.Log, Budgets: budget.NewHost(budget.Turns),
		Kernel: cfg.Kernel, NotFound: ErrNoVbd, MaxPerGuest: cfg.MaxPerGuest,
	})
	return b
}

// Run serves until ctx ends; see [devices.Set.Run]. Requests are served while the connection
// to xenstore is lost.
func (b *Backend) Run(ctx context.Context, ready func()) error { return b.set.Run(ctx, ready) }

// Ping waits until the goroutine of the set answers; see [devices.Set.Ping].
func (b *Backend) Ping(ctx context.Context) error { return b.set.Ping(ctx) }

// kind makes the vbds of a Backend, for its set.
type kind struct{ b *Backend }

// New makes the vbd of a slot.
func (k kind) New(s devices.Slot) served {
	b, domid := k.b, s.ID.Domid
	memory := b.guests[domid]
	if memory == nil {
		memory = blkplane.NewGuest(b.cfg.GuestMemory)
		b.guests[domid] = memory
	}
	return served{vbd.New(vbd.Config{
		ID: s.ID, Path: s.Path, ErrorPath: s.ErrorPath,
		Store: s.Store, Engine: b.cfg.Engine, Log: s.Log,
		Options: b.cfg.Options,
		Guest:   s.Guest, Memory: memory,
		Taken: s.Taken,
	})}
}

// Wants reports whether the hotplug script of the vbd at p is blkbackd's.
func (kind) Wants(ctx context.Context, s *xenstore.Client, p string) (bool, error) {
	script, err := s.Read(ctx, p+"/script")
	if errors.Is(err, xenstore.ErrNotExist) {
		return false, nil
	}
	return path.Base(xenbus.Trim(script)) == Script, err
}

// ErrConnected is returned by CanAdopt for a vbd with which a guest is connected.
var ErrConnected = errors.New("its guest is connected to the kernel's driver; a disk cannot be moved while the guest uses it")

// CanAdopt returns an error unless the vbd at p has no connected guest yet.
func (k kind) CanAdopt(ctx context.Context, s *xenstore.Client, p string) error {
	r := xenbus.NewReader(ctx, s, p)
	text, _ := r.Text("state")
	state, err := xenbus.ParseState(text)
	switch {
	case r.Err() != nil:
		return r.Err()
	case err != nil:
		return err
	case state != xenbus.Initialising && state != xenbus.InitWait:
		return fmt.Errorf("%w: its state is %v", ErrConnected, state)
	}
	return nil
}

// Sweep removes the files of vbds that were removed while no daemon ran.
func (k kind) Sweep(has func(xenbus.DeviceID) bool) (again bool) {
	removed, err := vbd.RemoveLeftovers(k.b.cfg.RunDir, has)
	if len(removed) > 0 {
		k.b.cfg.Log.Info("leftovers of removed vbds deleted", zap.Strings("names", removed))
	}
	if err != nil {
		k.b.cfg.Log.Warn("delete leftovers of removed vbds failed", zap.Error(err))
	}
	return false
}

// GuestGone forgets the memory of a guest without vbds.
func (k kind) GuestGone(domid xen.Domid) { delete(k.b.guests, domid) }

// Other returns the status of a vbd that blkbackd does not serve.
func (k kind) Other(id xenbus.DeviceID, why devices.Reason) vbd.Status {
	s := vbd.NewStatus(id)
	s.ServedBy = "none"
	switch {
	case k.b.cfg.Kernel != nil && k.b.cfg.Kernel.Serves(id):
		s.ServedBy = "kernel"
	case why == devices.NotWanted:
		s.ServedBy = "other"
	case why == devices.OverLimit:
		s.Error = fmt.Sprintf("blkbackd serves at most %d vbds of a guest", k.b.cfg.MaxPerGuest)
	}
	return s
}

// Silent returns s with text as its error.
func (kind) Silent(s vbd.Status, text string) vbd.Status {
	s.Error = text
	return s
}

// parse parses the name of a vbd, or its domain and its name in the guest, such as 3/xvda.
// Of two vbds with the same number the one that is served counts.
func (b *Backend) parse(name string) (xenbus.DeviceID, error) {
	domid, vdev, ok := strings.Cut(name, "/")
	n, err := xenbus.ParseVdev(vdev)
	if !ok || err != nil {
		return b.set.Parse(name)
	}
	var known xenbus.DeviceID
	for _, class := range classes {
		id, err := xenbus.ParseDevicePath(fmt.Sprintf("%s/%s/%d", class, domid, n))
		if err != nil {
			return b.set.Parse(name) // for its error
		}
		if _, has := b.set.Find(id); has {
			return id, nil
		}
		if b.set.Knows(id) {
			known = id
		}
	}
	if known.Class == "" {
		return known, b.set.NoSuch(name)
	}
	return known, nil
}
