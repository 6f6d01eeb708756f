// SPDX-License-Identifier: Apache-2.0

package xentest

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/xen"
)

// TB is the part of [testing.TB] that [Start] uses.
type TB interface {
	Helper()
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Cleanup(f func())
}

// Guest is a domain in the memory of this process. Its methods may be called from
// several goroutines at once.
type Guest struct {
	domid xen.Domid

	mu       sync.Mutex // guards all below
	mem      memory
	grants   map[xen.Gref]*grant
	nextRef  xen.Gref
	channels [2]map[evtchn.Port]*channel // by side
	counts   Counts
	usage    Usage
	evtchns  map[*Evtchn]struct{} // open

	armed     atomic.Bool // there may be a fault or an interceptor
	intercept func(Call) error
	faults    map[Call]error // of the next call, see check
}

// Counts holds how often the doubles of a guest's devices were called since it was
// made.
type Counts struct {
	MapCalls  int // calls of Gntdev.Map
	CopyCalls int // calls of Gntdev.Copy
	Copies    int // segments of these
	OwnCopies int // successful ones among these that named our page by a gref
}

// Usage holds what the program has of a guest.
type Usage struct {
	Pages   int // mapped now; a page that is mapped twice counts twice
	Devices int // open now
	Ports   int // bound now
}

// Start makes a guest for the time of a test. At the end of the test it reports as an
// error what [Guest.Close] returns.
func Start(tb TB, domid xen.Domid) *Guest {
	tb.Helper()
	g, err := New(domid)
	if err != nil {
		tb.Fatalf("%v", err)
	}
	tb.Cleanup(func() {
		if err := g.Close(); err != nil {
			tb.Errorf("%v", err)
		}
	})
	return g
}

// New makes a guest without grants and ports. Tests call [Start].
func New(domid xen.Domid) (*Guest, error) {
	fd, err := newMemory()
	if err != nil {
		return nil, fmt.Errorf("xentest: memory of the guest: %w", err)
	}
	return On(domid, fd)
}

// On makes a guest whose memory is that of another one: fd is its [Guest.File], perhaps
// received from another process. Only the memory is shared. The new guest has no grants
// and no ports; if it grants pages in the same order, the same pages are behind them.
// The guest owns fd.
func On(domid xen.Domid, fd int) (*Guest, error) {
	g := &Guest{
		domid: domid, nextRef: reserved,
		grants:  map[xen.Gref]*grant{},
		evtchns: map[*Evtchn]struct{}{},
		faults:  map[Call]error{},
	}
	for i := range g.channels {
		g.channels[i] = map[evtchn.Port]*channel{}
	}
	if err := g.mem.open(fd); err != nil {
		return nil, fmt.Errorf("xentest: memory of the guest: %w", err)
	}
	return g, nil
}

// Close frees the guest's memory: nothing may use the guest's view of its pages any more.
// Pages that are mapped stay so. The error says what of the guest is still mapped, bound
// or open, and which ordered faults have not happened.
func (g *Guest) Close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	var errs []error
	if u := g.usage; u != (Usage{}) {
		errs = append(errs, fmt.Errorf("xentest: left of domain %d: %v", g.domid, u))
	}
	for c, err := range g.faults {
		errs = append(errs, fmt.Errorf("xentest: this fault of domain %d was ordered and did not happen: %w of %+v", g.domid, err, c))
	}
	for e := range g.evtchns {
		errs = append(errs, e.close())
	}
	errs = append(errs, g.mem.close())
	return errors.Join(errs...)
}

// String returns the usage as text.
func (u Usage) String() string {
	return fmt.Sprintf("%d pages mapped, %d devices open, %d ports bound", u.Pages, u.Devices, u.Ports)
}

// Domid returns the guest's number.
func (g *Guest) Domid() xen.Domid { return g.domid }

// File returns the guest's memory as a file, for [On] in another process. It stays the
// guest's.
func (g *Guest) File() int { return g.mem.fd }

// Counts returns how often the doubles were called.
func (g *Guest) Counts() Counts {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.counts
}

// Usage returns what of the guest is mapped, open and bound now.
func (g *Guest) Usage() Usage {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.usage
}
