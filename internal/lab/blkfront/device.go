// SPDX-License-Identifier: Apache-2.0

package blkfront

import (
	"context"
	"errors"

	"github.com/netbackd/netbackd/internal/lab/xenfront"
)

// Device is a vbd as its frontend sees it. It belongs to one goroutine.
//
// The states it goes through are those of Linux's blkfront:
//
//	             Connect                                       Disconnect
//	Initialising ───────▶ Initialised ───────────▶ Connected ──────▶ Closing ──▶ Closed
//	     ▲  (backend 2)              (backend 4)      │     (backend 5, 6)         │
//	     │                                            │ Suspend                    │
//	     └────────────────────────────────────────────┴────────────────────────────┘
//	                                    Reconnect
type Device struct {
	*xenfront.Bus
	cfg    Config
	offers Offers
	queues []*Queue
	old    []*Queue // left and not freed: the backend may still use their pages
}

// Open finds the backend of a vbd. It writes nothing.
func Open(ctx context.Context, host xenfront.Host, cfg Config) (*Device, error) {
	d := &Device{cfg: cfg.withDefaults()}
	if _, err := d.cfg.layout(); err != nil {
		return nil, err
	}
	var err error
	d.Bus, err = xenfront.OpenBus(ctx, host, d.cfg.Dir)
	if err != nil {
		return nil, err
	}
	return d, nil
}

// Config returns the device's configuration with defaults filled in.
func (d *Device) Config() Config { return d.cfg }

// SetConfig changes the configuration for the next Connect. Dir stays.
func (d *Device) SetConfig(cfg Config) {
	cfg.Dir = d.cfg.Dir
	d.cfg = cfg.withDefaults()
}

// Offers returns what the backend had published when the device last connected, or at
// the last Refresh.
func (d *Device) Offers() Offers { return d.offers }

// Queues returns the queues of a connected device. Every disconnection frees them: a
// goroutine that uses them must stop before.
func (d *Device) Queues() []*Queue { return d.queues }

// MaxSegments returns the largest number of segments of a request: of an indirect one, if
// both ends have these.
func (d *Device) MaxSegments() int { return maxSegments(d.cfg, d.offers) }

// Persistent reports whether grants are persistent on this connection.
func (d *Device) Persistent() bool { return d.cfg.Persistent && d.offers.Persistent }

// Close frees everything at once without a message to the backend, as the end of the
// domain would.
func (d *Device) Close() error {
	d.CloseBus()
	return d.freeRings()
}

// leaveRings gives up the queues. Their pages keep their content until the backend is
// connected to others: it may still carry out requests.
func (d *Device) leaveRings() {
	d.old = append(d.old, d.queues...)
	d.queues = nil
}

// freeOld frees queues that were left.
func (d *Device) freeOld() error {
	var errs []error
	for _, q := range d.old {
		errs = append(errs, q.close())
	}
	d.old = nil
	return errors.Join(errs...)
}

func (d *Device) freeRings() error {
	errs := []error{d.freeOld()}
	for _, q := range d.queues {
		errs = append(errs, q.close())
	}
	d.queues = nil
	return errors.Join(errs...)
}
