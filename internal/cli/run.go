// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/backend"
	"github.com/netbackd/netbackd/internal/budget"
	"github.com/netbackd/netbackd/internal/control"
	"github.com/netbackd/netbackd/internal/ctrlserver"
	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/host"
	"github.com/netbackd/netbackd/internal/iouring"
	"github.com/netbackd/netbackd/internal/logsink"
	"github.com/netbackd/netbackd/internal/sdnotify"
	"github.com/netbackd/netbackd/internal/steer"
	"github.com/netbackd/netbackd/internal/vif"
	"github.com/netbackd/netbackd/internal/xennetback"
	"github.com/netbackd/netbackd/pkg/staticgrant"
	"github.com/netbackd/netbackd/pkg/tap"
)

// runFlags are the settings of the daemon.
type runFlags struct {
	xen       string
	offload   string
	uring     bool
	workers   int
	maxQueues int
	drain     time.Duration
	stall     time.Duration
	control   string
	static    int
	bpf       bool
	logLevel  string
	logFormat string
	runDir    string
}

func newRunCmd(open Opener) *cobra.Command {
	var f runFlags
	c := &cobra.Command{
		Use:   "run",
		Short: "Serve the vifs of this host's guests",
		Long: `Run serves every vif whose backend is this domain, until it is told to stop.

It can be stopped, killed and started again at any time: guests keep their
connections, and the next netbackd takes over where this one left.

It writes its log to standard error and never waits for who reads it: lines that the
reader does not take are lost, counted ("netbackd show" tells), and told of in the log
when it takes lines again. A terminal that is closed does not end it.`,
		Args: Args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			f.runDir, _ = c.Flags().GetString("run-dir")
			return f.run(c.Context(), open)
		},
	}
	fl := c.Flags()
	fl.StringVar(&f.xen, "xen", host.DefaultDir, "`directory` of Xen's devices")
	fl.StringVar(&f.offload, "offload", "auto", "checksum and segmentation offload on TAPs: auto (for all but those on a bridge of Open vSwitch's userspace datapath) or none")
	fl.BoolVar(&f.uring, "io-uring", true, "move batches through io_uring where the kernel has it")
	fl.IntVar(&f.workers, "workers", 0, "threads that move packets; 0: one per CPU")
	fl.IntVar(&f.maxQueues, "max-queues", min(8, runtime.NumCPU()), "queues offered to each vif")
	fl.DurationVar(&f.drain, "rx-drain", dataplane.DefaultDrain, "drop packets a guest has not taken for this long")
	fl.DurationVar(&f.stall, "rx-stall", dataplane.DefaultStall, "take the carrier from a guest that takes nothing for this long")
	fl.BoolVar(&f.bpf, "bpf", true, "steer packets to the queues that guests choose by a program in the kernel, where it takes one")
	fl.StringVar(&f.control, "control-ring", "slot", "control ring offered to vifs: slot, stream (an early proposal), both or none")
	fl.IntVar(&f.static, "static-grants", staticgrant.DefaultLimit, "pages that each queue keeps mapped for a guest that asks for it; 0: none")
	fl.StringVar(&f.logLevel, "log-level", "info", "debug, info, warn or error")
	fl.StringVar(&f.logFormat, "log-format", "console", "console or json")
	return c
}

// maxQueuesLimit bounds --max-queues. What a guest can take up grows with it.
const maxQueuesLimit = 64

// maxStatic bounds --static-grants: what is left to one guest by all the others.
const maxStatic = staticgrant.DefaultBudget

func (f *runFlags) check() error {
	switch {
	case f.offload != "auto" && f.offload != "none":
		return usageError{fmt.Errorf("--offload is %q, want auto or none", f.offload)}
	case f.maxQueues < 1 || f.maxQueues > maxQueuesLimit:
		return usageError{fmt.Errorf("--max-queues is %d, want 1 to %d", f.maxQueues, maxQueuesLimit)}
	case f.workers < 0 || f.workers > 1024:
		return usageError{fmt.Errorf("--workers is %d, want 0 to 1024", f.workers)}
	case f.static < 0 || f.static > maxStatic:
		return usageError{fmt.Errorf("--static-grants is %d, want 0 to %d", f.static, maxStatic)}
	case f.drain <= 0 || f.stall <= 0:
		return usageError{errors.New("--rx-drain and --rx-stall want times above 0")}
	}
	return nil
}

func (f *runFlags) run(ctx context.Context, open Opener) (err error) {
	if err := f.check(); err != nil {
		return err
	}
	rings, err := ctrlserver.ParseProtocols(f.control)
	if err != nil {
		return usageError{fmt.Errorf("--control-ring: %w", err)}
	}
	// A reader of the log that goes away, and a terminal that is closed, are no reason
	// to end.
	signal.Ignore(unix.SIGPIPE, unix.SIGHUP, unix.SIGTTOU)
	logsink.Unblock(stderr)
	log, sink, err := f.logger()
	if err != nil {
		return err
	}
	defer func() { _ = log.Sync() }()
	defer zap.RedirectStdLog(log)()
	// First of all: the files handed over are not to get into other hands.
	notify, handed, err := sdnotify.FromEnv()
	if err != nil {
		log.Warn("what the service manager left in the environment", zap.Error(err))
	}
	if err := os.MkdirAll(f.runDir, 0o755); err != nil {
		return fmt.Errorf("run directory: %w", err)
	}
	raiseFileLimit()
	if err := tap.Probe(tap.MultiQueue); err != nil {
		return err
	}
	offload := f.offload == "auto"
	if offload && errors.Is(tap.Probe(tap.VnetHeader), tap.ErrNotSupported) {
		log.Warn("the kernel's TAPs have no vnet header; going on without offload")
		offload = false
	}
	h, err := open(f.xen)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.Close()) }()
	listener, err := control.Listen(f.runDir + "/control.sock")
	if err != nil {
		return err
	}
	pool, err := dataplane.NewPool(dataplane.Options{
		Workers: f.workers,
		NoUring: !f.uring,
		Warn:    func(err error) { log.Warn("data path", zap.Error(err)) },
	})
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	defer pool.Close()
	// A worker that waits in the kernel holds its processor of Go's scheduler.
	// When none is free the runtime takes it away within 20 µs, and then again
	// after each wake, with a thread that sleeps 20 µs at a time: more work than
	// the wake itself. One that is free ends that.
	runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), pool.Workers()+1))

	b := backend.New(backend.Config{
		Dial: h.DialStore, Host: h, Pool: pool, Log: log,
		Options: vif.Options{
			MaxQueues: f.maxQueues, Offload: offload, RunDir: f.runDir, Drain: f.drain, Stall: f.stall,
			ControlRings: rings, StaticGrants: f.static, NoBPF: f.noBPF(),
		},
		Kernel: kernel(h), Keeper: keeper(notify), Kept: handed,
	})
	srv := &service{notify: notify, log: log, workers: pool.Ping, control: b.Ping, vifs: b.Vifs}
	d := control.Daemon{
		Version: buildVersion(), PID: os.Getpid(), Since: time.Now(),
		Workers: pool.Workers(), Uring: f.uringState(), Offload: offload,
		MaxThreads: maxThreads(pool.Workers()),
	}
	now := func() control.Daemon {
		d := d
		d.LogLost, d.Threads = sink.Lost(), threads()
		return d
	}
	clients, err := zap.NewStdLogAt(log, zap.WarnLevel)
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	serveCtx, stop := context.WithCancel(ctx)
	served := make(chan error, 1)
	go func() {
		served <- control.Serve(serveCtx, listener, control.Handler(now, b, backend.ErrNoVif), clients)
	}()
	defer func() {
		stop()
		err = errors.Join(err, <-served)
	}()

	// The data path allocates nothing; what is left to collect is small, so a
	// low limit costs nothing and keeps the daemon small.
	debug.SetGCPercent(50)
	log.Info("starting", zap.String("version", d.Version), zap.String("xen", f.xen),
		zap.Int("workers", d.Workers), zap.String("io_uring", d.Uring), zap.Bool("offload", offload))
	var watch sync.WaitGroup
	err = b.Run(ctx, func() {
		log.Info("ready")
		watch.Go(func() { srv.serve(serveCtx) })
	})
	stop()
	watch.Wait()
	srv.stopped()
	log.Info("stopped; guests keep their state for the next netbackd")
	return err
}

// otherThreads is for what is neither a worker, nor a blocking call on behalf of a vif,
// nor runs Go code just now: the runtime's own, and one each for the control loop, the
// log, xenstored's connection, the keeper of TAP queues, and the service manager.
const otherThreads = 32

// maxThreads bounds the threads of the process, however many vifs there are and whatever
// their guests do: systemd/netbackd.service has to allow that many (TasksMax).
// A thread that Go has made it keeps.
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

// wantFiles is enough for a thousand guests: each queue has a file for the TAP
// and one for its event channels, and io_uring's file tables count as well.
const wantFiles = 65536

// raiseFileLimit raises the limit on open files as far as we may. What is missing
// after that shows where it is needed.
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

// noBPF says why packets are not steered by programs in the kernel; nil: they are.
func (f *runFlags) noBPF() error {
	if !f.bpf {
		return errors.New("switched off by --bpf=false")
	}
	return steer.Probe()
}

// uringState says whether io_uring is used, and if not why.
func (f *runFlags) uringState() string {
	if !f.uring {
		return "switched off by --io-uring=false"
	}
	if err := iouring.Supported(); err != nil {
		return err.Error()
	}
	return "in use"
}

// stderr is where the log goes.
const stderr = 2

// logger makes the log, and the sink that its lines go to.
func (f *runFlags) logger() (*zap.Logger, *logsink.Sink, error) {
	level, err := zapcore.ParseLevel(f.logLevel)
	if err != nil {
		return nil, nil, usageError{fmt.Errorf("--log-level is %q, want debug, info, warn or error", f.logLevel)}
	}
	cfg := zap.NewProductionEncoderConfig()
	cfg.EncodeTime = zapcore.ISO8601TimeEncoder
	var lines zapcore.Encoder
	switch f.logFormat {
	case "console":
		cfg.EncodeLevel = zapcore.CapitalLevelEncoder
		lines = zapcore.NewConsoleEncoder(cfg)
	case "json":
		lines = zapcore.NewJSONEncoder(cfg)
	default:
		return nil, nil, usageError{fmt.Errorf("--log-format is %q, want console or json", f.logFormat)}
	}
	sink := logsink.New(stderr, lostNote(lines))
	return zap.New(zapcore.NewCore(lines, sink, level), zap.ErrorOutput(sink)), sink, nil
}

// lostNote makes the line of the log that tells of lines that were lost.
func lostNote(lines zapcore.Encoder) logsink.Note {
	return func(n uint64, cause error) []byte {
		e := zapcore.Entry{Level: zap.WarnLevel, Time: time.Now(), Message: "lines of the log were lost"}
		b, err := lines.EncodeEntry(e, []zap.Field{zap.Uint64("lines", n), zap.NamedError("reason", cause)})
		if err != nil {
			return nil
		}
		return b.Bytes()
	}
}
