// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync/atomic"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/netbackd/netbackd/internal/command"
	"github.com/netbackd/netbackd/internal/confine"
	"github.com/netbackd/netbackd/internal/daemon"
	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/iouring"
	"github.com/netbackd/netbackd/internal/netengine"
	"github.com/netbackd/netbackd/internal/spawn"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntalloc"
	"github.com/netbackd/netbackd/pkg/gntdev"
)

// packetProcess is the name of the command that `netbackd run` starts.
const packetProcess = "packet-process"

// Adopter makes Xen's devices of the files of another process.
type Adopter interface {
	netengine.Adopter
	// Calls are system calls that the devices make, beside those of a real Xen.
	Calls() []uintptr
	// Traced reports whether the Xen reads the memory of its processes by ptrace.
	Traced() bool
}

// newPacketProcessCmd makes the command of a packet process: a part of `netbackd run` that is
// started by it only.
func newPacketProcessCmd(adopter Adopter) *cobra.Command {
	var log daemon.LogFlags
	c := &cobra.Command{
		Use: packetProcess, Short: "Move packets for netbackd run, which starts this command", Hidden: true,
		Args: command.Args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error { return runPacketProcess(c.Context(), adopter, log) },
	}
	log.Add(c.Flags())
	return c
}

// runPacketProcess serves the broker until its socket ends. Then it does not return: workers
// must not touch rings any more, which a successor may serve already.
func runPacketProcess(ctx context.Context, adopter Adopter, log daemon.LogFlags) error {
	socket, err := spawn.Begin(spawn.Limits{FileSize: dataplane.JournalSize, Tasks: packetTasks, Dumpable: adopter.Traced()})
	if err != nil {
		return err
	}
	p, end, err := daemon.Begin(log)
	if err != nil {
		return err
	}
	defer end()
	p.Log = p.Log.With(zap.Int("process", os.Getpid()))
	var links atomic.Int64
	go daemon.WatchHeap(ctx, func() int64 { return heapLimit(links.Load()) })
	err = netengine.Serve(socket, netengine.ProcessConfig{
		Adopter: adopter, Log: p.Log, Links: &links, Uring: daemon.UringState,
		Begin: func(workers int, uring bool) error {
			setProcessors(workers)
			return reserveRings(p.Log, workers, uring)
		},
		Lock: func() error {
			policy := confine.PacketProcess(slices.Concat(gntdev.Ioctls(), evtchn.Ioctls(), gntalloc.Ioctls()))
			policy.Calls = append(policy.Calls, adopter.Calls()...)
			return confine.Enter(policy)
		},
	})
	if err != nil {
		p.Log.Error("packet process ends", zap.Error(err))
		os.Exit(1)
	}
	os.Exit(0)
	return nil
}

// packetTasks bounds the threads of all processes of the user, as far as packet processes go: the
// unit's TasksMax leaves the daemon a quarter of its own. So a packet process that was taken over
// cannot keep the daemon from starting a thread. The bound does not hold for root.
const packetTasks = 6144

// spareRings is the number of rings for workers that take the place of others.
const spareRings = 8

// reserveRings makes the rings of workers, since a process that is confined can make none.
// Without them workers use system calls.
func reserveRings(log *zap.Logger, workers int, uring bool) error {
	if !uring || iouring.Supported() != nil {
		return nil
	}
	err := iouring.Reserve(iouring.Reservation{Rings: workers + spareRings, Entries: dataplane.RingEntries})
	if errors.Is(err, iouring.ErrNotSupported) {
		log.Warn("packets move without io_uring", zap.Error(err))
		return nil
	}
	if err != nil {
		return fmt.Errorf("reserve rings: %w", err)
	}
	return nil
}
