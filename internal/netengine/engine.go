// SPDX-License-Identifier: Apache-2.0

package netengine

import (
	"time"

	"go.uber.org/zap"

	"github.com/netbackd/netbackd/internal/budget"
	"github.com/netbackd/netbackd/internal/ctrlserver"
	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/offload"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/staticgrant"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/xen"
)

// Grants maps and copies guests' pages. *gntdev.Device implements it.
type Grants interface {
	dataplane.Copier
	Map(domid xen.Domid, refs []xen.Gref, prot gntdev.Prot) (*gntdev.Mapping, error)
}

// Events is a handle for event channels. *evtchn.Device implements it.
type Events = ctrlserver.Events

// Mapper is an open handle for mapping guests' pages. *gntdev.Device implements it.
type Mapper = ctrlserver.Mapper

// Host opens the Xen devices for a connection.
type Host interface {
	// Grants returns the handle that maps all rings and copies all packets.
	Grants() Grants
	// OpenMapper opens another handle. To map or unmap a page, the kernel searches all
	// mappings of the handle, under a lock. So the static grants of a vif, of which a
	// guest may have hundreds, use a handle of their own and slow down no other guest.
	OpenMapper() (Mapper, error)
	// OpenEvents opens a handle that can bind channels of one domain only.
	OpenEvents(domid xen.Domid) (Events, error)
}

// Engine makes links.
type Engine interface {
	// Open makes the link of a vif. It does not wait.
	Open(cfg LinkConfig) Link
}

// LinkConfig describes the vif of a link.
type LinkConfig struct {
	Domid xen.Domid
	Name  string // of the vif
	Log   *zap.Logger

	Guest *budget.Guest // of the domain
	Turn  *budget.Turn  // of the goroutine that calls the link, which holds it

	// GrantBudget bounds the static grants of the domain; nil: no bound.
	GrantBudget *staticgrant.Budget
}

// Notice is an event of a connection.
type Notice = dataplane.Notice

// Link is the engine's part of a vif. It has at most one connection. Its methods belong to
// the goroutine of the vif, and give its turn back while they wait for others.
type Link interface {
	// SetRate limits what the guest sends; 0 bytes remove the limit. The limit outlives
	// connections.
	SetRate(bytes uint64, interval time.Duration)

	// SetWeight sets the vif's weight, as [dataplane.Conn.SetWeight] does; 1 at first. It
	// outlives connections.
	SetWeight(n int)

	// Prepare maps the rings of a new connection, binds its channels, takes the journals
	// and finds out whether the rings were served before. After an error, and in any
	// case at the end, the connection has to be closed with Close.
	Prepare(r *Rings) (Found, error)
	// Start serves the connection that was prepared. From then on a successor can
	// continue it.
	Start(s *Serving) error
	// Close ends the connection, if there is one, and returns its counters. When it
	// returns, no page is mapped and no channel is bound.
	Close(how Ending) [dataplane.NumCounters]uint64

	// The following are for a connection that was started.

	// SetMcast turns the filter of multicast packets on or off.
	SetMcast(on bool)
	// SetHeadroom sets the room for an XDP program of the guest; see
	// [dataplane.Conn.SetXDPHeadroom].
	SetHeadroom(n uint16) error
	// PauseCoalescing stops the merging of packets, or lets it go on; see
	// [dataplane.Conn.PauseCoalescing].
	PauseCoalescing(on bool) error
	// Status describes the connection.
	Status() Status
	// Counters returns the sums of its counters. It does not wait.
	Counters() [dataplane.NumCounters]uint64
	// Counting returns the counters of the connection for other goroutines; nil if none
	// was started.
	Counting() Counting
	// RingsRenewed reports whether the frontend has initialised a ring again.
	RingsRenewed() bool
	// ChannelsRenewed reports whether the frontend has allocated its event channels
	// again, with the same numbers. It may only be called after the frontend has written
	// Connected: until then a port of that number may belong to another device.
	ChannelsRenewed() bool

	// RingStamp returns the stamp in a ring page of the guest, which need not belong to a
	// connection.
	RingStamp(ref xen.Gref) (netif.Stamp, error)

	// End ends the link, which has no connection any more.
	End()
}

// Counting has the counters of one connection. Any goroutine may read them, also after the end
// of the connection. Values of it are comparable.
type Counting interface {
	// Counters returns the sums of the counters. It does not wait.
	Counters() [dataplane.NumCounters]uint64
}

// Rings names the rings and channels of a connection.
type Rings struct {
	Queues []ctrlserver.Rings
	// Control is the control ring; nil: there is none.
	Control *ctrlserver.ControlRing
	// Journals are open files, one for each queue, or none if nothing outlives the
	// process. The link closes them.
	Journals []int

	// Notice is called for events of the connection that the vif must act on, from other
	// goroutines. It must not block.
	Notice func(Notice)
	// Died is called from another goroutine when the process of the connection has ended. It
	// must not block. The connection has to be closed.
	Died func(error)
	// Group is the group of vifs that share a packet process, if the toolstack names one.
	Group string
}

// Found describes a connection that was prepared.
type Found struct {
	Stamp  netif.Stamp
	Known  bool // a predecessor served this connection, and its recorded settings are in force
	Served bool // a back end has served these rings before
}

// Serving configures the service of a connection.
type Serving struct {
	Guest    offload.Guest // offloads that the frontend takes
	SG       bool
	RxNotify bool
	VnetHdr  bool
	Coalesce dataplane.Coalesce
	Paused   bool   // coalescing is paused from the start
	Headroom uint16 // for an XDP program of the guest
	Mcast    bool   // the frontend wants the filter of multicast packets

	Drain, Stall time.Duration

	Taps    []*tap.Queue // by queue
	Stalled []bool       // queues that had no rx slots when a predecessor ended

	Control *Control // nil: there is no control ring
}

// Control configures the service of a control ring.
type Control struct {
	Offered      ctrlserver.Protocols // to the frontend
	StaticGrants int                  // pages that each queue keeps mapped; 0: none
	// Records keeps the record of the control ring; nil: nothing outlives the process.
	Records ctrlserver.Records
	// Steering steers the TAP's packets; nil: SetSteering makes one.
	Steering ctrlserver.Steering
	// SetSteering gives the TAP a steering program, see [tap.Device.SetSteering].
	SetSteering func(program int) error
	// NoBPF is the error with which the kernel refuses such programs; nil: it takes them.
	NoBPF error
}

// Ending tells what stays of a connection that ends.
type Ending uint8

const (
	// Leave leaves everything to a successor.
	Leave Ending = iota
	// Drop drops the guest's settings. The stamps stay in the rings, since the guest may
	// be allowed to continue with them.
	Drop
	// Forget also removes the stamps: the guest may use the pages again for a new
	// connection.
	Forget
)

// Status describes a connection.
type Status struct {
	Queues  []QueueStatus
	Control *ctrlserver.Status // nil: there is no control ring
	Mcast   [][6]byte
	Mapped  int // pages of rings
	Ports   int // event channels
}

// QueueStatus describes a queue.
type QueueStatus struct {
	dataplane.QueueState
	Counters  [dataplane.NumCounters]uint64
	StaticMax int // bound of its static grants
}

// AddCounters adds n to a sum.
func AddCounters(to, n *[dataplane.NumCounters]uint64) {
	for k := range n {
		to[k] += n[k]
	}
}

// channel is the frontend's port that ChannelsRenewed tries.
func (r *Rings) channel() evtchn.Port { return r.Queues[0].TxPort }
