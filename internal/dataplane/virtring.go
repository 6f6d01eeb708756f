// SPDX-License-Identifier: Apache-2.0

package dataplane

import "github.com/netbackd/netbackd/pkg/tap"

// virtPair is the part of a queue that serves a pair of virtqueues. It belongs to the
// queue's worker.
type virtPair struct {
	rx, tx virtRing // to the guest, from the guest
}

// virtRing is one ring of a pair.
type virtRing struct {
	started bool // the front end has started it
	kick    int  // descriptor that epoll watches; -1: none
}

// newVirtConn makes a device that is not served yet.
func newVirtConn(cfg VirtConfig) *Conn {
	c := &Conn{cfg: Config{
		VnetHdr: cfg.VnetHdr, Limiter: cfg.Limiter, Mcast: new(McastList),
		Drain: cfg.Drain, Stall: cfg.Stall, Notice: cfg.Notice,
		SG: true, RxNotify: true,
	}, hurry: make(chan struct{})}
	c.cfg.setDefaults()
	for i := range cfg.Pairs {
		c.queues = append(c.queues, newVirtQueue(c, i, cfg.Pairs[i].Tap))
	}
	c.waiting.own = int64(len(c.queues)) * waitBytes
	return c
}

// newVirtQueue makes a queue for a pair of rings that are stopped.
func newVirtQueue(c *Conn, index int, t *tap.Queue) *Queue {
	q := &Queue{
		conn: c, index: index, tap: t, mostSegs: turnSegments,
		blocked: slotWait{drainAfter: c.cfg.Drain},
		maxRx:   maxFrame,
		virt:    &virtPair{rx: virtRing{kick: -1}, tx: virtRing{kick: -1}},
	}
	if c.cfg.VnetHdr {
		q.vnetLen = tap.VnetHdrLen
	}
	q.reader = tapReader{tap: t, vnetLen: q.vnetLen, readLen: q.vnetLen + maxFrame}
	q.backlog.vif = &c.waiting
	q.reader.resize(1)
	return q
}

// setDefaults fills in what a configuration leaves open.
func (cfg *Config) setDefaults() {
	if cfg.Mcast == nil {
		cfg.Mcast = new(McastList)
	}
	if cfg.Notice == nil {
		cfg.Notice = func(Notice) {}
	}
	if cfg.Drain == 0 {
		cfg.Drain = DefaultDrain
	}
	if cfg.Stall == 0 {
		cfg.Stall = DefaultStall
	}
}
