// SPDX-License-Identifier: Apache-2.0

package blkcli

import (
	"context"
	"errors"
	"runtime"
	"time"

	"github.com/spf13/cobra"

	"github.com/netbackd/netbackd/internal/blkengine"
	"github.com/netbackd/netbackd/internal/blkplane"
	"github.com/netbackd/netbackd/internal/command"
	"github.com/netbackd/netbackd/internal/daemon"
	"github.com/netbackd/netbackd/internal/disk"
	"github.com/netbackd/netbackd/internal/host"
	"github.com/netbackd/netbackd/internal/procs"
	"github.com/netbackd/netbackd/internal/vbd"
	"github.com/netbackd/netbackd/pkg/blkif"
)

// runFlags are the flags of `blkbackd run`.
type runFlags struct {
	xen        string
	uring      bool
	cache      string
	maxQueues  int
	maxOrder   int
	maxSegs    int
	persistent bool
	drain      time.Duration
	memory     int // MiB
	maxVbds    int
	maxThreads int
	sandbox    bool
	isolate    string
	isolation  procs.Isolation // of isolate
	log        daemon.LogFlags
	runDir     string
	steps      Steps // no flag: of the lab
}

// Bounds of flags. They bound the memory, threads and files that a guest can use.
const (
	maxQueuesLimit  = 64
	maxMemory       = 1 << 20 // MiB
	maxVbdsLimit    = 4096
	maxThreadsLimit = 1 << 16
)

// defaultVbds is the default of --max-vbds-per-guest.
const defaultVbds = 64

func newRunCmd(open Opener, steps Steps) *cobra.Command {
	f := runFlags{steps: steps}
	c := &cobra.Command{
		Use:   "run",
		Short: "Serve disks of this host's guests",
		Long: `Run serves the disks whose back end is this domain and whose hotplug script is
block-blkbackd, until SIGTERM or SIGINT ends it.

It can be stopped, killed and started again at any time: guests keep their disks, and the
next blkbackd starts the requests again that this one had not answered.

It writes its log to standard error and never waits for the reader: lines that the
reader does not take are lost and counted ("blkbackd show" prints the number, and so
does the log when it is read again). A closed terminal does not end it.

The manual page blkbackd(8) advises on the flags.`,
		Example: "  blkbackd run --cache direct --max-queues 2",
		Args:    command.Args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			f.runDir = command.RunDir(c)
			return f.run(c.Context(), open)
		},
	}
	fl := c.Flags()
	fl.StringVar(&f.xen, "xen", host.DefaultDir, "`directory` of Xen's devices")
	fl.BoolVar(&f.uring, "io-uring", true, "read and write disks through io_uring if the kernel has it, else by a pool of threads")
	fl.StringVar(&f.cache, "cache", disk.CacheAuto.String(), "use of the host's page cache: writeback, direct (none), or auto (none for block devices)")
	fl.IntVar(&f.maxQueues, "max-queues", min(4, runtime.NumCPU()), "`number` of queues offered to each disk; each has a thread")
	fl.IntVar(&f.maxOrder, "max-ring-order", vbd.DefaultMaxOrder, "binary `logarithm` of the pages offered for each ring")
	fl.IntVar(&f.maxSegs, "max-indirect-segments", blkplane.DefaultMaxSegments, "`number` of segments of 4 KiB offered for each request; up to 11: no indirect requests")
	fl.BoolVar(&f.persistent, "persistent", true, "offer guests to keep their pages granted, so that they are mapped once")
	fl.DurationVar(&f.drain, "drain", vbd.DefaultDrain, "wait this long for requests in flight when a disk is detached")
	fl.IntVar(&f.memory, "guest-memory", blkplane.DefaultGuestBytes>>20, "`MiB` of data of one guest that are in flight at most")
	fl.IntVar(&f.maxVbds, "max-vbds-per-guest", defaultVbds, "`number` of disks of a guest that are served")
	fl.IntVar(&f.maxThreads, "max-queues-all", blkplane.DefaultMaxThreads, "`number` of queues of all disks; a disk beyond it does not connect")
	fl.BoolVar(&f.sandbox, "sandbox", true, "give up system calls that no disk needs, once the daemon is set up")
	fl.StringVar(&f.isolate, "isolate", string(procs.IsolateNone), "which disks `share` a process without rights that has their guests' memory: "+procs.Isolations)
	f.log.Add(fl)
	return c
}

// check returns the cache mode, or the first mistake in the flags.
func (f *runFlags) check() (disk.Cache, error) {
	cache, err := disk.ParseCache(f.cache)
	if err != nil {
		return 0, command.Usagef("--cache: %w", err)
	}
	if f.isolation, err = procs.ParseIsolation(f.isolate); err != nil {
		return 0, command.Usagef("--isolate is %w", err)
	}
	switch {
	case f.maxQueues < 1 || f.maxQueues > maxQueuesLimit:
		return 0, command.Usagef("--max-queues is %d, want 1 to %d", f.maxQueues, maxQueuesLimit)
	case f.isolation != procs.IsolateNone && f.maxQueues > blkengine.MaxQueues:
		return 0, command.Usagef("--max-queues is %d, want 1 to %d with --isolate", f.maxQueues, blkengine.MaxQueues)
	case f.maxOrder < 0 || f.maxOrder > blkif.MaxOrder:
		return 0, command.Usagef("--max-ring-order is %d, want 0 to %d", f.maxOrder, blkif.MaxOrder)
	case f.maxSegs < 0 || f.maxSegs > blkif.MaxIndirect:
		return 0, command.Usagef("--max-indirect-segments is %d, want 0 to %d", f.maxSegs, blkif.MaxIndirect)
	case f.drain <= 0 || f.drain > vbd.DefaultDrain:
		// A toolstack waits 10 s for the end of a disk.
		return 0, command.Usagef("--drain is %v, want a time up to %v", f.drain, vbd.DefaultDrain)
	case f.memory < 1 || f.memory > maxMemory:
		return 0, command.Usagef("--guest-memory is %d, want 1 to %d", f.memory, maxMemory)
	case f.maxVbds < 1 || f.maxVbds > maxVbdsLimit:
		return 0, command.Usagef("--max-vbds-per-guest is %d, want 1 to %d", f.maxVbds, maxVbdsLimit)
	case f.maxThreads < 1 || f.maxThreads > maxThreadsLimit:
		return 0, command.Usagef("--max-queues-all is %d, want 1 to %d", f.maxThreads, maxThreadsLimit)
	}
	return cache, nil
}

func (f *runFlags) run(ctx context.Context, open Opener) (err error) {
	cache, err := f.check()
	if err != nil {
		return err
	}
	p, end, err := daemon.Begin(f.log)
	if err != nil {
		return err
	}
	defer end()
	d := &blkDaemon{Process: p, runFlags: f, mode: cache}
	defer func() { err = errors.Join(err, d.close()) }()
	if err := d.setUp(open); err != nil {
		return err
	}
	return d.serve(ctx)
}
