// SPDX-License-Identifier: Apache-2.0

package vhostfront

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/netbackd/netbackd/pkg/vhostuser"
)

// Stop stops all rings and the pumps' use of them. The back end must have published all that
// it took: the base that it answers is the driver's.
func (d *Device) Stop() error {
	if d.s == nil {
		return errNoSession
	}
	for i := range d.bases {
		base, err := d.s.StopRing(uint32(i))
		if err != nil {
			return fmt.Errorf("vhostfront: stop ring %d: %w", i, err)
		}
		d.bases[i] = base
	}
	d.running = false
	if d.s.has(vhostuser.ProtocolStatus) {
		if err := d.s.U64(vhostuser.SetStatus, 0); err != nil {
			return err
		}
	}
	for i, p := range d.pairs {
		var failed error
		err := d.on(i, func(*Pair) { p.held, p.silent = true, true; failed = d.settled(p) })
		if err := errors.Join(err, failed); err != nil {
			return err
		}
	}
	return nil
}

// settled takes the notifications from before a stop and compares the bases with the rings.
func (d *Device) settled(p *Pair) error {
	for _, r := range d.rings(p) {
		r.takeCall()
		want := r.base()
		if got := d.bases[r.index]; got != want {
			return fmt.Errorf("vhostfront: ring %d stopped at %#x, its used chains end at %#x", r.index, got, want)
		}
	}
	return nil
}

// Quiet stops all rings for a time and fails if the back end writes to the guest's memory, or
// notifies the guest, meanwhile. Then it starts them again.
func (d *Device) Quiet(ctx context.Context, time_ time.Duration) error {
	if err := d.Stop(); err != nil {
		return err
	}
	before := d.mem.sum()
	select {
	case <-time.After(time_):
	case <-ctx.Done():
		return ctx.Err()
	}
	if d.mem.sum() != before {
		return errors.New("vhostfront: the memory of a stopped device has changed")
	}
	for i := range d.bases {
		if d.ring(i).takeCall() {
			return fmt.Errorf("vhostfront: ring %d notified the guest while it was stopped", i)
		}
	}
	return d.Start()
}

// Restart makes all rings empty and starts them, as a driver that was loaded again does. With
// reset the back end is told by RESET_DEVICE, without by stopping the rings.
func (d *Device) Restart(reset bool) error {
	if err := d.Stop(); err != nil {
		return err
	}
	if reset {
		if _, err := d.s.Do(vhostuser.Message{Header: vhostuser.Header{Request: vhostuser.ResetDevice}}); err != nil {
			return err
		}
		d.disabled = map[int]bool{}
		if err := d.s.U64(vhostuser.SetFeatures, d.s.features|1<<30); err != nil {
			return err
		}
	}
	if err := d.dropInflight(); err != nil {
		return err
	}
	for i := range d.pairs {
		var failed error
		if err := d.on(i, func(p *Pair) { failed = p.begin(&d.rules) }); err != nil || failed != nil {
			return errors.Join(err, failed)
		}
	}
	d.freshBases()
	return d.Start()
}

// Swap changes the memory table while the rings run: its regions are cut at other places,
// within buffers, and one region comes and goes. With slots only that one changes.
func (d *Device) Swap() error {
	if d.s == nil {
		return errNoSession
	}
	if !d.s.has(vhostuser.ProtocolMemSlots) {
		d.variant = (d.variant + 1) % 3
		d.extra = d.variant > 0
		return d.sendMemory()
	}
	more, err := d.mem.another()
	if err != nil {
		return err
	}
	r := vhostuser.AddMemReg
	if d.extra {
		r = vhostuser.RemMemReg
	}
	d.extra = !d.extra
	return d.region(r, more, d.mem.extra)
}

// Settle waits until the back end has sent all packets of the guest, and checks the memory
// that it may not write.
func (d *Device) Settle(ctx context.Context) error {
	for i := range d.pairs {
		for {
			left := 0
			if err := d.on(i, func(p *Pair) { p.tx.reap(); left = p.Outstanding() }); err != nil {
				return err
			}
			if left == 0 {
				break
			}
			select {
			case <-time.After(time.Millisecond):
			case <-ctx.Done():
				return fmt.Errorf("vhostfront: pair %d: %d packets are not sent: %w", i, left, ctx.Err())
			}
		}
	}
	if at := d.mem.guarded(); at >= 0 {
		return fmt.Errorf("vhostfront: the back end wrote beside all buffers, at offset %#x", at)
	}
	return nil
}

// SetRxTarget bounds the buffers that the back end has in each ring; those that it has
// already stay.
func (d *Device) SetRxTarget(pair, n int) error {
	if pair < 0 || pair >= len(d.pairs) {
		return fmt.Errorf("vhostfront: no pair %d", pair)
	}
	return d.on(pair, func(p *Pair) { p.rx.most = min(n, len(p.rx.slots)) })
}

// SendRARP has the back end announce a guest that has moved.
func (d *Device) SendRARP(mac [6]byte) error {
	if d.s == nil {
		return errNoSession
	}
	var v uint64
	for i, b := range mac {
		v |= uint64(b) << (8 * i)
	}
	return d.s.U64(vhostuser.SendRARP, v)
}

// SetMTU asks the back end for an MTU.
func (d *Device) SetMTU(mtu int) error {
	if d.s == nil {
		return errNoSession
	}
	return d.s.U64(vhostuser.NetSetMTU, uint64(mtu))
}
