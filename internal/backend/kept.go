// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"maps"
	"slices"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/vif"
)

// takeKept sorts what a predecessor's keeper hands over by vif.
func (b *Backend) takeKept() {
	byQueue := map[key]map[int]int{}
	var unknown []Kept
	for _, f := range b.cfg.Kept {
		domid, devid, queue, ok := vif.ParseKept(f.Name)
		k := key{domid, devid}
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
		b.cfg.Log.Warn("given a file that is not known; closing it", zap.String("name", f.Name))
		b.drop(f)
		if domid, devid, queue, ok := vif.ParseKept(f.Name); ok {
			// Its name, and so its namesake, is not kept any more.
			k := key{domid, devid}
			if fd, there := byQueue[k][queue]; there {
				_ = unix.Close(fd)
				delete(byQueue[k], queue)
			}
		}
	}
	b.kept = map[key][]int{}
	for k, queues := range byQueue {
		for i := 0; ; i++ {
			fd, there := queues[i]
			if !there {
				break
			}
			b.kept[k] = append(b.kept[k], fd)
			delete(queues, i)
		}
		// Those behind a gap the TAP can open again.
		for i, fd := range queues {
			b.drop(Kept{vif.KeptName(k.domid, k.devid, i), fd})
		}
	}
}

// drop gives up a file.
func (b *Backend) drop(f Kept) {
	_ = unix.Close(f.FD)
	b.keeper.of(b.budgets.Guest()).Remove(f.Name)
}

// dropKept gives up the queues of vifs that went while nobody served, and their
// TAPs, which would else be there for as long as the queues are.
func (b *Backend) dropKept() {
	for k, fds := range b.kept {
		err := vif.DiscardKept(b.keeper.of(b.budgets.Guest()), k.domid, k.devid, fds)
		if rerr := vif.RemoveTap(k.domid, k.devid); err == nil {
			err = rerr
		}
		if err != nil {
			b.cfg.Log.Warn("remove what was kept of a vif that is gone", zap.Stringer("vif", k), zap.Error(err))
		}
	}
	b.kept = nil
}

// leaveKept is called at the end: what has not been used stays kept.
func (b *Backend) leaveKept() {
	for _, fd := range slices.Concat(slices.Collect(maps.Values(b.kept))...) {
		_ = unix.Close(fd)
	}
	b.kept = nil
}
