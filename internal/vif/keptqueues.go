// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// Keeper keeps copies of open files while no daemon runs, and hands them to the next
// daemon, as a service manager does. A TAP whose queues are kept has its carrier and
// collects packets meanwhile. No method waits.
type Keeper interface {
	// Store makes the keeper keep a copy of a file under a name. It replaces the file
	// of that name. The copy may be made after Store returns.
	Store(name string, fd int) error
	// Adopted tells the keeper that the file which a predecessor stored under a name
	// is in use.
	Adopted(name string)
	// Remove removes the file of a name from the keeper.
	Remove(name string)
}

// KeptName returns the name under which a queue is kept.
func KeptName(id xenbus.VifID, queue int) string {
	return fmt.Sprintf("%s%s-%d", keptPrefix, number(id), queue)
}

const keptPrefix = "tap-"

// ParseKept returns the vif and the queue of a name that KeptName has returned.
func ParseKept(name string) (id xenbus.VifID, queue int, ok bool) {
	rest, ok := strings.CutPrefix(name, keptPrefix)
	if !ok {
		return xenbus.VifID{}, 0, false
	}
	vif, last, _ := strings.Cut(rest, "-")
	id, err := parseNumber(vif)
	if err != nil {
		return xenbus.VifID{}, 0, false
	}
	queue, err = strconv.Atoi(last)
	ok = err == nil && queue >= 0 && queue < tap.MaxQueues && KeptName(id, queue) == name
	return id, queue, ok
}

// storeQueues makes the keeper keep the queues that the TAP has, and no others. A restart
// loses the packets in queues that are not kept, and nothing else.
func (v *Vif) storeQueues() {
	if v.cfg.Keeper == nil {
		return
	}
	n := 0
	if v.tap != nil {
		n = v.tap.Queues()
		if v.spareQueues {
			n = 1
		}
	}
	for ; v.storedQueues > n; v.storedQueues-- {
		v.cfg.Keeper.Remove(KeptName(v.cfg.ID, v.storedQueues-1))
	}
	for ; v.storedQueues < n; v.storedQueues++ {
		q := v.tap.Queue(v.storedQueues)
		if err := v.cfg.Keeper.Store(KeptName(v.cfg.ID, v.storedQueues), q.FD()); err != nil {
			v.log.Warn("TAP queue not kept; packets in it will be lost in a restart", zap.Error(err))
			return
		}
	}
}

// adoptQueues makes a TAP device from the kept queues. It returns nil without an error if
// there are none, or if they cannot be used.
func (v *Vif) adoptQueues(cfg tap.Config) (*tap.Device, error) {
	if len(v.keptQueues) == 0 {
		return nil, nil
	}
	d, err := tap.Adopt(cfg, v.keptQueues)
	if errors.Is(err, tap.ErrMismatch) && v.cfg.Offload {
		// The TAP may have been made for another bridge than the one in xenstore now,
		// one in userspace or not.
		cfg.VnetHdr = !cfg.VnetHdr
		d, err = tap.Adopt(cfg, v.keptQueues)
	}
	if err == nil {
		v.storedQueues, v.keptQueues = d.Queues(), nil
		if v.cfg.Keeper != nil {
			for i := range v.storedQueues {
				v.cfg.Keeper.Adopted(KeptName(v.cfg.ID, i))
			}
		}
		return d, nil
	}
	if !errors.Is(err, tap.ErrGone) && !errors.Is(err, tap.ErrMismatch) {
		// After a kill, queues that were not kept stay open for a moment.
		if err := v.waitWhileBusy(err); errors.Is(err, errWait) {
			return nil, err
		}
	}
	v.log.Warn("kept TAP queues cannot be used; packets in them are lost", zap.Error(err))
	v.discardKeptQueues()
	return nil, nil
}

// discardKeptQueues closes the kept queues, and removes them from the keeper.
func (v *Vif) discardKeptQueues() {
	err := DiscardKept(v.cfg.Keeper, v.cfg.ID, v.keptQueues)
	v.keptQueues = nil
	if err != nil {
		v.log.Warn("close kept TAP queues failed", zap.Error(err))
	}
}

// DiscardKept closes kept queues and removes them from the keeper, because their vif is
// gone or they cannot be used.
func DiscardKept(k Keeper, id xenbus.VifID, fds []int) error {
	var errs []error
	for i, fd := range fds {
		errs = append(errs, unix.Close(fd))
		if k != nil {
			k.Remove(KeptName(id, i))
		}
	}
	return errors.Join(errs...)
}

// closeKeptQueues closes kept queues that were not used. The keeper still keeps them.
func (v *Vif) closeKeptQueues() {
	for _, fd := range v.keptQueues {
		_ = unix.Close(fd)
	}
	v.keptQueues = nil
}
