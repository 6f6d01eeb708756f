// SPDX-License-Identifier: Apache-2.0

package netengine

import (
	"errors"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/netbackd/netbackd/internal/procs"
	"github.com/netbackd/netbackd/internal/procwire"
	"github.com/netbackd/netbackd/pkg/xen"
)

// ProcessesConfig configures the engine of packet processes.
type ProcessesConfig struct {
	Isolation procs.Isolation
	Opener    Opener
	Log       *zap.Logger
	// Start starts a packet process, which calls [Serve].
	Start func() (procs.Child, error)

	Workers    int // threads of a process; 0: one for each CPU
	Alone      int // threads of a process of a guest that was separated; 0: as Workers
	NoUring    bool
	NoPriority bool
	Shared     int64 // see dataplane.Options
	OwnPages   bool
	// PageLimit returns the number of own pages that all programs of this domain may have
	// granted; nil, or an error of it: only the device knows.
	PageLimit func() (int, error)
}

// Processes is the engine whose connections are served by packet processes.
type Processes struct {
	cfg ProcessesConfig
	set *procs.Set

	mu    sync.Mutex // guards all below
	domid *xen.Domid // of this domain; nil: not known yet
	bare  error      // why the last process that was started has no own pages; nil: it has a device for them
}

// errOwnOff is the reason if the administrator wants no own pages.
var errOwnOff = errors.New("switched off by --own-pages=none")

// NoOwnPages returns the reason why processes have no device for own pages, nil if they have one.
func (e *Processes) NoOwnPages() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.bare
}

// NewProcesses makes the engine. If all vifs share a process it is started now, so that a host
// on which that fails is found at the start.
func NewProcesses(cfg ProcessesConfig) (*Processes, error) {
	e := &Processes{cfg: cfg}
	var err error
	e.set, err = procs.New(procs.Config{
		Isolation: cfg.Isolation, Log: cfg.Log, Words: procs.Words{Process: "packet process", Devices: "vifs"},
		Start: cfg.Start, SetUp: e.setUp, Entered: e.entered, Wire: packetWire,
	})
	return e, err
}

// packetWire describes the messages of packet processes.
var packetWire = wire()

func wire() procs.Wire {
	return procs.Wire{
		In: toBroker(), Out: toProcess(), Setup: kindSetup, Ping: kindPing, Causes: causes,
		Timeout: callTimeout, Pending: pending, Died: ErrDied,
		Ready: func(r *procwire.Reader) any {
			var v Ready
			takeReady(r, &v)
			return v
		},
		Health: func(r *procwire.Reader) (any, string) {
			var h Health
			takeHealth(r, &h)
			return h, h.Silent
		},
	}
}

// Open implements [Engine].
func (e *Processes) Open(cfg LinkConfig) Link {
	l := &remoteLink{cfg: cfg, engine: e}
	l.seat = e.set.Open(l)
	return l
}

// setUp returns the setup of a process, and its devices.
func (e *Processes) setUp(alone bool) (*procwire.Writer, []int, error) {
	set := setup{
		eventFiles: e.cfg.Opener.EventFiles(), pageLimit: -1,
		workers: e.cfg.Workers, noUring: e.cfg.NoUring, noPriority: e.cfg.NoPriority, shared: e.cfg.Shared,
	}
	if alone && e.cfg.Alone > 0 {
		set.workers = e.cfg.Alone
	}
	grants, err := e.cfg.Opener.OpenGrantFile()
	if err != nil {
		return nil, nil, err
	}
	devices := []int{grants}
	bare := errOwnOff
	if e.cfg.OwnPages {
		fd, err := e.cfg.Opener.OpenPageFile()
		bare = err
		if err != nil {
			e.cfg.Log.Warn("packets are copied by address, for want of own pages", zap.Error(err))
		} else {
			devices = append(devices, fd)
			set.pages = true
		}
		if e.cfg.PageLimit != nil {
			if n, err := e.cfg.PageLimit(); err == nil {
				set.pageLimit = int64(n)
			}
		}
	}
	e.mu.Lock()
	e.bare = bare
	e.mu.Unlock()
	w := new(procwire.Writer)
	set.put(w)
	return w, devices, nil
}

// Told tells the processes the number of their domain, which own pages need.
func (e *Processes) Told(domid xen.Domid) {
	e.mu.Lock()
	e.domid = &domid
	e.mu.Unlock()
	for _, p := range e.set.Running() {
		tellDomid(p, domid)
	}
}

// entered tells a new process the number of its domain.
func (e *Processes) entered(p *procs.Process) {
	e.mu.Lock()
	domid := e.domid
	e.mu.Unlock()
	if domid != nil {
		tellDomid(p, *domid)
	}
}

// tellDomid tells a process the number of its domain.
func tellDomid(p *procs.Process, domid xen.Domid) {
	var w procwire.Writer
	w.U16(uint16(domid))
	_ = p.Post(kindOwnDomid, &w) // the end of the process is seen elsewhere
}

// Look has all processes pinged; see [procs.Set.Look].
func (e *Processes) Look() { e.set.Look() }

// Refresh asks all processes for their state; see [procs.Set.Refresh].
func (e *Processes) Refresh(within time.Duration) { e.set.Refresh(within) }

// Close ends all processes. The links were ended before.
func (e *Processes) Close() { e.set.Close() }

// ProcessStatus describes a packet process.
type ProcessStatus struct {
	procs.Status
	Ready
	Health
}

// Status describes the processes, ordered by name.
func (e *Processes) Status() []ProcessStatus {
	list := []ProcessStatus{}
	for _, s := range e.set.Status() {
		p := ProcessStatus{Status: s}
		p.Ready, _ = s.Ready.(Ready)
		p.Health, _ = s.Health.(Health)
		list = append(list, p)
	}
	return list
}

// Shared describes the process of all vifs.
func (e *Processes) Shared() (Ready, error) {
	v, err := e.set.Shared()
	ready, _ := v.(Ready)
	return ready, err
}
