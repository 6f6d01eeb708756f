// SPDX-License-Identifier: Apache-2.0

package blkengine

import (
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/netbackd/netbackd/internal/procs"
	"github.com/netbackd/netbackd/internal/procwire"
	"github.com/netbackd/netbackd/pkg/xen"
)

// Opener opens Xen's devices for a disk process. It does not use them. The descriptors are the
// caller's.
type Opener interface {
	OpenGrantFile() (int, error)
	// OpenEventFiles opens an event channel device for the channels of one domain. It has
	// EventFiles descriptors.
	OpenEventFiles(domid xen.Domid) ([]int, error)
	EventFiles() int
}

// ProcessesConfig configures the engine of disk processes.
type ProcessesConfig struct {
	Isolation procs.Isolation
	Opener    Opener
	Log       *zap.Logger
	// Start starts a disk process, which calls [Serve].
	Start func() (procs.Child, error)

	NoUring   bool
	MaxQueues int   // of all vbds
	Memory    int64 // of a guest's data in flight, in each process
}

// Processes is the engine whose connections are served by disk processes.
type Processes struct {
	cfg    ProcessesConfig
	set    *procs.Set
	next   atomic.Uint32 // number of the last connection
	queues atomic.Int64  // of all connections
}

const (
	// callTimeout bounds the wait for an answer. A page of a guest that is paged out takes half a
	// minute; pings find a process that hangs before.
	callTimeout = 3 * time.Minute
	// pending bounds the messages that wait for an answer.
	pending = 8192
)

// NewProcesses makes the engine. If all vbds share a process it is started now, so that a host on
// which that fails is found at the start.
func NewProcesses(cfg ProcessesConfig) (*Processes, error) {
	e := &Processes{cfg: cfg}
	var err error
	e.set, err = procs.New(procs.Config{
		Isolation: cfg.Isolation, Log: cfg.Log, Words: procs.Words{Process: "disk process", Devices: "vbds"},
		Start: cfg.Start, SetUp: e.setUp,
		Wire: procs.Wire{
			In: toBroker(), Out: toProcess(), Setup: kindSetup, Ping: kindPing, Causes: causes,
			Timeout: callTimeout, Pending: pending, Died: ErrDied,
			Ready: func(r *procwire.Reader) any { return takeReady(r) },
			// A queue may wait for its disk as long as that takes, so no thread counts as silent.
			Health: func(r *procwire.Reader) (any, string) { return takeHealth(r), "" },
		},
	})
	return e, err
}

// setUp returns the setup of a process.
func (e *Processes) setUp(bool) (*procwire.Writer, []int, error) {
	s := setup{eventFiles: e.cfg.Opener.EventFiles(), noUring: e.cfg.NoUring, maxQueues: e.cfg.MaxQueues, memory: e.cfg.Memory}
	w := new(procwire.Writer)
	s.put(w)
	return w, nil, nil
}

// Open implements [Engine].
func (e *Processes) Open(cfg LinkConfig) Link {
	l := &remoteLink{cfg: cfg, engine: e, conns: map[uint32]*remoteConn{}}
	l.seat = e.set.Open(l)
	return l
}

// Look has all processes pinged; see [procs.Set.Look].
func (e *Processes) Look() { e.set.Look() }

// Refresh asks all processes for their state; see [procs.Set.Refresh].
func (e *Processes) Refresh(within time.Duration) { e.set.Refresh(within) }

// Queues returns the number of queues of all connections.
func (e *Processes) Queues() int { return int(e.queues.Load()) }

// Close ends all processes. The links were ended before.
func (e *Processes) Close() { e.set.Close() }

// ProcessStatus describes a disk process.
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
