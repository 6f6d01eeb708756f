// SPDX-License-Identifier: Apache-2.0

// Package backend holds all vifs of one backend domain: a [devices.Set] of [vif.Vif]. It
// adds what vifs need of their host beside xenstore: budgets of static grants, the queues of
// TAPs that the service manager keeps, and names of interfaces.
//
// The package knows the set of vifs. It must not know how a vif works, or look into
// packets.
package backend

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"

	"github.com/netbackd/netbackd/internal/budget"
	"github.com/netbackd/netbackd/internal/devices"
	"github.com/netbackd/netbackd/internal/netengine"
	"github.com/netbackd/netbackd/internal/sdnotify"
	"github.com/netbackd/netbackd/internal/vif"
	"github.com/netbackd/netbackd/pkg/staticgrant"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// Config holds the settings of a backend.
type Config struct {
	// Dial connects to xenstore. It is called again when the connection is lost.
	Dial   func(context.Context) (*xenstore.Client, error)
	Engine netengine.Engine // moves the packets
	Log    *zap.Logger

	vif.Options

	Kernel Kernel // nil: the kernel can serve no vifs of this domain

	// Keeper keeps the queues of TAPs while no daemon runs; nil: they are not kept.
	Keeper Keeper
	// Kept holds the files that the keeper kept for a predecessor. Run owns them. It
	// closes files whose name is unknown or that no vif needs.
	Kept []sdnotify.File
}

// Kernel is the kernel's xen-netback. While it is loaded it takes each vif of this
// domain that appears. To be adopted, a vif must be unbound from it first.
type Kernel interface {
	Loaded() bool
	Serves(id xenbus.VifID) bool
}

// maxStaticGrants bounds the pages that all guests together have mapped: half of the
// mappings that Linux allows a process by default (vm.max_map_count). Rings and the
// program need some of the others.
const maxStaticGrants = 65530 / 2

// Backend is a running backend.
type Backend struct {
	cfg     Config
	set     *devices.Set[served, vif.Status]
	budgets *budget.Host
	keeper  *keeper // nil: no service manager keeps files

	static *staticgrant.Budget // of all guests

	// These belong to the set's goroutine while it runs.
	kept   map[xenbus.VifID][]int // TAP queues, in order, of vifs that were not started yet
	guests map[xen.Domid]*staticgrant.Budget
}

// served is a vif as the set knows it.
type served struct{ *vif.Vif }

// SetStore gives the vif another connection to xenstore.
func (s served) SetStore(ctx context.Context, c *xenstore.Client) { s.Vif.SetStore(ctx, c) }

// ErrNoVif is returned for a vif that does not exist.
var ErrNoVif = errors.New("no such vif")

// New makes a backend.
func New(cfg Config) *Backend {
	b := &Backend{
		cfg:     cfg,
		budgets: budget.NewHost(budget.Turns),
		static:  staticgrant.NewBudget(maxStaticGrants, nil),
		guests:  map[xen.Domid]*staticgrant.Budget{},
	}
	set := devices.Config[served, vif.Status]{
		Words: devices.Words{
			Program: "netbackd", One: "vif", Many: "vifs", Example: "vif1.0", Config: "vif=[...]",
			Driver: "xen-netback", Lives: "packets keep moving",
		},
		Kind: kind{b}, Classes: []xenbus.Class{xenbus.VIF},
		Dial: cfg.Dial, Log: cfg.Log, Budgets: b.budgets,
		Claimed: vif.ClaimedKey, NotFound: ErrNoVif,
	}
	if cfg.Kernel != nil {
		set.Kernel = kernel{cfg.Kernel}
	}
	b.set = devices.New(set)
	return b
}

// kernel is a Kernel as the set knows it.
type kernel struct{ Kernel }

func (k kernel) Takes(xenbus.Class) bool        { return k.Loaded() }
func (k kernel) Serves(id xenbus.DeviceID) bool { return k.Kernel.Serves(id.Vif()) }

// keeperTimeout bounds the time that Run waits for the service manager at the end.
const keeperTimeout = time.Second

// Run serves until ctx ends; see [devices.Set.Run]. Packets keep moving while the connection
// to xenstore is lost.
func (b *Backend) Run(ctx context.Context, ready func()) error {
	b.keeper = newKeeper(b.cfg.Keeper, b.cfg.Log)
	defer b.keeper.close(keeperTimeout)
	b.sortKept()
	defer b.closeKept()
	return b.set.Run(ctx, ready)
}

// Ping waits until the goroutine of the set answers; see [devices.Set.Ping].
func (b *Backend) Ping(ctx context.Context) error { return b.set.Ping(ctx) }

// kind makes the vifs of a Backend, for its set.
type kind struct{ b *Backend }

// New makes the vif of a slot.
func (k kind) New(s devices.Slot) served {
	b, id := k.b, s.ID.Vif()
	static := b.guests[id.Domid]
	if static == nil {
		static = staticgrant.NewBudget(staticgrant.DefaultBudget, b.static)
		b.guests[id.Domid] = static
	}
	v := vif.New(vif.Config{
		ID:        id,
		Path:      s.Path,
		ErrorPath: s.ErrorPath,
		Store:     s.Store,
		Engine:    b.cfg.Engine,
		Log:       s.Log,
		Options:   b.cfg.Options,
		Guest:     s.Guest, GrantBudget: static,
		Keeper: b.keeper.of(s.Guest),
		Kept:   b.kept[id],
		Taken:  s.Taken,
	})
	delete(b.kept, id)
	return served{v}
}

// Wants returns true: all vifs of this domain are netbackd's, unless the kernel's driver is
// loaded.
func (kind) Wants(context.Context, *xenstore.Client, string) (bool, error) { return true, nil }

// CanAdopt returns an error if netbackd could not serve the vif at path.
func (k kind) CanAdopt(ctx context.Context, s *xenstore.Client, path string) error {
	return vif.CanAdopt(ctx, s, path, k.b.cfg.MaxQueues)
}

// Sweep removes TAPs and files of vifs that were removed while no daemon ran.
func (k kind) Sweep(has func(xenbus.DeviceID) bool) (again bool) {
	k.b.discardKept()
	removed, again, err := vif.RemoveLeftovers(k.b.cfg.RunDir, func(id xenbus.VifID) bool { return has(id.Device()) })
	if len(removed) > 0 {
		k.b.cfg.Log.Info("leftovers of removed vifs deleted", zap.Strings("names", removed))
	}
	if err != nil {
		k.b.cfg.Log.Warn("delete leftovers of removed vifs failed", zap.Error(err))
	}
	return again
}

// GuestGone forgets the budget of a guest without vifs.
func (k kind) GuestGone(domid xen.Domid) { delete(k.b.guests, domid) }
