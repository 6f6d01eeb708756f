// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"runtime"
	"time"

	"github.com/spf13/cobra"

	"github.com/netbackd/netbackd/internal/command"
	"github.com/netbackd/netbackd/internal/ctrlserver"
	"github.com/netbackd/netbackd/internal/daemon"
	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/host"
	"github.com/netbackd/netbackd/internal/procs"
	"github.com/netbackd/netbackd/internal/steer"
	"github.com/netbackd/netbackd/pkg/gntalloc"
	"github.com/netbackd/netbackd/pkg/staticgrant"
)

// runFlags are the flags of `netbackd run`.
type runFlags struct {
	xen       string
	offload   string
	uring     bool
	coalesce  bool
	ownPages  string
	workers   int
	priority  string
	maxQueues int
	drain     time.Duration
	stall     time.Duration
	control   string
	static    int
	rxMemory  int // MiB
	bpf       bool
	log       daemon.LogFlags
	runDir    string

	isolate        string
	isolateWorkers int
	isolation      procs.Isolation // of isolate
}

func newRunCmd(open Opener) *cobra.Command {
	var f runFlags
	c := &cobra.Command{
		Use:   "run",
		Short: "Serve the vifs of this host's guests",
		Long: `Run serves every vif whose back end is this domain, until SIGTERM or SIGINT ends it.

It can be stopped, killed and started again at any time: guests keep their
connections, and the next netbackd continues where this one ended.

It writes its log to standard error and never waits for the reader: lines that the
reader does not take are lost and counted ("netbackd show" prints the number, and so
does the log when it is read again). A closed terminal does not end it.

The manual page netbackd(8) advises on the flags.`,
		Example: "  netbackd run --workers 4 --max-queues 4",
		Args:    command.Args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			f.runDir = command.RunDir(c)
			return f.run(c.Context(), open)
		},
	}
	fl := c.Flags()
	fl.StringVar(&f.xen, "xen", host.DefaultDir, "`directory` of Xen's devices")
	fl.StringVar(&f.offload, "offload", "auto", "leave checksums and segmentation to the host: auto (except on bridges of Open vSwitch's userspace datapath) or none")
	fl.BoolVar(&f.uring, "io-uring", true, "move batches of packets through io_uring if the kernel has it")
	fl.BoolVar(&f.coalesce, "coalesce", true, "merge packets that a guest without segmentation offload sends into larger ones for the host")
	fl.StringVar(&f.ownPages, "own-pages", "auto", "copy packets between pages of guests and pages that this domain has granted to itself: auto (if the kernel has "+gntalloc.DefaultPath+") or none")
	fl.IntVar(&f.workers, "workers", 0, "`number` of threads that move packets; 0: one per CPU")
	priorityFlag(fl, &f.priority)
	fl.IntVar(&f.maxQueues, "max-queues", min(8, runtime.NumCPU()), "`number` of queues offered to each vif")
	fl.IntVar(&f.rxMemory, "rx-memory", dataplane.DefaultShared>>20, "`MiB` for the packets of all guests that wait for room in their rings, beyond 512 KiB for each queue")
	fl.DurationVar(&f.drain, "rx-drain", dataplane.DefaultDrain, "drop packets that a guest has not taken for this long")
	fl.DurationVar(&f.stall, "rx-stall", dataplane.DefaultStall, "take the carrier off the interface of a guest that has taken nothing for this long")
	fl.BoolVar(&f.bpf, "bpf", true, "steer packets to the queues that guests choose by an eBPF program in the kernel, if it takes one")
	fl.StringVar(&f.control, "control-ring", "slot", "control `ring` offered to vifs: slot, stream (an early proposal), both or none")
	fl.IntVar(&f.static, "static-grants", staticgrant.DefaultLimit, "`number` of pages that each queue keeps mapped for a guest that asks for it; 0: none")
	fl.StringVar(&f.isolate, "isolate", isolateAuto, "which vifs `share` a process without rights that has their guests' memory: auto (shared if the kernel can take the rights away, or none), "+procs.Isolations)
	fl.IntVar(&f.isolateWorkers, "isolate-workers", 1, "`number` of threads that move packets in the process of a guest or a group")
	f.log.Add(fl)
	return c
}

// maxQueuesLimit bounds --max-queues, and so the memory and files that a guest can use.
const maxQueuesLimit = 64

// maxStatic bounds --static-grants: a guest may have no more in all.
const maxStatic = staticgrant.DefaultBudget

// maxWorkers bounds --workers: more threads than any machine has CPUs for.
const maxWorkers = 1024

// check returns the control rings to offer, or the first mistake in the flags.
func (f *runFlags) check() (ctrlserver.Protocols, error) {
	rings, err := ctrlserver.ParseProtocols(f.control)
	switch {
	case err != nil:
		return 0, command.Usagef("--control-ring: %w", err)
	case f.offload != "auto" && f.offload != "none":
		return 0, command.Usagef("--offload is %q, want auto or none", f.offload)
	case f.ownPages != "auto" && f.ownPages != "none":
		return 0, command.Usagef("--own-pages is %q, want auto or none", f.ownPages)
	case f.maxQueues < 1 || f.maxQueues > maxQueuesLimit:
		return 0, command.Usagef("--max-queues is %d, want 1 to %d", f.maxQueues, maxQueuesLimit)
	case badPriority(f.priority):
		return 0, command.Usagef("--worker-priority is %q, want auto or off", f.priority)
	case f.workers < 0 || f.workers > maxWorkers:
		return 0, command.Usagef("--workers is %d, want 0 to %d", f.workers, maxWorkers)
	case f.static < 0 || f.static > maxStatic:
		return 0, command.Usagef("--static-grants is %d, want 0 to %d", f.static, maxStatic)
	case f.isolateWorkers < 1 || f.isolateWorkers > maxWorkers:
		return 0, command.Usagef("--isolate-workers is %d, want 1 to %d", f.isolateWorkers, maxWorkers)
	case f.rxMemory < 1 || f.rxMemory > 1<<20:
		return 0, command.Usagef("--rx-memory is %d, want 1 to %d", f.rxMemory, 1<<20)
	case f.drain <= 0 || f.stall <= 0:
		return 0, command.Usagef("--rx-drain and --rx-stall want times above 0")
	}
	if f.isolation, err = f.checkIsolation(); err != nil {
		return 0, command.Usagef("--isolate: %w", err)
	}
	return rings, nil
}

// checkIsolation returns the value of --isolate, or the mistake in it. That of auto is chosen later.
func (f *runFlags) checkIsolation() (procs.Isolation, error) {
	if f.isolate == isolateAuto {
		return "", nil
	}
	return procs.ParseIsolation(f.isolate)
}

func (f *runFlags) run(ctx context.Context, open Opener) (err error) {
	rings, err := f.check()
	if err != nil {
		return err
	}
	p, end, err := daemon.Begin(f.log)
	if err != nil {
		return err
	}
	defer end()
	d := &netDaemon{Process: p, runFlags: f, rings: rings}
	defer func() { err = errors.Join(err, d.close()) }()
	if err := d.setUp(open); err != nil {
		return err
	}
	return d.serve(ctx)
}

// noBPF returns the reason why no eBPF programs steer packets, or nil.
func (f *runFlags) noBPF() error {
	if !f.bpf {
		return errors.New("switched off by --bpf=false")
	}
	return steer.Probe()
}
