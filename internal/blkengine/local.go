// SPDX-License-Identifier: Apache-2.0

package blkengine

import (
	"context"
	"sync"

	"github.com/netbackd/netbackd/internal/blkplane"
	"github.com/netbackd/netbackd/pkg/blkif"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/xen"
)

// Local is the engine in this process.
type Local struct {
	Pool *blkplane.Pool
	// Host returns what opens Xen's devices for one domain.
	Host func(domid xen.Domid) blkplane.Host
}

// Open implements [Engine].
func (e *Local) Open(cfg LinkConfig) Link {
	return &link{cfg: cfg, pool: e.Pool, host: e.Host(cfg.Domid)}
}

// link is a link whose connections are served by this process.
type link struct {
	cfg  LinkConfig
	pool *blkplane.Pool
	host blkplane.Host
}

// Connect implements [Link].
func (l *link) Connect(cfg *Config) (Conn, error) {
	c, err := l.pool.Connect(blkplane.Config{
		Host: l.host, Domid: l.cfg.Domid, Protocol: cfg.Protocol,
		Disk: cfg.Disk, ReadOnly: cfg.ReadOnly, MaxSegments: cfg.MaxSegments, Persistent: cfg.Persistent,
		NoDiscard: cfg.NoDiscard, Guest: l.cfg.Memory, Weight: cfg.Weight, Queues: cfg.Queues, Notice: cfg.Notice,
	})
	if err != nil {
		return nil, err // without the nil pointer
	}
	return &conn{Conn: c, drained: make(chan struct{})}, nil
}

// RingStamp implements [Link].
func (l *link) RingStamp(ref xen.Gref) (xen.Stamp, error) { return ringStamp(l.host, l.cfg.Domid, ref) }

// ringStamp reads the stamp in a ring page of a guest.
func ringStamp(host blkplane.Host, domid xen.Domid, ref xen.Gref) (s xen.Stamp, err error) {
	g, err := host.OpenGrants()
	if err != nil {
		return s, err
	}
	defer g.Close()
	m, err := g.Map(domid, []xen.Gref{ref}, gntdev.ReadWrite)
	if err != nil {
		return s, err
	}
	h, err := blkif.ReadHeader(m.Bytes())
	if uerr := m.Unmap(); err == nil {
		err = uerr
	}
	return h.Stamp, err
}

// End implements [Link].
func (l *link) End() {}

// conn is a connection that this process serves.
type conn struct {
	*blkplane.Conn
	drain   sync.Once
	drained chan struct{}
}

// Drain implements [Conn].
func (c *conn) Drain() <-chan struct{} {
	c.drain.Do(func() {
		go func() {
			if c.Conn.Drain(context.Background()) == nil {
				close(c.drained)
			}
		}()
	})
	return c.drained
}

// Counters implements [Conn].
func (c *conn) Counters(i int) [blkplane.NumCounters]uint64 { return c.Stats(i).Snapshot() }
