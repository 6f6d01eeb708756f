// SPDX-License-Identifier: Apache-2.0

package vhostfront

import (
	"context"
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/vhostuser"
)

// Device is a guest's network device. Its methods belong to one goroutine, and
// reach rings by on, on the pump of their pair.
type Device struct {
	cfg   Config
	mem   *memory
	pairs []*Pair
	rules rules
	ln    *net.UnixListener
	s     *session // nil: no back end
	began bool     // the rings exist

	running  bool // the rings are started
	sessions int
	variant  int               // of the memory table
	extra    bool              // the table has one more region
	inflight vhostuser.Message // with the region's descriptor in Files; none: no region
	log      *dirtyLog
	bases    []uint32 // of rings that were stopped
	disabled map[int]bool

	// on runs a function on the pump of a pair. Without pumps it runs it in place.
	on func(pair int, f func(*Pair)) error
}

// Open makes a device, waits for a back end and agrees on features with it.
func Open(ctx context.Context, cfg Config) (_ *Device, err error) {
	cfg = cfg.withDefaults()
	d := &Device{cfg: cfg, disabled: map[int]bool{}}
	d.on = func(i int, f func(*Pair)) error { f(d.pairs[i]); return nil }
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Close())
		}
	}()
	if err := d.listen(); err != nil {
		return nil, err
	}
	perPair := cfg.Size*(2*tableSize+cfg.RxBuffer+4*guardSize) + maxLarge*(slotSize+guardSize)*2 + 1<<18
	if d.mem, err = newMemory(cfg.Pairs*perPair+cfg.Regions*slotSize, cfg.Regions); err != nil {
		return nil, err
	}
	for i := range cfg.Pairs {
		p := &Pair{index: i}
		d.pairs = append(d.pairs, p)
		if p.rx, err = newRxSide(d.mem, 2*i, cfg); err == nil {
			p.tx, err = newTxSide(d.mem, 2*i+1, cfg.Size)
		}
		if err != nil {
			return nil, err
		}
	}
	d.bases = make([]uint32, 2*cfg.Pairs)
	return d, d.attach(ctx)
}

// SetPumps tells the device how to reach the pumps.
func (d *Device) SetPumps(on func(pair int, f func(*Pair)) error) { d.on = on }

// Pairs returns the pairs of queues, for pumps.
func (d *Device) Pairs() []*Pair { return d.pairs }

// Features returns the virtio features that were agreed on.
func (d *Device) Features() uint64 { return d.rules.features }

// Offload returns the offloads for the TAP of the guest's card: the work that the back end
// completes.
func (d *Device) Offload() tap.Offload { return d.rules.offload() }

// Sessions returns the number of sessions so far.
func (d *Device) Sessions() int { return d.sessions }

// Lost returns a channel that is closed when the back end has closed the connection.
func (d *Device) Lost() <-chan struct{} {
	if d.s == nil {
		return nil
	}
	return d.s.lost
}

// attach begins a session, and the rings if they do not exist.
func (d *Device) attach(ctx context.Context) error {
	c, err := d.connect(ctx)
	if err != nil {
		return err
	}
	s, err := newSession(c)
	if err != nil {
		return err
	}
	want := d.cfg.features()
	if d.log != nil {
		want |= featLogAll
	}
	if err := d.negotiate(s, want); err != nil {
		return errors.Join(err, s.end())
	}
	d.s = s
	d.sessions++
	if d.began {
		return nil
	}
	d.rules = newRules(s.features, d.cfg)
	for i := range d.pairs {
		var failed error
		if err := d.on(i, func(p *Pair) { failed = p.begin(&d.rules) }); err != nil || failed != nil {
			return errors.Join(err, failed)
		}
	}
	d.freshBases()
	d.began = true
	return nil
}

// freshBases sets the bases of rings that are empty.
func (d *Device) freshBases() {
	for i := range d.bases {
		d.bases[i] = 0
		if d.rules.has(featPacked) {
			d.bases[i] = 1<<15 | 1<<31
		}
	}
}

// Start gives the back end memory and rings, and enables them.
func (d *Device) Start() error {
	if d.s == nil {
		return errNoSession
	}
	if !d.s.memory {
		if err := d.sendMemory(); err != nil {
			return fmt.Errorf("vhostfront: memory: %w", err)
		}
	}
	if err := d.sendInflight(); err != nil {
		return fmt.Errorf("vhostfront: inflight region: %w", err)
	}
	if d.log != nil {
		if err := d.sendLog(); err != nil {
			return fmt.Errorf("vhostfront: log: %w", err)
		}
	}
	for i := range d.pairs {
		if err := d.on(i, func(p *Pair) { p.silent = false }); err != nil {
			return err
		}
	}
	for i := range 2 * len(d.pairs) {
		if err := d.startRing(i); err != nil {
			return fmt.Errorf("vhostfront: start ring %d: %w", i, err)
		}
	}
	if d.s.has(vhostuser.ProtocolStatus) {
		if err := d.s.U64(vhostuser.SetStatus, 0xf); err != nil {
			return err
		}
	}
	d.running = true
	for i := range d.pairs {
		if err := d.on(i, func(p *Pair) { p.held = false }); err != nil {
			return err
		}
	}
	for i := range 2 * len(d.pairs) {
		notify(d.ring(i).kick) // the first kick starts a ring
	}
	return nil
}

// startRing starts a ring in the order of QEMU: it is enabled first, since one that is started
// and not enabled discards the guest's packets.
func (d *Device) startRing(i int) error {
	r := d.ring(i)
	index, base := uint32(i), d.bases[i]
	if err := d.Enable(i, !d.disabled[i]); err != nil {
		return err
	}
	for _, m := range []vhostuser.Message{
		{Header: vhostuser.Header{Request: vhostuser.SetVringNum}, State: vhostuser.VringState{Index: index, Num: uint32(r.size)}},
		{Header: vhostuser.Header{Request: vhostuser.SetVringBase}, State: vhostuser.VringState{Index: index, Num: base}},
		{Header: vhostuser.Header{Request: vhostuser.SetVringAddr}, Addr: r.addr(d.log != nil)},
		{Header: vhostuser.Header{Request: vhostuser.SetVringKick}, U64: uint64(i), Files: []int{r.kick}},
		{Header: vhostuser.Header{Request: vhostuser.SetVringCall}, U64: uint64(i), Files: []int{r.call}},
	} {
		if _, err := d.s.Do(m); err != nil {
			return err
		}
	}
	return nil
}

var errNoSession = errors.New("vhostfront: there is no back end")

func (d *Device) ring(i int) *ring {
	if i%2 == 0 {
		return d.pairs[i/2].rx.ring
	}
	return d.pairs[i/2].tx.ring
}

// sendMemory sends the table of regions.
func (d *Device) sendMemory() error {
	regions, files, err := d.mem.table(d.variant, d.extra)
	if err != nil {
		return err
	}
	d.s.memory = true
	if !d.s.has(vhostuser.ProtocolMemSlots) {
		return d.s.SetMemory(regions, files)
	}
	for i := range regions {
		if err := d.region(vhostuser.AddMemReg, regions[i], files[i]); err != nil {
			return err
		}
	}
	return nil
}

func (d *Device) region(r vhostuser.Request, region vhostuser.Region, file int) error {
	m := vhostuser.Message{Header: vhostuser.Header{Request: r}, Regions: []vhostuser.Region{region}}
	if r == vhostuser.AddMemReg {
		m.Files = []int{file}
	}
	_, err := d.s.Do(m)
	return err
}

// sendInflight asks for the inflight region, or gives the back end that of its predecessor.
func (d *Device) sendInflight() error {
	if !d.s.has(vhostuser.ProtocolInflight) {
		return nil
	}
	if d.inflight.Files == nil {
		m, err := d.s.Do(vhostuser.Message{Header: vhostuser.Header{Request: vhostuser.GetInflightFD},
			Inflight: vhostuser.Inflight{Queues: uint16(2 * len(d.pairs)), QueueSize: uint16(d.cfg.Size)}})
		if err != nil {
			return err
		}
		d.inflight = m
	}
	_, err := d.s.Do(vhostuser.Message{Header: vhostuser.Header{Request: vhostuser.SetInflightFD}, Inflight: d.inflight.Inflight, Files: d.inflight.Files})
	return err
}

func (d *Device) dropInflight() error {
	if len(d.inflight.Files) == 0 {
		return nil
	}
	err := unix.Close(d.inflight.Files[0])
	d.inflight = vhostuser.Message{}
	return err
}

// Detach closes the connection, as a front end that was killed does. The rings stay.
func (d *Device) Detach() error {
	if d.s == nil {
		return nil
	}
	err := d.s.end()
	d.s = nil
	return err
}

// Reconnect waits for another back end and gives it the rings as they are: they begin behind
// the last chain that was published. Pumps go on meanwhile, and are told nothing of it.
func (d *Device) Reconnect(ctx context.Context) error {
	if err := d.Detach(); err != nil {
		return err
	}
	if err := d.attach(ctx); err != nil || !d.running {
		return err
	}
	for i := range d.pairs {
		err := d.on(i, func(p *Pair) {
			for _, r := range []*ring{p.rx.ring, p.tx.ring} {
				d.bases[r.index], r.stale = r.base(), len(r.order)
			}
		})
		if err != nil {
			return err
		}
	}
	return d.Start()
}

// Enable enables or disables a ring.
func (d *Device) Enable(ring int, on bool) error {
	if d.s == nil || ring < 0 || ring >= 2*len(d.pairs) {
		return fmt.Errorf("vhostfront: ring %d: %w", ring, errNoSession)
	}
	n := uint32(0)
	if on {
		n = 1
	}
	d.disabled[ring] = !on
	_, err := d.s.Do(vhostuser.Message{Header: vhostuser.Header{Request: vhostuser.SetVringEnable}, State: vhostuser.VringState{Index: uint32(ring), Num: n}})
	return err
}

// Close ends the session and frees the memory. Pumps must have ended.
func (d *Device) Close() error {
	err := errors.Join(d.Detach(), d.dropInflight())
	if d.ln != nil {
		err = errors.Join(err, d.ln.Close())
	}
	if d.log != nil {
		err = errors.Join(err, d.log.close())
	}
	for _, p := range d.pairs {
		for _, r := range d.rings(p) {
			err = errors.Join(err, r.close())
		}
	}
	if d.mem != nil {
		err = errors.Join(err, d.mem.close())
	}
	return err
}

func (d *Device) rings(p *Pair) (list []*ring) {
	if p.rx != nil {
		list = append(list, p.rx.ring)
	}
	if p.tx != nil {
		list = append(list, p.tx.ring)
	}
	return list
}
