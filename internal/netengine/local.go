// SPDX-License-Identifier: Apache-2.0

package netengine

import (
	"time"

	"go.uber.org/zap"

	"github.com/netbackd/netbackd/internal/ctrlserver"
	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xen"
)

// Local is the engine in this process.
type Local struct {
	Pool *dataplane.Pool
	Host Host
}

// Open implements [Engine].
func (e *Local) Open(cfg LinkConfig) Link { return &link{cfg: cfg, pool: e.Pool, host: e.Host} }

// link is a link whose connection is served by this process.
type link struct {
	cfg  LinkConfig
	pool *dataplane.Pool
	host Host

	// Settings that outlive a connection.
	limiter dataplane.Limiter
	mcast   dataplane.McastList
	weight  int

	conn *connection // nil: there is none
}

// connection holds the resources of a connection: rings, channels, journals, and the data
// path that uses them.
type connection struct {
	rings  Rings
	stamp  netif.Stamp // see identity.go
	known  bool
	served bool

	queues   []dataplane.QueueConfig
	mappings []*gntdev.Mapping // one ring page each
	events   []Events          // one per queue
	ports    int               // bound event channels
	journals []*dataplane.Journal
	data     *dataplane.Conn
	control  *ctrlserver.Server // nil: the frontend has no control ring
}

// SetRate implements [Link].
func (l *link) SetRate(bytes uint64, interval time.Duration) { l.limiter.Set(bytes, interval) }

// SetWeight implements [Link].
func (l *link) SetWeight(n int) {
	l.weight = n
	if c := l.conn; c != nil && c.data != nil {
		var err error
		l.cfg.Turn.Aside(func() { err = c.data.SetWeight(n) })
		l.warn("weight not changed", err) // the worker has ended
	}
}

// SetMcast implements [Link].
func (l *link) SetMcast(on bool) { l.mcast.SetFilter(on) }

// SetHeadroom implements [Link].
func (l *link) SetHeadroom(n uint16) (err error) {
	l.cfg.Turn.Aside(func() { err = l.conn.data.SetXDPHeadroom(n) })
	return err
}

// PauseCoalescing implements [Link].
func (l *link) PauseCoalescing(on bool) (err error) {
	l.cfg.Turn.Aside(func() { err = l.conn.data.PauseCoalescing(on) })
	return err
}

// Status implements [Link].
func (l *link) Status() Status {
	c := l.conn
	s := Status{Mapped: len(c.mappings), Ports: c.ports, Mcast: l.mcast.Addrs()}
	if c.control != nil {
		s.Control = c.control.Status()
		s.Mapped, s.Ports = s.Mapped+1, s.Ports+1
	}
	for i := range c.data.Queues() {
		q := QueueStatus{Counters: c.data.Stats(i).Snapshot()}
		l.cfg.Turn.Aside(func() { q.QueueState = c.data.State(i) })
		if c.control != nil {
			if t := c.control.Table(i); t != nil {
				q.StaticMax = t.Limit()
			}
		}
		s.Queues = append(s.Queues, q)
	}
	return s
}

// Counters implements [Link].
func (l *link) Counters() (sum [dataplane.NumCounters]uint64) {
	if l.conn == nil {
		return sum
	}
	return l.conn.counters()
}

// counters returns the sums of the counters.
func (c *connection) counters() (sum [dataplane.NumCounters]uint64) {
	if c.data == nil {
		return sum
	}
	return counting{c.data}.Counters()
}

// Counting implements [Link].
func (l *link) Counting() Counting {
	if l.conn == nil || l.conn.data == nil {
		return nil
	}
	return counting{l.conn.data}
}

// counting is a Counting of this process.
type counting struct{ data *dataplane.Conn }

// Counters implements [Counting].
func (c counting) Counters() (sum [dataplane.NumCounters]uint64) {
	for i := range c.data.Queues() {
		n := c.data.Stats(i).Snapshot()
		AddCounters(&sum, &n)
	}
	return sum
}

// RingsRenewed implements [Link].
func (l *link) RingsRenewed() bool {
	for _, m := range l.conn.mappings {
		if h, err := netif.ReadHeader(m.Bytes()); err != nil || h.Stamp != l.conn.stamp {
			return true
		}
	}
	return false
}

// ChannelsRenewed implements [Link]. If the frontend has allocated its channels again, Xen
// has unbound the back end's ends without an event, and no event passes any more. To find
// out, it binds the first channel, which succeeds only if no other end is bound. The rings
// may be new as well, although the mapped pages have the stamp: a guest that boots another
// kernel without closing allocates them in other pages.
func (l *link) ChannelsRenewed() bool {
	e, err := l.host.OpenEvents(l.cfg.Domid)
	if err != nil {
		return false
	}
	_, err = e.BindInterdomain(l.cfg.Domid, l.conn.rings.channel())
	l.warn("close event channels failed", e.Close())
	return err == nil
}

// RingStamp implements [Link].
func (l *link) RingStamp(ref xen.Gref) (netif.Stamp, error) {
	m, err := l.host.Grants().Map(l.cfg.Domid, []xen.Gref{ref}, gntdev.ReadWrite)
	if err != nil {
		return netif.Stamp{}, err
	}
	h, err := netif.ReadHeader(m.Bytes())
	l.warn("unmap ring failed", m.Unmap())
	return h.Stamp, err
}

// End implements [Link].
func (l *link) End() {}

// warn logs an error that stops nothing.
func (l *link) warn(what string, err error) {
	if err != nil {
		l.cfg.Log.Warn(what, zap.Error(err))
	}
}
