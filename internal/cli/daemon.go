// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"time"

	"go.uber.org/zap"

	"github.com/netbackd/netbackd/internal/backend"
	"github.com/netbackd/netbackd/internal/budget"
	"github.com/netbackd/netbackd/internal/command"
	"github.com/netbackd/netbackd/internal/control"
	"github.com/netbackd/netbackd/internal/ctrlserver"
	"github.com/netbackd/netbackd/internal/daemon"
	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/netcontrol"
	"github.com/netbackd/netbackd/internal/netengine"
	"github.com/netbackd/netbackd/internal/sdnotify"
	"github.com/netbackd/netbackd/internal/vif"
	"github.com/netbackd/netbackd/internal/xennetback"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// netDaemon is `netbackd run`.
type netDaemon struct {
	*daemon.Process
	*runFlags
	rings ctrlserver.Protocols

	host       Host
	listener   net.Listener         // Serve closes it
	pool       *dataplane.Pool      // nil: packet processes have the workers
	processes  *netengine.Processes // nil: this process has them
	unconfined error                // reason why --isolate=auto means none; nil: it does not
	backend    *backend.Backend
	own        ownPages
	status     netcontrol.Daemon // the fields that do not change
}

// setUp opens everything that the daemon needs. If something is missing the daemon ends
// here, and not with the first guest.
func (d *netDaemon) setUp(open Opener) (err error) {
	// This comes first, so that no child inherits the files.
	notify, kept, err := sdnotify.FromEnv()
	if err != nil {
		d.Log.Warn("environment from the service manager is not valid", zap.Error(err))
	}
	d.Notify = notify
	if err := os.MkdirAll(d.runDir, 0o755); err != nil {
		return fmt.Errorf("run directory: %w", err)
	}
	daemon.RaiseFileLimit()
	if err := tap.Probe(tap.MultiQueue); err != nil {
		return err
	}
	offload := d.offload == "auto"
	if offload && errors.Is(tap.Probe(tap.VnetHeader), tap.ErrNotSupported) {
		d.Log.Warn("offload switched off: the kernel's TAPs have no vnet header")
		offload = false
	}
	h, err := open(d.xen)
	if err != nil {
		return err
	}
	d.host = h // not before the check: with an error h may hold a nil pointer
	if d.listener, err = control.Listen(netcontrol.Program, d.runDir+"/control.sock"); err != nil {
		return err
	}
	engine, err := d.openEngine()
	if err != nil {
		return err
	}

	d.backend = backend.New(backend.Config{
		Dial: d.dial, Engine: engine, Log: d.Log,
		Options: vif.Options{
			MaxQueues: d.maxQueues, Offload: offload, Coalesce: d.coalesce, RunDir: d.runDir, Drain: d.drain, Stall: d.stall,
			ControlRings: d.rings, StaticGrants: d.static, NoBPF: d.noBPF(),
		},
		Kernel: kernel(d.host), Keeper: keeper(notify), Kept: kept,
	})
	d.status = netcontrol.Daemon{
		Version: command.Version(), PID: os.Getpid(), Since: time.Now(),
		Uring: daemon.UringState(d.uring), Offload: offload,
		Coalesce: dataplane.CoalesceIf(d.coalesce && offload, tap.TakesUSO()).String(),
	}
	d.setEngine()
	return nil
}

// degraded reports a failure in the data path that does not end it.
func (d *netDaemon) degraded(err error) { d.Log.Warn("data path degraded", zap.Error(err)) }

// dial connects to xenstore.
func (d *netDaemon) dial(ctx context.Context) (*xenstore.Client, error) {
	c, err := d.host.DialStore(ctx)
	switch {
	case err != nil:
	case d.processes != nil:
		d.tellDomid(ctx, c)
	default:
		d.own.learn(ctx, c, d.Log)
	}
	return c, err
}

// close closes the resources of setUp.
func (d *netDaemon) close() (err error) {
	if d.pool != nil {
		d.pool.Close()
	}
	if d.processes != nil {
		d.processes.Close()
	}
	if d.listener != nil {
		err = daemon.CloseListener(d.listener)
	}
	err = errors.Join(err, d.own.close())
	if d.host != nil {
		err = errors.Join(err, d.host.Close())
	}
	return err
}

// now returns the status of the daemon.
func (d *netDaemon) now() netcontrol.Daemon {
	s := d.status
	s.LogLost, s.Threads = d.LogLost(), daemon.Threads()
	d.engineNow(&s)
	s.Memory = d.memory()
	return s
}

// Bounds of Go's heap: of the daemon itself, and of each vif's state.
const (
	heapBytes    = 64 << 20
	heapVifBytes = 256 << 10
)

// heapLimit returns the bytes that Go's heap may have with a number of vifs.
func heapLimit(vifs int64) int64 { return heapBytes + heapVifBytes*vifs }

// heapLimit returns the same with the present number of vifs.
func (d *netDaemon) heapLimit() int64 { return heapLimit(int64(d.backend.Vifs())) }

// memory returns the bounds of the daemon's memory and what it takes, with its packet
// processes.
func (d *netDaemon) memory() *netcontrol.Memory {
	vifs, queues := int64(d.backend.Vifs()), int64(d.maxQueues)
	p, processes, resident := d.poolMemory()
	m := &netcontrol.Memory{
		Resident:   resident,
		Heap:       d.heapLimit() * (1 + processes),
		Waiting:    vifs*queues*p.Queue + min(p.Shared*max(processes, 1), vifs*p.Vif),
		WaitShared: p.Shared, WaitUsed: p.SharedUsed,
		Buffers: int64(p.Workers) * p.Worker, BuffersMax: int64(p.MaxWorkers) * p.Worker,
		VifMax:      queues*p.Queue + min(p.Shared, p.Vif) + p.Worker + heapVifBytes,
		StaticPages: d.static,
	}
	m.Max = m.Heap + m.Waiting + m.BuffersMax
	return m
}

// poolMemory returns the memory of all pools, the number of packet processes, and the resident
// bytes of all processes.
func (d *netDaemon) poolMemory() (m dataplane.Memory, processes, resident int64) {
	resident = daemon.Resident()
	if d.pool != nil {
		return d.pool.Memory(), 0, resident
	}
	m = dataplane.MemoryOf(d.shared(), 0)
	m.MaxWorkers = 0
	for _, p := range d.processes.Status() {
		processes++
		m.Workers += p.Ready.Workers
		m.MaxWorkers += p.Ready.Workers + dataplane.MaxSpares
		kb, _ := usage(p.PID)
		resident += int64(kb) << 10
	}
	return m, processes, resident
}

// shared returns the bytes of --rx-memory.
func (d *netDaemon) shared() int64 { return int64(d.rxMemory) << 20 }

// serve serves vifs, and answers at the control socket, until ctx ends.
func (d *netDaemon) serve(ctx context.Context) error {
	d.Log.Info("starting", zap.String("version", d.status.Version), zap.String("xen", d.xen),
		zap.String("isolate", d.status.Isolation), zap.Int("workers", d.status.Workers), zap.String("io_uring", d.status.Uring), zap.Bool("offload", d.status.Offload),
		zap.String("coalesce", d.status.Coalesce),
		zap.Bool("own_pages", d.own.pages != nil), zap.NamedError("own_pages_off", d.own.off),
		zap.String("priority", d.status.Priority))
	err := d.Serve(ctx, daemon.Work{
		Listener: d.listener, Handler: netcontrol.Handler(d.now, d.backend, backend.ErrNoVif),
		Workers: d.pingEngine, Control: d.backend.Ping, Heap: d.heapLimit,
		Text: func() string { return vifCount(d.backend.Vifs()) },
		Run: func(ctx context.Context, ready func()) error {
			return d.backend.Run(ctx, func() {
				d.Log.Info("ready")
				ready()
			})
		},
	})
	d.Log.Info("stopped; guests keep their state for the next netbackd")
	return err
}

// vifCount is the status of the daemon for the service manager.
func vifCount(n int) string {
	if n == 1 {
		return "1 vif"
	}
	return fmt.Sprintf("%d vifs", n)
}

// otherThreads allows for threads that are neither workers, nor in a blocking call for a
// vif, nor running Go code: those of the runtime, and one each for the control loop, the
// log, the connection to xenstored, the keeper of TAP queues, and the service manager.
const otherThreads = 32

// maxThreads returns the bound on the threads of the process, for any number of vifs.
// TasksMax in systemd/netbackd.service must allow as many. Go never ends a thread.
func maxThreads(workers int) int {
	return workers + runtime.GOMAXPROCS(0) + budget.Turns + dataplane.MaxSpares + otherThreads
}

// kernel returns the kernel's driver, which may serve vifs on a real Xen.
func kernel(h Host) backend.Kernel {
	if !h.Real() {
		return nil
	}
	return xennetback.New("/sys")
}

// keeper returns the service manager as the keeper of TAP queues, or nil.
func keeper(n *sdnotify.Notifier) backend.Keeper {
	if n == nil {
		return nil
	}
	return n
}
