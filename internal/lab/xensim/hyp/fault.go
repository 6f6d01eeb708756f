// SPDX-License-Identifier: Apache-2.0

package hyp

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/xensim/wire"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/xen"
)

// faults lists the errors that tests inject into one domain's grants. The list is short
// and normally empty.
type faults []wire.Fault

// strike returns the status and delay of the first matching fault. It removes a fault
// whose count is used up.
func (f *faults) strike(ref xen.Gref, op wire.FaultOp) (gntdev.Status, time.Duration) {
	for i := range *f {
		x := &(*f)[i]
		if x.Ref != ref && x.Ref != wire.AnyRef || x.Op != op {
			continue
		}
		st, delay := gntdev.Status(x.Status), x.Delay
		if x.Count > 0 {
			if x.Count--; x.Count == 0 {
				*f = append((*f)[:i], (*f)[i+1:]...)
			}
		}
		return st, delay
	}
	return gntdev.StatusOkay, 0
}

// AddFault makes operations on the domain's grants fail from now on.
func (d *Domain) AddFault(f wire.Fault) {
	d.gt.mu.Lock()
	defer d.gt.mu.Unlock()
	d.gt.faults = append(d.gt.faults, f)
}

// StrikeCall returns the errno of a copy call that a fault on ref makes fail as a whole, 0
// if none does. Callers use it for each grant of the domain in the call, until it fails.
func (d *Domain) StrikeCall(ref xen.Gref) unix.Errno {
	d.gt.mu.Lock()
	defer d.gt.mu.Unlock()
	st, _ := d.gt.faults.strike(ref, wire.FaultCall)
	return unix.Errno(-st)
}

// ClearFaults ends all of the domain's faults.
func (d *Domain) ClearFaults() {
	d.gt.mu.Lock()
	defer d.gt.mu.Unlock()
	d.gt.faults = nil
}

// sleep delays an operation. It returns early when the hypervisor ends.
func (h *Hypervisor) sleep(delay time.Duration) {
	if delay <= 0 {
		return
	}
	t := time.NewTimer(delay)
	defer t.Stop()
	select {
	case <-t.C:
	case <-h.stop:
	}
}

// Sleep waits like a kernel that retries an operation of this hypervisor.
func (h *Hypervisor) Sleep(d time.Duration) { h.sleep(d) }
