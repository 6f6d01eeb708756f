// SPDX-License-Identifier: Apache-2.0

package vhostfront

import (
	"errors"

	"github.com/netbackd/netbackd/pkg/vhostuser"
)

// StartLog begins to record the pages that the back end writes, while the rings run, with the
// messages of QEMU.
func (d *Device) StartLog() (err error) {
	if d.s == nil || d.log != nil {
		return errors.Join(errNoSession, errors.New("vhostfront: or there is a log already"))
	}
	if d.log, err = newDirtyLog(d.mem.end(), len(d.pairs)); err != nil {
		return err
	}
	if err := d.sendLog(); err != nil {
		return err
	}
	for i := range d.bases {
		if _, err := d.s.Do(vhostuser.Message{Header: vhostuser.Header{Request: vhostuser.SetVringAddr}, Addr: d.ring(i).addr(true)}); err != nil {
			return err
		}
	}
	return d.expectDirty(true)
}

// sendLog sends the log, and the feature.
func (d *Device) sendLog() error {
	_, err := d.s.Do(vhostuser.Message{Header: vhostuser.Header{Request: vhostuser.SetLogBase},
		Log: vhostuser.Area{Size: uint64(len(d.log.mem))}, Files: []int{d.log.fd}})
	if err != nil || d.s.features&featLogAll != 0 {
		return err
	}
	d.s.features |= featLogAll
	return d.s.U64(vhostuser.SetFeatures, d.s.features|1<<30)
}

// expectDirty has the pumps write down the pages that they see written.
func (d *Device) expectDirty(on bool) error {
	var errs []error
	for i := range d.pairs {
		errs = append(errs, d.on(i, func(p *Pair) {
			p.rx.dirty, p.tx.dirty = nil, nil
			for _, r := range d.rings(p) {
				if on {
					r.dirty, r.unlogged = d.log.must[i], len(r.order)
				}
			}
		}))
	}
	return errors.Join(errs...)
}

// TakeLog reads and clears the log, as a front end does that copies the memory meanwhile.
func (d *Device) TakeLog() error {
	if d.log == nil {
		return errors.New("vhostfront: there is no log")
	}
	d.log.take()
	return nil
}

// EndLog stops the rings, compares the log with the pages that pumps saw written, and returns
// how many these are. Then it starts the rings again, without the log.
func (d *Device) EndLog() (pages int, err error) {
	if d.log == nil {
		return 0, errors.New("vhostfront: there is no log")
	}
	if err := d.Stop(); err != nil {
		return 0, err
	}
	// What was published and not polled was written, too, but is not needed for the check.
	if err := d.expectDirty(false); err != nil {
		return 0, err
	}
	allowed := make([]byte, len(d.log.seen))
	for _, p := range d.pairs {
		for _, r := range d.rings(p) {
			mark(allowed, d.mem.guest(r.at), r.length())
		}
		for _, s := range p.rx.slots {
			mark(allowed, d.mem.guest(s.off), s.size)
		}
	}
	pages, err = d.log.check(allowed)
	err = errors.Join(err, d.log.close())
	d.log = nil
	if err != nil {
		return pages, err
	}
	d.s.features &^= featLogAll
	if err := d.s.U64(vhostuser.SetFeatures, d.s.features|1<<30); err != nil {
		return pages, err
	}
	return pages, d.Start()
}
