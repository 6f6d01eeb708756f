// SPDX-License-Identifier: Apache-2.0

package numbered

import (
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/netbackd/netbackd/internal/lab/ledger"
)

// Options describe the traffic of one connection of a vif.
type Options struct {
	Vif    uint16
	Run    uint32 // differs between connections
	Queues int
	// Partial lets the guest and the host leave checksums to the other side, as far as the
	// guest's features allow. Without it there are no packets to be segmented.
	Partial bool
}

// kinds are the flows of each queue.
const kinds = 3

// Windows of a flow, in packets that were sent and did not arrive. A TAP queue holds 512
// packets, and all flows that a wire sends may share one.
const (
	toHostWindow = 1024
	wireAll      = 320
)

// flow is one end's knowledge of the packets of a flow.
type flow[Book any] struct {
	mu   sync.Mutex // guards book
	book Book
	high atomic.Uint64 // as in the book, for the sender
	sent atomic.Uint64 // written by the sender
}

// Traffic is the traffic of one connection.
type Traffic struct {
	opts    Options
	faults  *Faults
	toHost  []flow[ledger.Ordered] // by queue and kind
	toGuest []flow[ledger.Loose]
	pause   atomic.Bool
	stray   atomic.Uint64
}

// New returns the books of a connection.
func New(o Options, f *Faults) *Traffic {
	return &Traffic{
		opts: o, faults: f,
		toHost:  make([]flow[ledger.Ordered], o.Queues*kinds),
		toGuest: make([]flow[ledger.Loose], o.Queues*kinds),
	}
}

// kind returns the packets of the flow with this number.
func (t *Traffic) kind(number int) ledger.Kind {
	k := ledger.Kind(number % kinds)
	if k == ledger.Large && !t.opts.Partial {
		return ledger.Full
	}
	return k
}

// source makes the source of a flow.
func (t *Traffic) source(number int, toGuest bool) *ledger.Source {
	f := ledger.Flow{Run: t.opts.Run, Vif: t.opts.Vif, Number: uint16(number), ToGuest: toGuest}
	return ledger.NewSource(f, t.kind(number), t.opts.Partial && number%2 == 0)
}

// mine reports whether a packet that arrived is of this connection.
func (t *Traffic) mine(f ledger.Flow, toGuest bool) bool {
	return f.Run == t.opts.Run && f.Vif == t.opts.Vif && f.ToGuest == toGuest && int(f.Number) < len(t.toHost)
}

// progress returns how many packets of a flow were sent, and arrived.
func (t *Traffic) progress(number int, toGuest bool) (sent, high *atomic.Uint64) {
	if toGuest {
		return &t.toGuest[number].sent, &t.toGuest[number].high
	}
	return &t.toHost[number].sent, &t.toHost[number].high
}

// arrived enters a packet of this connection.
func (t *Traffic) arrived(p ledger.Packet) error {
	if p.Flow.ToGuest {
		f := &t.toGuest[p.Flow.Number]
		f.mu.Lock()
		defer f.mu.Unlock()
		defer func() { f.high.Store(f.book.High()) }()
		return f.book.Arrived(p.Seq)
	}
	f := &t.toHost[p.Flow.Number]
	f.mu.Lock()
	defer f.mu.Unlock()
	defer func() { f.high.Store(f.book.High()) }()
	return f.book.Arrived(p.Seq)
}

// Died tells the books that the back end has been killed.
func (t *Traffic) Died() {
	for i := range t.toHost {
		f := &t.toHost[i]
		f.mu.Lock()
		f.book.Died()
		f.mu.Unlock()
	}
}

// Rest takes the balance of the time since the last call: packets from the guest that were
// repeated, by queue, and what became of those to the guest.
func (t *Traffic) Rest() (repeated []uint64, toGuest ledger.Tally) {
	repeated = make([]uint64, t.opts.Queues)
	for i := range t.toHost {
		f := &t.toHost[i]
		f.mu.Lock()
		repeated[i/kinds] += f.book.Rest()
		f.mu.Unlock()
	}
	for i := range t.toGuest {
		f := &t.toGuest[i]
		f.mu.Lock()
		toGuest.Add(f.book.Rest())
		f.mu.Unlock()
	}
	return repeated, toGuest
}

// Mark holds the position of each flow.
type Mark struct{ toHost, toGuest []uint64 }

// Mark notes the packets that were sent so far.
func (t *Traffic) Mark() (m Mark) {
	for i := range t.toHost {
		m.toHost = append(m.toHost, t.toHost[i].sent.Load())
		m.toGuest = append(m.toGuest, t.toGuest[i].sent.Load())
	}
	return m
}

// Beyond reports whether every flow has brought n packets beyond a mark.
func (t *Traffic) Beyond(m Mark, n uint64) bool {
	for i := range m.toHost {
		if t.toHost[i].high.Load() < m.toHost[i]+n || t.toGuest[i].high.Load() < m.toGuest[i]+n {
			return false
		}
	}
	return true
}

// Pause stops or continues the senders of both ends.
func (t *Traffic) Pause(on bool) { t.pause.Store(on) }

// Missing describes the flows whose packets did not all arrive.
func (t *Traffic) Missing() (toHost, toGuest uint64) {
	for i := range t.toHost {
		toHost += t.toHost[i].sent.Load() - t.toHost[i].high.Load()
		toGuest += t.toGuest[i].sent.Load() - t.toGuest[i].high.Load()
	}
	return toHost, toGuest
}

// Arrived returns the numbers of different packets that arrived.
func (t *Traffic) Arrived() (toHost, toGuest uint64) {
	for i := range t.toHost {
		toHost += t.toHost[i].high.Load()
		toGuest += t.toGuest[i].high.Load()
	}
	return toHost, toGuest
}

// String says how far the flows are.
func (t *Traffic) String() string {
	s := ""
	for i := range t.toHost {
		s += fmt.Sprintf(" %d:%d/%d,%d/%d", i, t.toHost[i].high.Load(), t.toHost[i].sent.Load(), t.toGuest[i].high.Load(), t.toGuest[i].sent.Load())
	}
	return s
}

// Faults collects what must not happen.
type Faults struct {
	mu   sync.Mutex // guards all below
	n    int
	list []string
}

// maxFaults bounds the list; all are counted.
const maxFaults = 40

// Add adds a fault.
func (f *Faults) Add(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.n++
	if len(f.list) < maxFaults {
		f.list = append(f.list, fmt.Sprintf(format, args...))
	}
}

// All returns the number of faults, and the first ones.
func (f *Faults) All() (n int, first []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.n, append([]string(nil), f.list...)
}
