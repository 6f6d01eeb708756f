// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/command"
	"github.com/netbackd/netbackd/internal/confine"
	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/netcontrol"
	"github.com/netbackd/netbackd/internal/netengine"
	"github.com/netbackd/netbackd/internal/procs"
	"github.com/netbackd/netbackd/internal/spawn"
	"github.com/netbackd/netbackd/pkg/gntalloc"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// isolateAuto is the value of --isolate that leaves the choice to chooseIsolation.
const isolateAuto = "auto"

// chooseIsolation decides what --isolate=auto means on a kernel, with the error of
// [confine.Supported]: one process for all vifs, if the kernel can take its rights away. Other
// values stay: a packet process that cannot be confined ends the daemon at its start.
func (d *netDaemon) chooseIsolation(unsupported error) {
	if d.isolate != isolateAuto {
		return
	}
	d.isolation = procs.IsolateShared
	if unsupported != nil {
		d.isolation, d.unconfined = procs.IsolateNone, unsupported
		d.Log.Warn("packets move in the daemon, and not in a process without rights", zap.Error(unsupported))
	}
}

// openEngine makes the engine that moves packets: in this process, or in packet processes.
func (d *netDaemon) openEngine() (netengine.Engine, error) {
	d.chooseIsolation(confine.Supported())
	if d.isolation != procs.IsolateNone {
		return d.openProcesses()
	}
	d.own.open(d.host, d.ownPages)
	pool, err := dataplane.NewPool(dataplane.Options{
		Workers:    d.workers,
		NoUring:    !d.uring,
		NoPriority: d.priority == priorityOff,
		OwnPager:   d.own.pager(),
		Shared:     d.shared(),
		Warn:       d.degraded,
		Note:       func(text string) { d.Log.Info("guests moved", zap.String("why", text)) },
	})
	if err != nil {
		return nil, err
	}
	d.pool = pool
	setProcessors(pool.Workers())
	return &netengine.Local{Pool: pool, Host: d.host}, nil
}

// openProcesses makes the engine of packet processes.
func (d *netDaemon) openProcesses() (netengine.Engine, error) {
	workers := d.workers
	if d.isolation != procs.IsolateShared {
		workers = d.isolateWorkers
	}
	raiseLimits()
	var limit func() (int, error)
	if d.host.Real() {
		limit = func() (int, error) { return gntalloc.Limit(gntalloc.LimitPath) }
	}
	e, err := netengine.NewProcesses(netengine.ProcessesConfig{
		Isolation: d.isolation, Opener: d.host, Log: d.Log,
		Start: func() (procs.Child, error) {
			c, err := spawn.Start(spawn.Options{
				Args: []string{packetProcess, "--log-level", d.log.Level, "--log-format", d.log.Format}, Log: d.Pass,
			})
			if err != nil {
				return nil, err // without the nil pointer
			}
			return c, nil
		},
		Workers: workers, Alone: d.isolateWorkers, NoUring: !d.uring, NoPriority: d.priority == priorityOff, Shared: d.shared(),
		OwnPages: d.ownPages != "none", PageLimit: limit,
	})
	d.processes = e
	return e, err
}

// raiseLimits gives packet processes, which have no capability, the limits that they need for
// memory of io_uring and for the priority of workers, as the unit does. Only a daemon that was
// started by root can, and only that one needs it.
func raiseLimits() {
	for which, want := range map[int]uint64{unix.RLIMIT_MEMLOCK: unix.RLIM_INFINITY, unix.RLIMIT_NICE: workerNice} {
		var l unix.Rlimit
		if err := unix.Getrlimit(which, &l); err == nil && l.Cur < want {
			_ = unix.Setrlimit(which, &unix.Rlimit{Cur: want, Max: max(l.Max, want)}) // without it packets move as well
		}
	}
}

// workerNice is the limit that allows a nice value of -10.
const workerNice = 20 + 10

// tellDomid tells packet processes the number of this domain.
func (d *netDaemon) tellDomid(ctx context.Context, c *xenstore.Client) {
	if domid, err := xenbus.OwnDomid(ctx, c); err == nil {
		d.processes.Told(domid)
	}
}

// setEngine stores what does not change of the engine in the status.
func (d *netDaemon) setEngine() {
	s := &d.status
	s.Isolation = string(d.isolation)
	if d.unconfined != nil {
		s.Unconfined = d.unconfined.Error()
	}
	if d.pool != nil {
		s.Workers, s.MaxThreads = d.pool.Workers(), maxThreads(d.pool.Workers())
		setPriority(s, d.pool)
		return
	}
	s.MaxThreads = maxThreads(0)
	if r, err := d.processes.Shared(); err == nil {
		s.Workers, s.Uring, s.Priority, s.Denied = r.Workers, r.Uring, r.Priority, r.Denied
	}
}

// refreshTime bounds the wait for packet processes before their state is shown.
const refreshTime = 500 * time.Millisecond

// engineNow stores the present state of the engine in the status.
func (d *netDaemon) engineNow(s *netcontrol.Daemon) {
	if d.pool != nil {
		s.Classes, s.OwnPages = d.pool.Classes(), d.own.status(d.pool.OwnPages())
		return
	}
	d.processes.Refresh(refreshTime)
	s.OwnPages = &netcontrol.OwnPages{}
	if err := d.processes.NoOwnPages(); err != nil {
		s.OwnPages.Reason = err.Error()
	}
	for _, p := range d.processes.Status() {
		n := netcontrol.PacketProcess{
			For: p.For, PID: p.PID, Vifs: p.Links, Workers: p.Ready.Workers, Restarts: p.Restarts, LastDeath: p.Last,
		}
		n.MemoryKB, n.Threads = usage(p.PID)
		s.Processes = append(s.Processes, n)
		s.Classes = append(s.Classes, p.Classes...)
		s.OwnPages.Granted += p.OwnPages.Granted
		s.OwnPages.Wanted += p.OwnPages.Wanted
		if p.OwnReason != "" {
			s.OwnPages.Reason = p.OwnReason
		}
	}
}

// usage returns the resident memory of a process in KiB, and its number of threads. They are 0
// if it has ended.
func usage(pid int) (kb, threads int) {
	if pid == 0 {
		return 0, 0
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0
	}
	for line := range strings.Lines(string(b)) {
		_, _ = fmt.Sscanf(line, "VmRSS: %d kB", &kb)
		_, _ = fmt.Sscanf(line, "Threads: %d", &threads)
	}
	return kb, threads
}

// pingEngine waits until every worker of this process has answered. It does not wait for packet
// processes: one that does not answer is killed, and its vifs go on with another one.
func (d *netDaemon) pingEngine(ctx context.Context) error {
	if d.pool == nil {
		d.processes.Look()
		return nil
	}
	return d.pool.Ping(ctx)
}

// processRow describes a packet process.
func processRow(p *netcontrol.PacketProcess) string {
	text := fmt.Sprintf("%s: process %d, %d vifs, %d workers, %d threads, %s of memory, %d restarts",
		p.For, p.PID, p.Vifs, p.Workers, p.Threads, command.Size(uint64(p.MemoryKB)<<10), p.Restarts)
	if p.LastDeath != "" {
		text += ", the last one because " + p.LastDeath
	}
	return text
}
