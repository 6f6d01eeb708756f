// SPDX-License-Identifier: Apache-2.0

package hyp

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/xensim/wire"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/xen"
)

// faults lists the errors that tests have ordered for one domain's grants. The
// list is short and normally empty.
type faults []wire.Fault

// strike returns what the first fault that fits orders. A fault whose count is
// used up is forgotten.
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

// AddFault makes operations on the domain's grants go wrong from now on.
func (d *Domain) AddFault(f wire.Fault) {
	d.gt.mu.Lock()
	defer d.gt.mu.Unlock()
	d.gt.faults = append(d.gt.faults, f)
}

// StrikeCall is asked for each grant of the domain that a call copies, until the
// call is struck. The errno is that of the call, if it is to fail as a whole.
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

// sleep delays an operation. It ends early when the hypervisor ends.
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
