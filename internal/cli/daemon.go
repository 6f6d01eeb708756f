// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/backend"
	"github.com/netbackd/netbackd/internal/budget"
	"github.com/netbackd/netbackd/internal/control"
	"github.com/netbackd/netbackd/internal/ctrlserver"
	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/logsink"
	"github.com/netbackd/netbackd/internal/netcontrol"
	"github.com/netbackd/netbackd/internal/sdnotify"
	"github.com/netbackd/netbackd/internal/vif"
	"github.com/netbackd/netbackd/internal/xennetback"
	"github.com/netbackd/netbackd/pkg/tap"
)

// daemon is `netbackd run`.
type daemon struct {
	*runFlags
	rings ctrlserver.Protocols
	log   *zap.Logger
	sink  *logsink.Sink

	notify   *sdnotify.Notifier
	host     Host
	listener net.Listener // Serve closes it
	pool     *dataplane.Pool
	backend  *backend.Backend
	status   netcontrol.Daemon // the fields that do not change
}

// setUp opens everything that the daemon needs. If something is missing the daemon ends
// here, and not with the first guest.
func (d *daemon) setUp(open Opener) (err error) {
	// This comes first, so that no child inherits the files.
	notify, kept, err := sdnotify.FromEnv()
	if err != nil {
		d.log.Warn("environment from the service manager is not valid", zap.Error(err))
	}
	d.notify = notify
	if err := os.MkdirAll(d.runDir, 0o755); err != nil {
		return fmt.Errorf("run directory: %w", err)
	}
	raiseFileLimit()
	if err := tap.Probe(tap.MultiQueue); err != nil {
		return err
	}
	offload := d.offload == "auto"
	if offload && errors.Is(tap.Probe(tap.VnetHeader), tap.ErrNotSupported) {
		d.log.Warn("offload switched off: the kernel's TAPs have no vnet header")
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
	d.pool, err = dataplane.NewPool(dataplane.Options{
		Workers: d.workers,
		NoUring: !d.uring,
		Warn:    func(err error) { d.log.Warn("data path degraded", zap.Error(err)) },
	})
	if err != nil {
		return err
	}
	// A worker that waits in the kernel holds its P of Go's scheduler. If no P is free,
	// the runtime takes it away within 20 µs, and again after each wake, with a thread
	// that sleeps 20 µs at a time: more work than the wake itself. One free P avoids that.
	runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), d.pool.Workers()+1))

	d.backend = backend.New(backend.Config{
		Dial: d.host.DialStore, Host: d.host, Pool: d.pool, Log: d.log,
		Options: vif.Options{
			MaxQueues: d.maxQueues, Offload: offload, RunDir: d.runDir, Drain: d.drain, Stall: d.stall,
			ControlRings: d.rings, StaticGrants: d.static, NoBPF: d.noBPF(),
		},
		Kernel: kernel(d.host), Keeper: keeper(notify), Kept: kept,
	})
	d.status = netcontrol.Daemon{
		Version: buildVersion(), PID: os.Getpid(), Since: time.Now(),
		Workers: d.pool.Workers(), Uring: uringState(d.uring), Offload: offload,
		MaxThreads: maxThreads(d.pool.Workers()),
	}
	return nil
}

// close closes the resources of setUp.
func (d *daemon) close() (err error) {
	if d.pool != nil {
		d.pool.Close()
	}
	if d.listener != nil {
		if err = d.listener.Close(); errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrClosed) {
			err = nil
		}
	}
	if d.host != nil {
		err = errors.Join(err, d.host.Close())
	}
	return err
}

// now returns the status of the daemon.
func (d *daemon) now() netcontrol.Daemon {
	s := d.status
	s.LogLost, s.Threads = d.sink.Lost(), threads()
	return s
}

// serve serves vifs, and answers at the control socket, until ctx ends.
func (d *daemon) serve(ctx context.Context) (err error) {
	clients, err := zap.NewStdLogAt(d.log, zap.WarnLevel)
	if err != nil {
		return err
	}
	serveCtx, stop := context.WithCancel(ctx)
	served := make(chan error, 1)
	go func() {
		served <- control.Serve(serveCtx, d.listener, netcontrol.Handler(d.now, d.backend, backend.ErrNoVif), clients)
	}()
	defer func() {
		stop()
		err = errors.Join(err, <-served)
	}()

	// The data path allocates nothing. The heap is small, so frequent collections are
	// cheap and keep the daemon small.
	debug.SetGCPercent(50)
	d.log.Info("starting", zap.String("version", d.status.Version), zap.String("xen", d.xen),
		zap.Int("workers", d.status.Workers), zap.String("io_uring", d.status.Uring), zap.Bool("offload", d.status.Offload))
	srv := &service{notify: d.notify, log: d.log, workers: d.pool.Ping, control: d.backend.Ping, text: func() string { return vifCount(d.backend.Vifs()) }}
	var watch sync.WaitGroup
	err = d.backend.Run(ctx, func() {
		d.log.Info("ready")
		watch.Go(func() { srv.serve(serveCtx) })
	})
	stop()
	watch.Wait()
	srv.stopped()
	d.log.Info("stopped; guests keep their state for the next netbackd")
	return err
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

// threads counts the threads of the process, and returns 0 if it cannot.
func threads() int {
	tasks, _ := os.ReadDir("/proc/self/task")
	return len(tasks)
}

// kernel returns the kernel's driver, which may serve vifs on a real Xen.
func kernel(h Host) backend.Kernel {
	if !h.Real() {
		return nil
	}
	return xennetback.New("/sys")
}

// wantFiles is enough for a thousand guests: each queue has a file for the TAP and one for
// its event channels, and io_uring's file tables count as well.
const wantFiles = 65536

// raiseFileLimit raises the limit on open files as far as allowed. If that is not enough, a
// vif fails to connect and reports the error.
func raiseFileLimit() {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil || l.Cur >= wantFiles {
		return
	}
	most := unix.Rlimit{Cur: wantFiles, Max: max(l.Max, wantFiles)}
	if unix.Setrlimit(unix.RLIMIT_NOFILE, &most) != nil {
		l.Cur = l.Max
		_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &l)
	}
}
