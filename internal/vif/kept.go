// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/xen"
)

// Keeper keeps copies of open files while no daemon runs, and hands them to the
// next one: a service manager does. The TAP of a vif whose queues are kept has
// its carrier and collects packets meanwhile. No method waits.
type Keeper interface {
	// Store has a copy of a file kept under a name, soon, and no other.
	Store(name string, fd int) error
	// Adopted says that what a predecessor had kept under a name is in use.
	Adopted(name string)
	// Remove has nothing kept under a name.
	Remove(name string)
}

// KeptName is the name under which a queue is kept.
func KeptName(domid xen.Domid, devid, queue int) string {
	return fmt.Sprintf("%s%d.%d-%d", keptPrefix, domid, devid, queue)
}

const keptPrefix = "tap-"

// ParseKept tells which queue of which vif a Keeper keeps under a name.
func ParseKept(name string) (domid xen.Domid, devid, queue int, ok bool) {
	rest, ok := strings.CutPrefix(name, keptPrefix)
	if !ok {
		return 0, 0, 0, false
	}
	n, _ := fmt.Sscanf(rest, "%d.%d-%d", &domid, &devid, &queue)
	ok = n == 3 && queue >= 0 && queue < tap.MaxQueues && KeptName(domid, devid, queue) == name
	return domid, devid, queue, ok
}

// keepQueues has the keeper keep the queues which the TAP has, and no others.
// What it cannot keep is lost in a restart, nothing else.
func (v *Vif) keepQueues() {
	if v.cfg.Keeper == nil {
		return
	}
	n := 0
	if v.tap != nil {
		n = v.tap.Queues()
		if v.spares {
			n = 1
		}
	}
	for ; v.stored > n; v.stored-- {
		v.cfg.Keeper.Remove(KeptName(v.cfg.Domid, v.cfg.Devid, v.stored-1))
	}
	for ; v.stored < n; v.stored++ {
		q := v.tap.Queue(v.stored)
		if err := v.cfg.Keeper.Store(KeptName(v.cfg.Domid, v.cfg.Devid, v.stored), q.FD()); err != nil {
			v.log.Warn("a queue of the TAP is not kept; packets on it will not outlast a restart", errField(err))
			return
		}
	}
}

// adopt makes the TAP of the queues that were kept. It returns nil without an
// error if there are none, or they are good for nothing.
func (v *Vif) adopt(cfg tap.Config) (*tap.Device, error) {
	if len(v.kept) == 0 {
		return nil, nil
	}
	d, err := tap.Adopt(cfg, v.kept)
	if errors.Is(err, tap.ErrMismatch) && v.cfg.Offload {
		// Whether it was made for a bridge in userspace the bridge may not tell now.
		cfg.VnetHdr = !cfg.VnetHdr
		d, err = tap.Adopt(cfg, v.kept)
	}
	if err == nil {
		v.stored, v.kept = d.Queues(), nil
		if v.cfg.Keeper != nil {
			for i := range v.stored {
				v.cfg.Keeper.Adopted(KeptName(v.cfg.Domid, v.cfg.Devid, i))
			}
		}
		return d, nil
	}
	if !errors.Is(err, tap.ErrGone) && !errors.Is(err, tap.ErrMismatch) {
		// Queues that were not kept linger after a kill.
		if err := v.await(err); errors.Is(err, errWait) {
			return nil, err
		}
	}
	v.log.Warn("the queues of the TAP that were kept are of no use; what waited there is lost", errField(err))
	v.dropKept()
	return nil, nil
}

// dropKept gives up the queues that were kept.
func (v *Vif) dropKept() {
	err := DropKept(v.cfg.Keeper, v.cfg.Domid, v.cfg.Devid, v.kept)
	v.kept = nil
	if err != nil {
		v.log.Warn("give up the kept queues of the TAP", errField(err))
	}
}

// DropKept gives up queues that were kept: of a vif that is no more, or that
// make no sense.
func DropKept(k Keeper, domid xen.Domid, devid int, fds []int) error {
	var errs []error
	for i, fd := range fds {
		errs = append(errs, unix.Close(fd))
		if k != nil {
			k.Remove(KeptName(domid, devid, i))
		}
	}
	return errors.Join(errs...)
}

// leaveKept closes kept queues that were not needed, and lets the keeper go on
// keeping them.
func (v *Vif) leaveKept() {
	for _, fd := range v.kept {
		_ = unix.Close(fd)
	}
	v.kept = nil
}
