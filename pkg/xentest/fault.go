// SPDX-License-Identifier: Apache-2.0

package xentest

import (
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/xen"
)

// Op is an operation of a double that a test can observe and make fail.
type Op uint8

const (
	OpOpenGntdev Op = iota + 1
	OpOpenGntalloc
	OpOpenEvtchn
	OpMap     // of one gref
	OpUnmap   // of one gref
	OpCopy    // of one segment
	OpAlloc   // of pages by the guest
	OpBind    // BindInterdomain: of a port of the other domain
	OpOffer   // BindUnbound
	OpNotify  // of a local port
	OpPending // of any port
)

// Call is one operation that is about to be carried out.
type Call struct {
	Op   Op
	By   xen.Domid   // whose device it is: the guest's number or 0
	Ref  xen.Gref    // of OpMap, OpUnmap and OpCopy
	Port evtchn.Port // of OpBind and OpNotify
	Prot gntdev.Prot // of OpMap and OpAlloc; of OpCopy, ReadWrite is to the guest
}

// Intercept has f called before each operation, in the goroutine of the caller. f may
// use the guest and its devices. If it returns an error, the operation fails with it:
// a [gntdev.Status] becomes that of the segment or gref, any other error is one of the
// whole call. nil ends this.
func (g *Guest) Intercept(f func(Call) error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.intercept = f
	g.arm()
}

// FailRef makes the next operation of this kind on a gref fail, with a
// [gntdev.Status] or another error, as with Intercept. nil takes that back. A fault that
// does not happen until the guest is closed is an error there.
func (g *Guest) FailRef(op Op, ref xen.Gref, err error) { g.fail(Call{Op: op, Ref: ref}, err) }

// FailPort makes the next operation of this kind fail that names the port and is made by
// domain 0, as FailRef does.
func (g *Guest) FailPort(op Op, port evtchn.Port, err error) { g.fail(Call{Op: op, Port: port}, err) }

func (g *Guest) fail(c Call, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.faults[c] = err; err == nil {
		delete(g.faults, c)
	}
	g.arm()
}

func (g *Guest) arm() { g.armed.Store(g.intercept != nil || len(g.faults) > 0) }

// check returns the error that c is to fail with. The caller does not hold mu.
func (g *Guest) check(c Call) error {
	if !g.armed.Load() {
		return nil
	}
	key := c
	key.Prot = 0
	if c.Port == 0 {
		key.By = 0 // a gref is always the guest's
	}
	g.mu.Lock()
	f, err := g.intercept, g.faults[key]
	if err != nil {
		delete(g.faults, key)
		g.arm()
	}
	g.mu.Unlock()
	if err == nil && f != nil {
		err = f(c)
	}
	return err
}
