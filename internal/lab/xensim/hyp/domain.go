// SPDX-License-Identifier: Apache-2.0

package hyp

import (
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/xensim/wire"
	"github.com/netbackd/netbackd/pkg/xen"
)

// Domain ids with a meaning.
const (
	DomidSelf     = 0x7ff0 // DOMID_SELF: the caller
	FirstReserved = 0x7ff0 // DOMID_FIRST_RESERVED: no domain has this id or one above
)

// Default sizes of a domain, and bounds.
const (
	defaultPages          = 16384
	defaultGrantFrames    = 64
	defaultMaptrackFrames = 1024
	defaultEventChannels  = 1023
	dom0EventChannels     = 1<<17 - 1 // the FIFO ABI's last port; Xen does not limit dom0 further

	maxPages          = 1 << 24 // 64 GiB
	maxGrantFrames    = 1 << 12
	maxMaptrackFrames = 1 << 16

	maptrackPerFrame = 256 // PAGE_SIZE / sizeof(struct grant_mapping)
)

// Hypervisor is Xen: the set of domains with their grants and event channels.
type Hypervisor struct {
	mu   sync.Mutex
	doms map[xen.Domid]*Domain // guarded by mu
	next xen.Domid             // start of the search for a free id; guarded by mu

	ev sync.Mutex // guards every Domain's channels and paused

	stop chan struct{} // closed by Interrupt
	once sync.Once
}

// New starts a hypervisor with one domain, dom0, which has the given sizes.
func New(dom0 wire.DomainConfig) (*Hypervisor, error) {
	h := &Hypervisor{doms: map[xen.Domid]*Domain{}, next: 1, stop: make(chan struct{})}
	if dom0.MaxEventChannels == 0 {
		dom0.MaxEventChannels = dom0EventChannels
	}
	d, err := newDomain(h, 0, dom0)
	if err != nil {
		return nil, err
	}
	h.doms[0] = d
	return h, nil
}

// Interrupt ends all present and future waits in Sleep and in slow operations.
func (h *Hypervisor) Interrupt() { h.once.Do(func() { close(h.stop) }) }

// Close frees all memory. No other call may run.
func (h *Hypervisor) Close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for id, d := range h.doms {
		d.mem.close()
		delete(h.doms, id)
	}
}

// Domain is one domain, from its creation until its last page is released.
type Domain struct {
	h      *Hypervisor
	id     xen.Domid
	config wire.DomainConfig // without zero sizes
	mem    *memory
	gt     grantTable

	maptrack atomic.Int64 // grants of other domains that it has mapped

	channels []channel      // by port; guarded by h.ev
	ports    int            // of them not free; guarded by h.ev
	lowest   uint32         // no port below it is free; guarded by h.ev
	paused   chan struct{}  // closed when it runs again, nil while it runs; guarded by h.ev
	dead     bool           // destroyed: gets no channels; guarded by h.ev
	shutdown atomic.Bool    // stopped by itself
	counters domainCounters // source of wire.Counters
}

// withDefaults fills in the zero fields of cfg and refuses invalid values.
func withDefaults(cfg wire.DomainConfig) (wire.DomainConfig, error) {
	if len(cfg.Name) > wire.MaxName {
		return cfg, fmt.Errorf("name of %d bytes: at most %d are possible: %w", len(cfg.Name), wire.MaxName, unix.EINVAL)
	}
	for _, f := range []struct {
		name       string
		value      *int
		deflt, max int
	}{
		{"pages", &cfg.Pages, defaultPages, maxPages},
		{"grant frames", &cfg.MaxGrantFrames, defaultGrantFrames, maxGrantFrames},
		{"maptrack frames", &cfg.MaxMaptrackFrames, defaultMaptrackFrames, maxMaptrackFrames},
		{"event channels", &cfg.MaxEventChannels, defaultEventChannels, dom0EventChannels},
	} {
		if *f.value == 0 {
			*f.value = f.deflt
		}
		if *f.value < 1 || *f.value > f.max {
			return cfg, fmt.Errorf("%d %s: from 1 to %d are possible: %w", *f.value, f.name, f.max, unix.EINVAL)
		}
	}
	return cfg, nil
}

func newDomain(h *Hypervisor, id xen.Domid, cfg wire.DomainConfig) (*Domain, error) {
	cfg, err := withDefaults(cfg)
	if err != nil {
		return nil, err
	}
	mem, err := newMemory(fmt.Sprintf("xensim-d%d", id), cfg.MaxGrantFrames+cfg.Pages)
	if err != nil {
		return nil, err
	}
	d := &Domain{h: h, id: id, config: cfg, mem: mem, lowest: 1}
	d.gt.init(cfg.MaxGrantFrames)
	if cfg.Paused {
		d.paused = make(chan struct{})
	}
	return d, nil
}

// Create makes a domain. Ids increase and start again only after the last one, so that a
// stale id does not soon name another domain.
func (h *Hypervisor) Create(cfg wire.DomainConfig) (*Domain, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for range FirstReserved - 1 {
		id := h.next
		if h.next++; h.next == FirstReserved {
			h.next = 1
		}
		if h.doms[id] != nil {
			continue
		}
		d, err := newDomain(h, id, cfg)
		if err != nil {
			return nil, err
		}
		h.doms[id] = d
		return d, nil
	}
	return nil, unix.ENFILE
}

// Domain returns a domain, dying ones included, or nil if there is none. DomidSelf stands
// for the caller's id self.
func (h *Hypervisor) Domain(id, self xen.Domid) *Domain {
	if id == DomidSelf {
		id = self
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.doms[id]
}

// Domains lists all domains in the order of their ids, dying ones included.
func (h *Hypervisor) Domains() []*Domain {
	h.mu.Lock()
	defer h.mu.Unlock()
	list := make([]*Domain, 0, len(h.doms))
	for id := range FirstReserved {
		if d := h.doms[xen.Domid(id)]; d != nil {
			list = append(list, d)
		}
		if len(list) == len(h.doms) {
			break
		}
	}
	return list
}

// Kill destroys the domain: it closes its ports and frees its memory, except the pages
// that others hold, until they release them. It returns false if the domain was destroyed
// before. The caller must end the connections of the domain's own processes and release
// what they hold.
func (d *Domain) Kill() bool {
	h := d.h
	h.ev.Lock()
	if d.dead {
		h.ev.Unlock()
		return false
	}
	d.dead = true
	d.resume()
	for port := range d.channels {
		d.close(uint32(port))
	}
	h.ev.Unlock()

	gone := d.gt.kill(d.mem)
	if gone {
		h.reap(d)
	}
	return true
}

// reap forgets a dead domain once its last page is released.
func (h *Hypervisor) reap(d *Domain) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.doms, d.id)
	d.mem.close()
}

// ID returns the domain's id.
func (d *Domain) ID() xen.Domid { return d.id }

// Config returns the domain's configuration with defaults filled in.
func (d *Domain) Config() wire.DomainConfig { return d.config }

// Dying reports whether the domain was destroyed.
func (d *Domain) Dying() bool {
	d.h.ev.Lock()
	defer d.h.ev.Unlock()
	return d.dead
}

// Pause stops the domain: no event reaches it, and its hypercalls wait.
func (d *Domain) Pause() {
	d.h.ev.Lock()
	defer d.h.ev.Unlock()
	if d.paused == nil && !d.dead {
		d.paused = make(chan struct{})
	}
}

// Unpause lets the domain run, and delivers the events that arrived meanwhile. A domain
// that has shut down does not run again.
func (d *Domain) Unpause() {
	d.h.ev.Lock()
	defer d.h.ev.Unlock()
	if d.shutdown.Load() {
		return
	}
	d.resume()
	for port := range d.channels {
		d.deliver(uint32(port))
	}
}

// resume ends a pause. The caller holds h.ev.
func (d *Domain) resume() {
	if d.paused != nil {
		close(d.paused)
		d.paused = nil
	}
}

// WaitRunning waits until the domain is not paused, or cancel closes. It
// reports whether the domain may make a hypercall.
func (d *Domain) WaitRunning(cancel <-chan struct{}) bool {
	for {
		d.h.ev.Lock()
		paused, dead := d.paused, d.dead
		d.h.ev.Unlock()
		if paused == nil {
			return !dead
		}
		select {
		case <-paused:
		case <-cancel:
			return false
		}
	}
}

// Shutdown records that the domain has stopped by itself and no longer runs. It returns
// false if the domain had stopped before, or was destroyed.
func (d *Domain) Shutdown() bool {
	d.Pause()
	return !d.Dying() && d.shutdown.CompareAndSwap(false, true)
}

// Frames returns the bounds of the domain's frames: those up to the first return value
// are for the grant table, the others up to the second are its memory.
func (d *Domain) Frames() (table, end int) {
	return d.config.MaxGrantFrames, d.config.MaxGrantFrames + d.config.Pages
}

// Frame returns the memory of a frame. The caller must hold a grant of the domain or be
// one of its own processes, so that the domain continues to exist.
func (d *Domain) Frame(n uint32) []byte { return d.mem.frame(n) }

// Files returns the domain's memory as files, to be passed on while the domain
// exists: writable and read-only.
func (d *Domain) Files() (rw, ro int) { return d.mem.rw, d.mem.ro }

// Info describes the domain for a list.
func (d *Domain) Info() wire.DomainInfo {
	i := wire.DomainInfo{
		Domid:    d.id,
		Name:     d.config.Name,
		Shutdown: d.shutdown.Load(),
		Pages:    d.config.Pages,
		Maps:     int(d.maptrack.Load()),
		Counters: d.counters.snapshot(),
	}
	i.GrantFrames, i.GrantsInUse, i.Pins = d.gt.usage()
	d.h.ev.Lock()
	defer d.h.ev.Unlock()
	i.Paused, i.Dying, i.Ports = d.paused != nil, d.dead, d.ports
	for port := range d.channels {
		if d.channels[port].state == channelInterdomain {
			i.Interdomain++
		}
	}
	return i
}
