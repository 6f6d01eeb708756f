// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"fmt"
	"strings"
	"testing"

	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// slots posts n rx slots on the first queue, and sends an event.
func (f *rawFront) slots(n int) { f.slotsOn(0, n) }

// slotsOn posts n rx slots on queue i, and sends an event.
func (f *rawFront) slotsOn(i, n int) {
	f.w.t.Helper()
	pages, err := f.pages.Alloc(0, n, true)
	f.w.must(err)
	q := &f.queues[i]
	for i, r := range pages.Refs() {
		q.rx.Put(netif.RxRequest{ID: uint16(i), Gref: r})
	}
	q.rx.Push()
	f.w.must(f.events.Notify(q.rxPort))
}

// sizes returns the sizes of the frames that arrived on the first queue.
func (f *rawFront) sizes() (sizes []int) {
	f.w.t.Helper()
	q := &f.queues[0]
	n, err := q.rx.Responses()
	f.w.must(err)
	for i := range n {
		sizes = append(sizes, int(q.rx.Slot(q.rx.RspCons().Add(i)).Response().Status))
	}
	return sizes
}

// Sizes of frames, which identify them. Frames of other senders, such as the bridge, have
// other sizes.
const (
	oldSize = 1001
	newSize = 1003
)

// hostSends has the host send n frames of a size to the vif.
func (f *rawFront) hostSends(n, size int) {
	f.w.t.Helper()
	c := f.w.cable(f.name(), func(g func() error) error { return g() })
	for range n {
		c.send(tap.VnetHdr{}, plainFrame(size))
	}
}

// onlyNew checks that a frame sent now arrives, and that no frame for the earlier driver
// does.
func (f *rawFront) onlyNew() {
	f.w.t.Helper()
	f.w.wait("the carrier", func() bool { s := f.status(); return s.Carrier && s.Up })
	f.hostSends(1, newSize)
	f.slots(64)
	f.w.wait("what is sent now", func() bool {
		for _, n := range f.sizes() {
			if n == newSize {
				return true
			}
		}
		return false
	})
	for _, n := range f.sizes() {
		if n == oldSize {
			f.w.t.Errorf("a frame for the driver before came: %v", f.sizes())
			return
		}
	}
}

// TestFramesForTheDriverBefore: packets that the host sent to one driver of a guest are not
// delivered to the next one, independent of where they waited and how the first one ended.
func TestFramesForTheDriverBefore(t *testing.T) {
	for _, queues := range []int{1, 2} {
		for _, tt := range []struct {
			name string
			next func(f *rawFront)
		}{
			{"closed and opened", func(f *rawFront) { f.close(); f.newRings(queues); f.reopen(); f.offer(f.keys(), xenbus.Connected) }},
			{"kexec", func(f *rawFront) {
				f.state(xenbus.Initialising)
				f.waitBack(xenbus.InitWait)
				f.newRings(queues)
				f.offer(f.keys(), xenbus.Connected)
			}},
			{"unseen, other rings", func(f *rawFront) { f.newRings(queues); f.offer(f.keys(), xenbus.Connected) }},
			{"unseen, the same names", func(f *rawFront) { f.anew(); f.offer(f.keys(), xenbus.Connected) }},
		} {
			t.Run(fmt.Sprintf("%s, %d queues", tt.name, queues), func(t *testing.T) {
				w := newWorld(t, fmt.Sprintf("--max-queues=%d", queues)) // a TAP for one queue is another kind
				f := w.rawFront(queues)
				f.connect()
				f.hostSends(40, oldSize) // some wait in the daemon, others in the TAP
				w.wait("frames to be held", func() bool { return f.status().Queues[0].Held > 0 || queues > 1 })
				before := f.status().Since
				tt.next(f)
				w.wait("the next driver to be served", func() bool {
					s := f.status()
					return s.State == xenbus.Connected && len(s.Queues) == queues && s.Since.After(before)
				})
				f.onlyNew()
				f.connected()
			})
		}
	}
}

// TestFramesThatWaitForASuccessor: no daemon runs, the service manager keeps the TAP
// queues, and the host sends. The waiting packets belong to the connected driver: it gets
// them if it stays connected, and the next driver does not.
func TestFramesThatWaitForASuccessor(t *testing.T) {
	for name, end := range map[string]func(w *world){
		"stopped": func(w *world) { w.must(w.Daemon().Stop()) },
		"killed":  func(w *world) { w.Daemon().Kill() },
	} {
		for _, queues := range []int{1, 2} {
			t.Run(fmt.Sprintf("%s, %d queues", name, queues), func(t *testing.T) {
				w := newWorld(t, fmt.Sprintf("--max-queues=%d", queues))
				m := w.manager()
				goesOn, comesAgain := w.rawFront(queues), w.rawFront(queues)
				w.must(w.Daemon().Stop())
				m.start()
				for _, f := range []*rawFront{goesOn, comesAgain} {
					f.connect()
					f.slots(64)
				}
				w.wait("the manager to keep the queues", func() bool { return len(strings.Fields(m.kept())) == 2*queues })
				end(w)
				for _, f := range []*rawFront{goesOn, comesAgain} {
					f.hostSends(10, oldSize)
				}
				comesAgain.state(xenbus.Initialising)
				comesAgain.anew()
				comesAgain.offer(comesAgain.keys(), xenbus.Connected)
				m.start()
				w.wait("both to be served", func() bool {
					return len(goesOn.status().Queues) == queues && len(comesAgain.status().Queues) == queues
				})
				comesAgain.onlyNew()
				if queues == 1 { // else the host may choose the other queue
					w.wait("all frames for the driver that goes on", func() bool {
						n := 0
						for _, s := range goesOn.sizes() {
							if s == oldSize {
								n++
							}
						}
						return n == 10
					})
				}
			})
		}
	}
}
