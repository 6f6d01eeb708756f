// SPDX-License-Identifier: Apache-2.0

package blkcli

import (
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/blkcontrol"
	"github.com/netbackd/netbackd/internal/blkengine"
	"github.com/netbackd/netbackd/internal/blkplane"
	"github.com/netbackd/netbackd/internal/procs"
	"github.com/netbackd/netbackd/internal/spawn"
)

// openEngine makes the engine that serves requests: in this process, or in disk processes.
func (d *blkDaemon) openEngine() (blkengine.Engine, error) {
	if d.isolation == procs.IsolateNone {
		atStep, err := d.steps.at()
		if err != nil {
			return nil, err
		}
		d.pool = blkplane.NewPool(blkplane.Options{
			MaxThreads: d.maxThreads, NoUring: !d.uring, AtStep: atStep,
			Warn: func(err error) { d.Log.Warn("data path degraded", zap.Error(err)) },
		})
		return &blkengine.Local{Pool: d.pool, Host: d.host.Guest}, nil
	}
	raiseLocked()
	e, err := blkengine.NewProcesses(blkengine.ProcessesConfig{
		Isolation: d.isolation, Opener: d.host, Log: d.Log,
		Start: func() (procs.Child, error) {
			c, err := spawn.Start(spawn.Options{
				Args: []string{diskProcess, "--log-level", d.log.Level, "--log-format", d.log.Format},
				Env:  d.steps.Env, Log: d.Pass,
			})
			if err != nil {
				return nil, err // without the nil pointer
			}
			return c, nil
		},
		NoUring: !d.uring, MaxQueues: d.maxThreads, Memory: int64(d.memory) << 20,
	})
	d.remote = e
	return e, err
}

// raiseLocked gives disk processes, which have no capability, the limit that they need for the
// memory of io_uring. Only a daemon that was started by root can.
func raiseLocked() {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &l); err == nil && l.Cur < unix.RLIM_INFINITY {
		_ = unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}) // without it queues use threads
	}
}

// queueThreads returns the most threads of this process that queues have.
func (d *blkDaemon) queueThreads() int {
	if d.pool == nil {
		return 0
	}
	return d.pool.MaxThreads() * d.pool.QueueThreads()
}

// watchEngine looks for queues that do not come back. It does not wait for disk processes: one
// that does not answer is killed, and its vbds go on with another one.
func (d *blkDaemon) watchEngine() {
	if d.pool == nil {
		d.remote.Look()
		return
	}
	d.pool.Watch()
}

// refreshTime bounds the wait for disk processes before their state is shown.
const refreshTime = 500 * time.Millisecond

// engineNow stores the present state of the engine in the status.
func (d *blkDaemon) engineNow(s *blkcontrol.Daemon) {
	if d.pool != nil {
		s.Queues, s.Maps = d.pool.Threads(), d.pool.Maps()
		return
	}
	d.remote.Refresh(refreshTime)
	s.Isolation, s.Queues = string(d.isolation), d.remote.Queues()
	for _, p := range d.remote.Status() {
		s.Maps += p.Maps
		s.Processes = append(s.Processes, blkcontrol.DiskProcess{
			For: p.For, PID: p.PID, Vbds: p.Links, Uring: p.Uring, Restarts: p.Restarts, LastDeath: p.Last,
		})
	}
}
