// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"maps"
	"slices"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/sdnotify"
	"github.com/netbackd/netbackd/internal/vif"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// sortKept sorts the kept files by vif and queue.
func (b *Backend) sortKept() {
	byQueue := map[xenbus.VifID]map[int]int{}
	var unknown []sdnotify.File
	for _, f := range b.cfg.Kept {
		k, queue, ok := vif.ParseKept(f.Name)
		if _, twice := byQueue[k][queue]; !ok || twice {
			unknown = append(unknown, f)
			continue
		}
		if byQueue[k] == nil {
			byQueue[k] = map[int]int{}
		}
		byQueue[k][queue] = f.FD
	}
	b.cfg.Kept = nil
	for _, f := range unknown {
		b.cfg.Log.Warn("unknown file received from the service manager; closing it", zap.String("name", f.Name))
		b.discard(f)
		if k, queue, ok := vif.ParseKept(f.Name); ok {
			// The keeper has removed both files of this name.
			if fd, there := byQueue[k][queue]; there {
				_ = unix.Close(fd)
				delete(byQueue[k], queue)
			}
		}
	}
	b.kept = map[xenbus.VifID][]int{}
	for k, queues := range byQueue {
		for i := 0; ; i++ {
			fd, there := queues[i]
			if !there {
				break
			}
			b.kept[k] = append(b.kept[k], fd)
			delete(queues, i)
		}
		// The vif opens the queues after a gap again.
		for i, fd := range queues {
			b.discard(sdnotify.File{Name: vif.KeptName(k, i), FD: fd})
		}
	}
}

// discard closes a file and removes the keeper's copy.
func (b *Backend) discard(f sdnotify.File) {
	_ = unix.Close(f.FD)
	b.keeper.of(b.budgets.Guest()).Remove(f.Name)
}

// discardKept discards the queues of vifs that were removed while no daemon ran, and
// removes their TAPs, which exist as long as a queue is open.
func (b *Backend) discardKept() {
	for k, fds := range b.kept {
		err := vif.DiscardKept(b.keeper.of(b.budgets.Guest()), k, fds)
		if rerr := vif.RemoveTap(k); err == nil {
			err = rerr
		}
		if err != nil {
			b.cfg.Log.Warn("discard queues of a removed vif failed", zap.Stringer("vif", k), zap.Error(err))
		}
	}
	b.kept = nil
}

// closeKept closes the files that were not used. The keeper still has them.
func (b *Backend) closeKept() {
	for _, fd := range slices.Concat(slices.Collect(maps.Values(b.kept))...) {
		_ = unix.Close(fd)
	}
	b.kept = nil
}
