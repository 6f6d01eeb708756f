// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"

	"github.com/netbackd/netbackd/pkg/vhostuser"
)

// ErrMemoryGone: a front end has made the file of its memory shorter, or the domain whose
// memory it is has ended.
var ErrMemoryGone = errors.New("the memory of the front end cannot be accessed any more")

// fault returns an error for a panic that is a fault in memory that the front end shares, and
// nil for any other one.
func (v *virtPair) fault(r any) error {
	f, ok := r.(interface{ Addr() uintptr })
	if !ok || !v.shares(f.Addr()) {
		return nil
	}
	return fmt.Errorf("%w: a fault at %#x", ErrMemoryGone, f.Addr())
}

// shares reports whether an address is in memory of the front end: in a region, a part of a
// ring that was mapped for it, an inflight region or the log.
func (v *virtPair) shares(addr uintptr) bool {
	for i := range v.memory.regions {
		if within(v.memory.regions[i].mem, addr) {
			return true
		}
	}
	for _, r := range v.rings() {
		s := &r.set
		for _, p := range []vhostuser.Part{s.Desc, s.Avail, s.Used, {Mem: s.Inflight}} {
			if within(p.Mem, addr) {
				return true
			}
		}
	}
	return v.log != nil && within(v.log.Bytes(), addr)
}
