// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"slices"
	"testing"

	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// anew initializes the rings again in the same pages, with the same grefs and channels, as
// a boot loader's and a kernel's driver may do one after the other.
func (f *rawFront) anew() {
	f.w.t.Helper()
	for i := range f.queues {
		q := &f.queues[i]
		var err error
		q.tx, err = netif.InitTx(q.rings.Bytes()[:netif.PageSize])
		f.w.must(err)
		q.rx, err = netif.InitRx(q.rings.Bytes()[netif.PageSize:])
		f.w.must(err)
	}
}

// ask puts three requests with ids from id on into the first tx ring, and sends an event.
func (f *rawFront) ask(data xen.Gref, id uint16) {
	q := &f.queues[0]
	for i := range uint16(3) {
		q.tx.Put(netif.TxRequest{Gref: data, Size: 100, ID: id + i})
	}
	q.tx.Push()
	f.w.must(f.events.Notify(q.txPort))
}

// answers waits for three responses and takes them.
func (f *rawFront) answers() (ids []uint16) {
	f.w.t.Helper()
	q := &f.queues[0]
	f.w.wait("answers", func() bool { n, err := q.tx.Responses(); return err == nil && n >= 3 })
	n, err := q.tx.Responses()
	f.w.must(err)
	for i := range n {
		ids = append(ids, q.tx.Response(q.tx.RspCons().Add(i)).ID)
	}
	q.tx.Take(n)
	return ids
}

// TestJournalOfADriverThatIsGone: while no daemon runs, a guest's driver ends and the next
// one connects with rings in the same pages. The new driver's requests are served, and the
// journal of the old one is not applied to them.
func TestJournalOfADriverThatIsGone(t *testing.T) {
	for _, tt := range []struct {
		name   string
		script string // hotplug-status
		end    func(w *world)
	}{
		{"killed, the hotplug script not through", "", func(w *world) { w.Daemon().Kill() }},
		{"stopped, the hotplug script not through", "", func(w *world) { w.must(w.Daemon().Stop()) }},
		{"killed, connected", "connected", func(w *world) { w.Daemon().Kill() }},
		{"stopped, connected", "connected", func(w *world) { w.must(w.Daemon().Stop()) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			f := w.rawFront(1)
			data, err := f.pages.Alloc(0, 1, false)
			w.must(err)
			copy(data.Bytes(), plainFrame(100))
			w.must(w.Store().Write(w.ctx, f.back()+"/hotplug-status", tt.script))
			f.ask(data.Refs()[0], 10)
			f.offer(f.keys(), xenbus.Connected)
			if got := f.answers(); !slices.Equal(got, []uint16{10, 11, 12}) {
				t.Errorf("the first driver's answers: %v", got)
			}
			tt.end(w)

			f.state(xenbus.Initialising)
			f.anew()
			f.ask(data.Refs()[0], 20)
			f.offer(f.keys(), xenbus.Connected)
			w.must(w.StartDaemon(w.ctx))
			if got := f.answers(); !slices.Equal(got, []uint16{20, 21, 22}) {
				t.Errorf("the second driver's answers: %v", got)
			}
			// A packet that was answered but not sent is not counted.
			w.wait("its packets to have been sent", func() bool {
				s := f.status()
				return len(s.Queues) == 1 && s.Queues[0].Counters["tx_packets"]+s.Queues[0].Counters["tx_tap_down"] == 3
			})
			f.ask(data.Refs()[0], 30)
			if got := f.answers(); !slices.Equal(got, []uint16{30, 31, 32}) {
				t.Errorf("further answers: %v", got)
			}
			w.must(w.Store().Write(w.ctx, f.back()+"/hotplug-status", "connected"))
			f.waitBack(xenbus.Connected)
			f.connected()
		})
	}
}

// TestGuestComesAgainUnseen: a guest reconnects between two looks of the daemon, with the
// same grefs and ports. Its new rings are served from their start, and it is not
// quarantined.
func TestGuestComesAgainUnseen(t *testing.T) {
	w := newWorld(t)
	f := w.rawFront(1)
	f.connect()
	data, err := f.pages.Alloc(0, 1, false)
	w.must(err)
	copy(data.Bytes(), plainFrame(100))
	for id := uint16(10); id < 60; id += 10 {
		f.ask(data.Refs()[0], id)
		if got := f.answers(); !slices.Equal(got, []uint16{id, id + 1, id + 2}) {
			t.Fatalf("answers: %v, want those to %d", got, id)
		}
		before := f.status().Since
		f.anew()
		f.offer(f.keys(), xenbus.Connected)
		w.wait("the rings to be taken anew", func() bool {
			s := f.status()
			return s.Quarantine == "" && s.Since.After(before)
		})
	}
	f.connected()
}

// TestQuarantineOutlivesTheDaemon: a restart of the daemon does not end a quarantine. A new
// connection of the guest does, also while no daemon runs and with the same grefs.
func TestQuarantineOutlivesTheDaemon(t *testing.T) {
	for name, end := range map[string]func(w *world){
		"stopped": func(w *world) { w.must(w.Daemon().Stop()) },
		"killed":  func(w *world) { w.Daemon().Kill() },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			f, other := w.rawFront(1), w.rawFront(2)
			for _, f := range []*rawFront{f, other} {
				f.connect()
				f.queues[0].tx.SetReqProd(netif.TxRingSize + 1)
				w.must(f.events.Notify(f.queues[0].txPort))
				w.wait("the quarantine", func() bool { return f.status().Quarantine != "" })
			}
			before := f.status()
			end(w)
			other.anew()
			w.must(w.StartDaemon(w.ctx))
			w.wait("the other to be served, which has connected anew", func() bool { return len(other.status().Queues) == 2 })
			other.connected()
			if s := f.status(); s.Quarantine != before.Quarantine || s.Grants != 0 || s.Ports != 0 || s.Interface != before.Interface || s.State != xenbus.Connected {
				t.Errorf("after: %+v, before: %+v", s, before)
			}
			w.waitError(f.domid, f.devid, before.Quarantine)
			f.anew()
			f.offer(f.keys(), xenbus.Connected)
			w.wait("the quarantine to end", func() bool { return f.status().Quarantine == "" && len(f.status().Queues) == 1 })
			f.connected()
		})
	}
}
