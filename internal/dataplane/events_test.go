// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"testing"

	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/xentest"
)

// Local ports of a queue at the backend.
const (
	txPort evtchn.Port = 1
	rxPort evtchn.Port = 2
)

// events is the event channel device of a queue, with both its ports bound.
type events struct {
	*xentest.Evtchn
	tb    testing.TB
	guest *xentest.Guest
	ports [3]evtchn.Port // the guest's, by the backend's
	asked [3]int         // events counted by the last call of notifies
	wake  chan struct{}  // to the guest, if it is there
}

var _ Events = (*events)(nil)

func newEvents(tb testing.TB, g *xentest.Guest) *events {
	tb.Helper()
	dev, err := g.OpenEvtchn()
	must(tb, err)
	tb.Cleanup(func() { _ = dev.Close() })
	e := &events{Evtchn: dev, tb: tb, guest: g}
	for _, p := range []evtchn.Port{txPort, rxPort} {
		e.ports[p] = g.Offer()
		e.bind(p)
	}
	return e
}

func (e *events) bind(p evtchn.Port) {
	e.tb.Helper()
	local, err := e.BindInterdomain(e.guest.Domid(), e.ports[p])
	must(e.tb, err)
	if local != p {
		e.tb.Fatalf("bound as port %d, want %d", local, p)
	}
}

// rebind binds the ports again, which leaves an event pending.
func (e *events) rebind() {
	e.tb.Helper()
	must(e.tb, e.Reset())
	must(e.tb, e.Unbind(txPort))
	must(e.tb, e.Unbind(rxPort))
	e.bind(txPort)
	e.bind(rxPort)
}

// send sends an event from the guest.
func (e *events) send(p evtchn.Port) { must(e.tb, e.guest.Send(e.ports[p])) }

func (e *events) Unmask(ports []evtchn.Port) error {
	err := e.Evtchn.Unmask(ports)
	if err != nil {
		e.tb.Error(err)
	}
	return err
}

func (e *events) Notify(p evtchn.Port) error {
	err := e.Evtchn.Notify(p)
	if err != nil {
		e.tb.Error(err)
	}
	select {
	case e.wake <- struct{}{}:
	default:
	}
	return err
}

// notifies returns the number of events sent on p since the last call.
func (e *events) notifies(p evtchn.Port) int {
	before := e.asked[p]
	e.asked[p] = e.guest.Events(e.ports[p])
	return e.asked[p] - before
}

// noEvents is a handle that never has an event.
type noEvents struct{ fd int }

func (e noEvents) FD() int                          { return e.fd }
func (noEvents) Pending([]evtchn.Port) (int, error) { return 0, nil }
func (noEvents) Unmask([]evtchn.Port) error         { return nil }
func (noEvents) Notify(evtchn.Port) error           { return nil }
func (noEvents) Reset() error                       { return nil }
