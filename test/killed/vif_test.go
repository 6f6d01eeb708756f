// SPDX-License-Identifier: Apache-2.0

package killed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/netbackd/netbackd/internal/lab"
	"github.com/netbackd/netbackd/internal/lab/netfront"
	"github.com/netbackd/netbackd/internal/lab/numbered"
	"github.com/netbackd/netbackd/internal/lab/xenfront"
	"github.com/netbackd/netbackd/internal/lab/xensim/simclient"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// vifConfig says what a vif of a bed does.
type vifConfig struct {
	queues  int
	plain   bool // no checksum or segmentation offload: the host merges packets
	hash    bool // hashing with a mapping of its own
	static  int  // buffers of each queue that stay mapped
	control bool // control messages without end
}

// vif is a guest's vif whose frontend is in this process.
type vif struct {
	b       *bed
	cfg     vifConfig
	domid   xen.Domid
	name    string
	dev     *netfront.Device
	leave   func() error
	wire    *numbered.Wire
	traffic *numbered.Traffic
	runs    uint32

	young   bool        // connected since the last balance
	away    atomic.Bool // not connected, or without traffic
	ends    []context.CancelFunc
	wg      sync.WaitGroup
	stopped bool
	mu      sync.Mutex // guards err
	err     error
}

// addVif makes a domain with a vif, connects it and starts its traffic.
func (b *bed) addVif(cfg vifConfig) *vif {
	b.t.Helper()
	v := &vif{b: b, cfg: cfg}
	var err error
	v.domid, err = b.CreateDomain(b.ctx, fmt.Sprintf("k%d", len(b.vifs)), simclient.DomainConfig{GntallocLimit: 8192})
	b.must(err)
	b.must(b.Attach(b.ctx, v.domid, lab.VifConfig{Script: upScript}))
	v.name = xenbus.VifID{Domid: v.domid}.String()
	host, leave, err := xenfront.Open(b.ctx, b.XenDir(), v.domid)
	b.must(err)
	v.leave = leave
	f := netfront.AllFeatures()
	if cfg.plain {
		f = netfront.Features{RxCopy: true, RxNotify: true, SG: true, NoCsumOffload: true}
	}
	v.dev, err = netfront.Open(b.ctx, host, netfront.Config{
		Queues: cfg.queues, SplitEvents: true, Features: f, Control: true, IDSalt: 0x5a00, Strict: true,
	})
	b.must(err)
	b.vifs = append(b.vifs, v)
	b.must(v.connect(b.ctx))
	v.wire, err = numbered.OpenWire(v.name, uint16(len(b.vifs)), b.faults)
	b.must(err)
	v.run()
	return v
}

// connect connects the frontend and sets up what it asks for by its control ring.
func (v *vif) connect(ctx context.Context) error {
	if v.dev.State() == xenbus.Initialising {
		if err := v.dev.Connect(ctx); err != nil {
			return err
		}
	} else if err := v.dev.Reconnect(ctx); err != nil {
		return err
	}
	if v.cfg.hash {
		if err := v.dev.Control().SetHash(ctx, v.hash()); err != nil {
			return err
		}
	}
	if v.cfg.static > 0 {
		for _, q := range v.dev.Queues() {
			q.AllowMapped()
			if _, err := v.dev.Control().SomeStaticGrants(ctx, q, v.cfg.static); err != nil {
				return err
			}
		}
	}
	return nil
}

// hash returns hashing of all types with a random mapping.
func (v *vif) hash() netfront.Hash {
	m := make([]uint32, 32)
	for i := range m {
		m[i] = rand.Uint32N(uint32(v.cfg.queues))
	}
	return netfront.Hash{Types: 1<<netif.HashIPv4 | 1<<netif.HashIPv4TCP, Key: bytes.Repeat([]byte{0x6d, 0x5a}, 20), Mapping: m}
}

// fail notes an error of the vif's goroutines.
func (v *vif) fail(err error) {
	if err == nil || errors.Is(err, context.Canceled) {
		return
	}
	v.mu.Lock()
	v.err = errors.Join(v.err, err)
	v.mu.Unlock()
	v.b.faults.Add("%s: %v", v.name, err)
}

// run starts the traffic of a new connection.
func (v *vif) run() {
	v.runs++
	v.away.Store(false)
	v.young = true
	o := numbered.Options{Vif: v.wire.Vif, Run: v.runs, Queues: len(v.dev.Queues()), Partial: !v.cfg.plain}
	v.traffic = numbered.New(o, v.b.faults)
	v.wire.Use(v.traffic)
	v.background(v.wire.Receive)
	v.background(func(ctx context.Context) error { return v.wire.Send(ctx, v.traffic) })
	for _, q := range v.dev.Queues() {
		v.background(func(ctx context.Context) error { return v.traffic.RunQueue(ctx, q) })
	}
	if v.cfg.control {
		v.background(v.talk)
	}
}

// background runs f until the vif is halted.
func (v *vif) background(f func(context.Context) error) {
	ctx, cancel := context.WithCancel(v.b.ctx)
	v.ends = append(v.ends, cancel)
	v.wg.Go(func() { v.fail(f(ctx)) })
}

// talk sends control messages without end.
func (v *vif) talk(ctx context.Context) error {
	c := v.dev.Control()
	for ctx.Err() == nil {
		if err := c.SetHash(ctx, v.hash()); err != nil {
			return err
		}
		if v.cfg.static > 0 {
			if err := v.cycleGrants(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// cycleGrants ends the static grants of each queue and makes them anew.
func (v *vif) cycleGrants(ctx context.Context) error {
	c := v.dev.Control()
	for _, q := range v.dev.Queues() {
		if _, err := c.EndStaticGrants(ctx, q); err != nil {
			return err
		}
		if _, err := c.SomeStaticGrants(ctx, q, v.cfg.static); err != nil {
			return err
		}
	}
	return nil
}

// disconnect closes the vif as a driver does that is unloaded. What it had sent and was not
// answered is lost.
func (v *vif) disconnect(ctx context.Context) error {
	v.halt()
	v.judge()
	v.away.Store(true)
	return v.dev.Disconnect(ctx)
}

// halt ends the goroutines of a connection.
func (v *vif) halt() {
	for _, end := range v.ends {
		end()
	}
	v.ends = nil
	v.wg.Wait()
}

// end ends the vif's part in this process, and reports what its frontend holds against the back
// end.
func (v *vif) end() error {
	if v.stopped {
		return nil
	}
	v.stopped = true
	v.halt()
	v.judge()
	err := v.dev.Close()
	if v.wire != nil {
		err = errors.Join(err, v.wire.Close())
	}
	return errors.Join(err, v.leave())
}

// judge adds the faults that the frontend's queues have found. Bytes outside of the data of a
// packet are allowed: a killed daemon has copied them there for a packet that it did not publish.
func (v *vif) judge() {
	for _, q := range v.dev.Queues() {
		for r, n := range q.Broken() {
			if r == netfront.RuleOutsideWrite {
				continue
			}
			v.b.faults.Add("%s: %d times: %v", v.name, n, r)
			for _, x := range q.Violations() {
				if x.Rule == r {
					v.b.faults.Add("%s: %v", v.name, x)
					break
				}
			}
		}
		s := q.Stats()
		if s.TxErrors+s.TxDropped+s.RxErrors > 0 {
			v.b.faults.Add("%s, queue %d: %d packets answered with an error, %d dropped, %d received with an error", v.name, q.Index(), s.TxErrors, s.TxDropped, s.RxErrors)
		}
	}
}

// quiet stops the senders, and waits until all packets of the guest have arrived.
func (v *vif) quiet() {
	v.b.t.Helper()
	v.traffic.Pause(true)
	v.b.wait("all packets of "+v.name+" to arrive", func() bool {
		missing, _ := v.traffic.Missing()
		return missing == 0
	})
}

// since returns the time from a kill until the guest's first packet after the end of the daemon.
func (v *vif) since(killed time.Time) (time.Duration, bool) {
	at, ok := v.wire.First()
	return at.Sub(killed), ok
}
