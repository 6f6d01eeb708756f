// SPDX-License-Identifier: Apache-2.0

package blkcli

import (
	"context"
	"os"
	"runtime/debug"
	"slices"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/netbackd/netbackd/internal/blkengine"
	"github.com/netbackd/netbackd/internal/blkplane"
	"github.com/netbackd/netbackd/internal/command"
	"github.com/netbackd/netbackd/internal/confine"
	"github.com/netbackd/netbackd/internal/daemon"
	"github.com/netbackd/netbackd/internal/iouring"
	"github.com/netbackd/netbackd/internal/spawn"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntdev"
)

// diskProcess is the name of the command that `blkbackd run` starts.
const diskProcess = "disk-process"

// newDiskProcessCmd makes the command of a disk process: a part of `blkbackd run` that is started
// by it only.
func newDiskProcessCmd(adopter Adopter, steps Steps) *cobra.Command {
	var log daemon.LogFlags
	c := &cobra.Command{
		Use: diskProcess, Short: "Serve disks for blkbackd run, which starts this command", Hidden: true,
		Args: command.Args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			return runDiskProcess(c.Context(), adopter, steps, log)
		},
	}
	log.Add(c.Flags())
	return c
}

// runDiskProcess serves the broker until its socket ends. Then it does not return: queues must not
// touch rings and disks any more, which a successor may serve already.
func runDiskProcess(ctx context.Context, adopter Adopter, steps Steps, log daemon.LogFlags) error {
	socket, err := spawn.Begin(spawn.Limits{Dumpable: adopter.Traced()})
	if err != nil {
		return err
	}
	p, end, err := daemon.Begin(log)
	if err != nil {
		return err
	}
	defer end()
	p.Log = p.Log.With(zap.Int("process", os.Getpid()))
	atStep, err := steps.at()
	if err != nil {
		return err
	}
	go daemon.WatchHeap(ctx, nil)
	err = blkengine.Serve(socket, blkengine.ProcessConfig{
		Adopter: adopter, Log: p.Log, Uring: daemon.UringState, AtStep: atStep,
		Begin: func(uring bool) error {
			raiseProcessors()
			debug.SetMaxThreads(maxProcessThreads)
			reserveRings(p.Log, uring)
			return nil
		},
		Lock: func() error {
			policy := confine.DiskProcess(slices.Concat(gntdev.Ioctls(), evtchn.Ioctls()))
			policy.Calls = append(policy.Calls, adopter.Calls()...)
			return confine.Enter(policy)
		},
	})
	if err != nil {
		p.Log.Error("disk process ends", zap.Error(err))
		os.Exit(1)
	}
	os.Exit(0)
	return nil
}

const (
	// spareRings is the number of rings for the queues of a disk process. The others use threads.
	spareRings = 64

	// maxProcessThreads bounds the threads of a disk process: Go's bound ends it.
	maxProcessThreads = 1 << 20
)

// reserveRings makes the rings of queues, since a process that is confined can make none. Queues
// without one use threads.
func reserveRings(log *zap.Logger, uring bool) {
	if !uring || iouring.Supported() != nil {
		return
	}
	if err := iouring.Reserve(iouring.Reservation{Asyncs: spareRings, AsyncEntries: blkplane.RingEntries}); err != nil {
		log.Warn("disks are served without io_uring", zap.Error(err))
	}
}
