// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntdev"
)

// An event of the guest costs a read of the ports that fired and a write that unmasks them.
// A port that has fired sends nothing until it is unmasked, so both can wait for the end of
// the work, and io_uring makes both with one call: an exchange. If the work was to write a
// few packets to the TAP, that call writes them, too:
//
//	as system calls     epoll_wait, read, grant copy, write to the TAP, notify, write
//	with an exchange    epoll_wait, grant copy, io_uring_enter, notify
//
// The write gets the ports from the memory to which the read brings them. Number 0 is no
// port: the device ignores it.

// earlyPackets is the maximum of packets in a batch whose write to the TAP is combined with
// an exchange. The ring was empty behind them, and the guest is asked for an event before
// they are written. A guest that sends many packets would send many events.
const earlyPackets = 2

// exchangeBytes is the size of the ports of a queue.
const exchangeBytes = 2 * 4

// Completions of an exchange. Packets have lower numbers.
const (
	exchangeRead = batchPackets + iota
	exchangeWrite
)

// portFile is a handle for event channels whose descriptor is the device itself.
type portFile interface{ PortFile() bool }

// portsFD returns the descriptor of a handle if it takes reads and writes of ports, else -1.
func portsFD(e Events) int {
	if f, ok := e.(portFile); ok && f.PortFile() {
		return e.FD()
	}
	return -1
}

// exchanger makes exchanges. It belongs to a worker.
type exchanger struct {
	mem    *gntdev.Arena // for the ports
	queued bool          // an exchange is part of the batch
	done   bool          // it has been made
}

func (x *exchanger) open() (err error) {
	x.mem, err = gntdev.NewArena(exchangeBytes)
	return err
}

func (x *exchanger) close() {
	if x.mem != nil {
		_ = x.mem.Close()
		x.mem = nil
	}
}

// noteEvents notes that event channels of a queue have fired. They are read at once, unless
// that is left for the end of the turn.
func (w *worker) noteEvents(q *Queue) error {
	q.ev.fired = false
	if q.ev.deferred {
		return nil // epoll has reported them before
	}
	w.tally[Wakes]++
	if w.defers(q) {
		q.ev.deferred = true
		return nil
	}
	return w.takeEvents(q)
}

// defers reports whether the events of a queue are taken by an exchange. Those of a guest
// that sends events without work are not: its ports stay masked for a while.
func (w *worker) defers(q *Queue) bool {
	return w.uring.ring != nil && q.ev.file >= 0 && q.ev.nMasked == 0 && q.ev.spurious < spuriousLimit
}

// armEarly asks the guest for an event before the packets of a small batch are written to
// the TAP, if they were all that the ring had. It reports whether that is settled: if not,
// the ring is looked at again. If an exchange is due the batch takes it along.
func (w *worker) armEarly(q *Queue, b *txBatch) bool {
	if !q.ev.deferred && q.ev.nMasked == 0 || b.nPkts > earlyPackets || b.want != 0 {
		return false
	}
	if more, err := q.tx.Arm(); more || err != nil {
		return false // the next look finds the same
	}
	w.exchange.queued = q.ev.deferred && !q.waitsForSlots() && w.defers(q)
	return true
}

// queueExchange adds an exchange to the operations of the io_uring. Its memory is that of
// one worker: there is one exchange at a time.
func (w *worker) queueExchange(q *Queue) {
	clear(w.exchange.mem.Bytes()[:exchangeBytes])
	at := w.exchange.mem.Addr(0)
	w.uring.ring.ReadFile(q.ev.file, at, exchangeBytes, exchangeRead)
	w.uring.ring.WriteFile(q.ev.file, at, exchangeBytes, exchangeWrite)
}

// exchanged notes a completion of an exchange. After an error the events are still to be
// taken, in the usual way, and all ports to be unmasked.
func (w *worker) exchanged(q *Queue, user uint64, res int32) {
	if res < 0 {
		q.ev.maskAll(q)
		return
	}
	if user == exchangeRead {
		q.ev.late = res > exchangeBytes/2
		return
	}
	if q.ev.nMasked == 0 {
		q.ev.deferred = false
		w.exchange.done = true
	}
}

// exchangeAlone makes an exchange at the end of a turn that wrote nothing with it. It reports
// whether it succeeded.
func (w *worker) exchangeAlone(q *Queue) bool {
	w.exchange.done = false
	w.queueExchange(q)
	w.tally[Syscalls]++
	w.tally[EventCalls]++
	_, err := w.uring.ring.Submit()
	for _, c := range w.uring.cqes[:w.uring.ring.Completions(w.uring.cqes[:])] {
		w.exchanged(q, c.User, c.Res)
	}
	if err != nil {
		w.ringFailed(err)
		q.ev.maskAll(q)
	}
	return w.exchange.done
}

// maskAll treats all ports of a queue as masked. To unmask one that is not does nothing.
func (e *eventState) maskAll(q *Queue) {
	e.masked = [2]evtchn.Port{q.txPort, q.rxPort}
	e.nMasked = len(e.masked)
}

// keepEvents is called when a queue needs another turn. If its vif may have to wait for that
// turn, the events are read: epoll would report them all the time.
func (w *worker) keepEvents(q *Queue) error {
	if q.ev.deferred && w.sched.shared() {
		return w.takeEvents(q)
	}
	return nil
}

// settleEvents takes the events of a queue that were left for the end of its turn, and
// unmasks the ports that fired. If there are two ports, the second one may have fired after
// its ring was looked at. Then q.ev.late asks for another turn.
func (w *worker) settleEvents(q *Queue) error {
	if q.ev.deferred {
		if w.defers(q) && w.exchangeAlone(q) {
			return nil
		}
		if err := w.takeEvents(q); err != nil {
			return err
		}
		q.ev.late = q.ev.nMasked > 1
	}
	return w.unmask(q)
}
