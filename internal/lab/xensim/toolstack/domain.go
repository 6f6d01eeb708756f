// SPDX-License-Identifier: Apache-2.0

package toolstack

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/netbackd/netbackd/internal/lab/xensim/simclient"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// The event channel and the grant that a real domain has for xenstore. Here they are only
// numbers for INTRODUCE.
const (
	storePort = 1
	storeRef  = 1 // GNTTAB_RESERVED_XENSTORE
)

// Config describes a domain: the part of an xl configuration file that matters
// to a backend.
type Config struct {
	Name string
	// Domain sizes the domain. Its name is Name.
	Domain simclient.DomainConfig
	Vifs   []Vif
	Vbds   []Vbd
}

// Create implements `xl create -p`: it makes a domain, paused, and attaches its devices. If
// one of them cannot be attached, it destroys the domain again, which takes another ten
// seconds with a backend that does not answer. waits has the times waited for each
// device, in the order of cfg, vifs first.
func (t *Toolstack) Create(ctx context.Context, cfg Config) (domid xen.Domid, waits []Waits, err error) {
	dc := cfg.Domain
	dc.Name, dc.Paused = cfg.Name, true
	domid, err = t.ctl.CreateDomain(dc)
	if err != nil {
		return 0, nil, err
	}
	if err := t.makeNodes(ctx, domid, cfg.Name, dc); err != nil {
		return 0, nil, errors.Join(err, t.ctl.Destroy(domid))
	}
	waits = make([]Waits, len(cfg.Vifs)+len(cfg.Vbds))
	errs := make([]error, len(waits))
	last := NextDevid
	for _, v := range cfg.Vifs {
		last = max(last, v.Devid)
	}
	var wg sync.WaitGroup
	for i, v := range cfg.Vifs {
		if v.Devid == NextDevid {
			last++
			v.Devid = last
		}
		wg.Go(func() { _, waits[i], errs[i] = t.AttachVif(ctx, domid, v) })
	}
	for i, v := range cfg.Vbds {
		n := len(cfg.Vifs) + i
		wg.Go(func() { waits[n], errs[n] = t.AttachVbd(ctx, domid, v) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		_, derr := t.Destroy(context.WithoutCancel(ctx), domid)
		return 0, waits, errors.Join(err, derr)
	}
	return domid, waits, nil
}

// defaultVCPUs is the number of vcpus of a domain whose configuration has none.
const defaultVCPUs = 4

// makeNodes implements libxl__domain_make and libxl__build_post, as far as nodes go.
func (t *Toolstack) makeNodes(ctx context.Context, domid xen.Domid, name string, cfg simclient.DomainConfig) error {
	uuid := newUUID()
	dom, vm, lib := domPath(domid), "/vm/"+uuid, libxlPath(domid)
	ro, rw := readable(0, domid), owned(domid)
	err := t.xs.Transaction(ctx, func(tx *xenstore.Tx) error {
		b := batch{ctx: ctx, tx: tx}
		b.remove(dom)
		b.mknod(dom, ro)
		b.remove(vm)
		b.mknod(vm, ro)
		b.remove(lib)
		b.mknod(lib, private())
		b.mknod(lib+"/device", private())
		b.write(dom+"/vm", vm)
		b.write(dom+"/name", name)
		for _, n := range []pair{
			{"cpu", "r"}, {"memory", "r"}, {"device", "r"}, {"device/suspend/event-channel", "w"},
			{"control", "r"}, {"control/shutdown", "w"}, {"control/feature-poweroff", "w"}, {"control/feature-reboot", "w"},
			{"control/feature-suspend", "w"}, {"control/sysrq", "w"},
			{"data", "w"}, {"drivers", "w"}, {"feature", "w"}, {"attr", "w"}, {"error", "w"},
		} {
			perms := ro
			if n.value == "w" {
				perms = rw
			}
			b.mknod(dom+"/"+n.key, perms)
		}
		b.write(vm+"/uuid", uuid)
		b.write(vm+"/name", name)
		b.write(dom+"/control/platform-feature-multiprocessor-suspend", "1")
		b.write(dom+"/control/platform-feature-xs_reset_watches", "1")
		b.write(lib+"/type", "pv")
		return b.err
	})
	if err != nil {
		return fmt.Errorf("domain %d: nodes: %w", domid, err)
	}
	kib := strconv.Itoa(cfg.Pages * 4)
	err = t.xs.Transaction(ctx, func(tx *xenstore.Tx) error {
		b := batch{ctx: ctx, tx: tx}
		b.writev(dom, []pair{
			{"memory/static-max", kib}, {"memory/target", kib}, {"memory/videoram", "0"},
			{"domid", strconv.Itoa(int(domid))},
			{"store/port", strconv.Itoa(storePort)}, {"store/ring-ref", strconv.Itoa(storeRef)},
		}, nil)
		for i := range cmp.Or(cfg.VCPUs, defaultVCPUs) {
			b.write(fmt.Sprintf("%s/cpu/%d/availability", dom, i), "online")
		}
		return b.err
	})
	if err == nil {
		err = t.xs.Introduce(ctx, domid, storeRef, storePort)
	}
	if err != nil {
		return fmt.Errorf("domain %d: introduce: %w", domid, err)
	}
	return nil
}

// newUUID returns a random UUID, version 4.
func newUUID() string {
	var u [16]byte
	_, _ = rand.Read(u[:]) // cannot fail
	u[6], u[8] = u[6]&0x0f|0x40, u[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[0:4], u[4:6], u[6:8], u[8:10], u[10:])
}

// Unpause lets a domain run, as `xl create` does in the end.
func (t *Toolstack) Unpause(domid xen.Domid) error { return t.ctl.Unpause(domid) }

// Destroy implements `xl destroy`: it detaches all devices, those of a dead backend included,
// removes the domain's nodes and destroys the domain. As in libxl, a failure with a device
// neither stops it nor makes it fail.
func (t *Toolstack) Destroy(ctx context.Context, domid xen.Domid) ([]Waits, error) {
	if err := t.ctl.Pause(domid); err != nil {
		return nil, err
	}
	var devices []device
	for _, class := range []string{classVif, classVbd} {
		for _, devid := range t.devids(ctx, domid, class) {
			devices = append(devices, device{class: class, domid: domid, devid: devid})
		}
	}
	waits := make([]Waits, len(devices))
	var wg sync.WaitGroup
	for i, d := range devices {
		wg.Go(func() {
			d, err := t.device(ctx, d)
			if err == nil {
				waits[i], _ = t.remove(ctx, d, forceOn)
			}
		})
	}
	wg.Wait()
	dom := domPath(domid)
	if vm, err := t.xs.Read(ctx, dom+"/vm"); err == nil {
		_ = t.xs.Remove(ctx, vm) // libxl ignores errors, too
	}
	err := t.xs.Remove(ctx, dom)
	if errors.Is(err, xenstore.ErrNotExist) {
		err = nil
	}
	_ = t.xs.Remove(ctx, libxlPath(domid))
	return waits, errors.Join(err, t.ctl.Destroy(domid))
}

// devids returns the numbers of the devices of a class that libxl has attached to a domain.
func (t *Toolstack) devids(ctx context.Context, domid xen.Domid, class string) []int {
	names, err := t.xs.List(ctx, libxlPath(domid)+"/device/"+class)
	if err != nil {
		return nil
	}
	var devids []int
	for _, name := range names {
		if n, err := strconv.Atoi(name); err == nil {
			devids = append(devids, n)
		}
	}
	slices.Sort(devids)
	return devids
}

// device reads the backend of a device from libxl's own copy of the nodes: the guest and
// the backend could have changed the others.
func (t *Toolstack) device(ctx context.Context, d device) (device, error) {
	path, err := t.xs.Read(ctx, d.libxlPath()+"/backend")
	if errors.Is(err, xenstore.ErrNotExist) {
		return d, fmt.Errorf("%v: %w", d, ErrNoDevice)
	}
	if err != nil {
		return d, err
	}
	return parseBackendPath(path)
}

// Waits holds the times that one attach or detach waited.
type Waits struct {
	State  time.Duration // until the backend was seen in the wanted state, or the timeout
	Forced time.Duration // detach: the second time, after the frontend was removed
	Script time.Duration // until the hotplug script ended
}
