// SPDX-License-Identifier: Apache-2.0

package blkcli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"time"

	"go.uber.org/zap"

	"github.com/netbackd/netbackd/internal/blkbackend"
	"github.com/netbackd/netbackd/internal/blkcontrol"
	"github.com/netbackd/netbackd/internal/blkengine"
	"github.com/netbackd/netbackd/internal/blkplane"
	"github.com/netbackd/netbackd/internal/budget"
	"github.com/netbackd/netbackd/internal/command"
	"github.com/netbackd/netbackd/internal/confine"
	"github.com/netbackd/netbackd/internal/control"
	"github.com/netbackd/netbackd/internal/daemon"
	"github.com/netbackd/netbackd/internal/devices"
	"github.com/netbackd/netbackd/internal/disk"
	"github.com/netbackd/netbackd/internal/sdnotify"
	"github.com/netbackd/netbackd/internal/vbd"
	"github.com/netbackd/netbackd/internal/xendriver"
)

// blkDaemon is `blkbackd run`.
type blkDaemon struct {
	*daemon.Process
	*runFlags
	mode disk.Cache

	host     Host
	listener net.Listener         // Serve closes it
	pool     *blkplane.Pool       // nil: disk processes serve
	remote   *blkengine.Processes // nil: this process serves
	backend  *blkbackend.Backend
	status   blkcontrol.Daemon // the fields that do not change
}

// setUp opens everything that the daemon needs. If something is missing the daemon ends
// here, and not with the first guest.
func (d *blkDaemon) setUp(open Opener) (err error) {
	notify, files, err := sdnotify.FromEnv()
	if err != nil {
		d.Log.Warn("environment from the service manager is not valid", zap.Error(err))
	}
	d.Notify = notify
	for _, f := range files {
		d.Log.Warn("unknown file received from the service manager; closing it", zap.String("name", f.Name))
		_ = os.NewFile(uintptr(f.FD), f.Name).Close()
	}
	if err := os.MkdirAll(d.runDir, 0o755); err != nil {
		return fmt.Errorf("run directory: %w", err)
	}
	daemon.RaiseFileLimit()
	raiseProcessors()
	h, err := open(d.xen)
	if err != nil {
		return err
	}
	d.host = h // not before the check: with an error h may hold a nil pointer
	if d.listener, err = control.Listen(blkcontrol.Program, command.SocketIn(d.runDir)); err != nil {
		return err
	}
	engine, err := d.openEngine()
	if err != nil {
		return err
	}
	d.backend = blkbackend.New(blkbackend.Config{
		Dial: h.DialStore, Engine: engine, Log: d.Log,
		Options: vbd.Options{
			MaxQueues: d.maxQueues, MaxOrder: d.maxOrder, MaxSegments: d.maxSegs, Persistent: d.persistent,
			Cache: d.mode, RunDir: d.runDir, Drain: d.drain,
		},
		Kernel: kernel(h), MaxPerGuest: d.maxVbds, GuestMemory: int64(d.memory) << 20,
	})
	threads := maxThreads(d.queueThreads())
	debug.SetMaxThreads(max(2*threads, goMaxThreads)) // Go's bound ends the process
	d.status = blkcontrol.Daemon{
		Version: command.Version(), PID: os.Getpid(), Since: time.Now(), Uring: daemon.UringState(d.uring),
		MaxQueues: d.maxQueues, MaxSegments: d.maxSegs, Persistent: d.persistent, Cache: d.mode.String(),
		MaxVbds: d.maxVbds, GuestMemory: int64(d.memory) << 20,
		AllQueues: d.maxThreads, MaxMaps: blkplane.DefaultMaxMaps, MaxThreads: threads,
	}
	return d.enter()
}

// enter takes from the process what no disk needs: programs, other processes, code, mounts.
func (d *blkDaemon) enter() error {
	if !d.sandbox || d.remote != nil { // a broker starts processes, and touches no memory of a guest
		return nil
	}
	err := confine.Enter(confine.Disks())
	if errors.Is(err, confine.ErrNotSupported) {
		d.Log.Warn("no sandbox", zap.Error(err))
		return nil
	}
	if err != nil {
		return fmt.Errorf("sandbox: %w; --sandbox=false runs without", err)
	}
	return nil
}

// close closes the resources of setUp.
func (d *blkDaemon) close() (err error) {
	if d.listener != nil {
		err = daemon.CloseListener(d.listener)
	}
	if d.remote != nil {
		d.remote.Close()
	}
	if d.host != nil {
		err = errors.Join(err, d.host.Close())
	}
	return err
}

// now returns the status of the daemon.
func (d *blkDaemon) now() blkcontrol.Daemon {
	s := d.status
	s.LogLost, s.Threads = d.LogLost(), daemon.Threads()
	d.engineNow(&s)
	return s
}

// serve serves vbds, and answers at the control socket, until ctx ends.
func (d *blkDaemon) serve(ctx context.Context) error {
	d.Log.Info("starting", zap.String("version", d.status.Version), zap.String("xen", d.xen), zap.String("io_uring", d.status.Uring),
		zap.String("cache", d.status.Cache), zap.Int("max_queues", d.maxQueues), zap.Int("max_segments", d.maxSegs), zap.Bool("persistent", d.persistent))
	err := d.Serve(ctx, daemon.Work{
		Listener: d.listener, Handler: blkcontrol.Handler(d.now, d.backend, blkbackend.ErrNoVbd),
		// A queue may wait for its disk as long as the disk takes. That costs its guest, and
		// is named.
		Workers: func(context.Context) error { d.watchEngine(); return nil }, Control: d.backend.Ping,
		Text: func() string { return vbdCount(d.backend.Vbds()) },
		Run: func(ctx context.Context, ready func()) error {
			return d.backend.Run(ctx, func() {
				d.Log.Info("ready")
				ready()
			})
		},
	})
	d.Log.Info("stopped; guests keep their disks for the next blkbackd")
	return err
}

// vbdCount is the status of the daemon for the service manager.
func vbdCount(n int) string {
	if n == 1 {
		return "1 vbd"
	}
	return fmt.Sprintf("%d vbds", n)
}

// otherThreads allows for threads that neither serve a queue, nor are in a blocking call for
// a vbd, nor run Go code: those of the runtime, and one each for the control loop, the log
// and the connection to xenstored.
const otherThreads = 32

// goMaxThreads is the bound of Go's runtime on the threads of a process.
const goMaxThreads = 10000

// maxThreads returns the bound on the threads of the process for a number of threads of
// queues. TasksMax in systemd/blkbackd.service must allow as many, and those of the kernel for
// io_uring. Go never ends a thread.
func maxThreads(queues int) int { return queues + runtime.GOMAXPROCS(0) + budget.Turns + otherThreads }

// kernel returns the kernel's driver, which may serve vbds on a real Xen.
func kernel(h Host) devices.Kernel {
	if !h.Real() {
		return nil
	}
	return xendriver.New("/sys", xendriver.Blkback)
}
