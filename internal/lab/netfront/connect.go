// SPDX-License-Identifier: Apache-2.0

package netfront

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/netbackd/netbackd/internal/lab/xenfront"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// ErrRefused is returned when the backend goes to Closing or Closed instead of
// connecting. The error node in the backend domain's directory has the reason.
var ErrRefused = errors.New("netfront: the backend refused")

// Connect waits for the backend, makes rings, publishes them and waits until the
// backend has connected to them. The device's own state must be Initialising,
// where the toolstack leaves it.
func (d *Device) Connect(ctx context.Context) error {
	if err := d.Offer(ctx); err != nil {
		return err
	}
	s, err := d.WaitBackend(ctx, xenbus.Connected, xenbus.Closing, xenbus.Closed)
	if err != nil {
		return err
	}
	if s != xenbus.Connected {
		return fmt.Errorf("%w: it is %v", ErrRefused, s)
	}
	// The events sent so far may have gone to a port that was not bound.
	for _, q := range d.queues {
		if err := q.Raw().Kick(); err != nil {
			return err
		}
	}
	return nil
}

// Offer does what Connect does up to our own Connected. It does not wait for the backend.
func (d *Device) Offer(ctx context.Context) error {
	if err := d.freeRings(); err != nil {
		return err
	}
	if err := d.Locate(ctx); err != nil {
		return err
	}
	if _, err := d.WaitBackend(ctx, xenbus.InitWait); err != nil {
		return err
	}
	if err := d.readOffers(ctx); err != nil {
		return err
	}
	if err := d.makeRings(); err != nil {
		return errors.Join(err, d.freeRings())
	}
	if err := d.publish(ctx); err != nil {
		return errors.Join(err, d.freeRings())
	}
	return d.SwitchState(ctx, xenbus.Connected)
}

// Disconnect closes the device as unloading the driver does: Closing, then Closed once
// the backend is in Closing or Closed. It frees the rings when the backend has unmapped
// them.
func (d *Device) Disconnect(ctx context.Context) error {
	if err := d.SwitchState(ctx, xenbus.Closing); err != nil {
		return err
	}
	if _, err := d.WaitBackend(ctx, xenbus.Closing, xenbus.Closed, xenbus.Unknown); err != nil {
		return err
	}
	return d.FinishClosing(ctx)
}

// FinishClosing answers a backend that went to Closing by itself: it writes Closed, and
// frees the rings when the backend is Closed, too.
func (d *Device) FinishClosing(ctx context.Context) error {
	if err := d.SwitchState(ctx, xenbus.Closed); err != nil {
		return err
	}
	// A backend that stays for the next connection may already be back at
	// InitWait. It has unmapped the rings then, too.
	_, err := d.WaitBackend(ctx, xenbus.Closed, xenbus.InitWait, xenbus.Unknown)
	return errors.Join(err, d.freeRings())
}

// Reconnect connects a device that is Closed or was never connected.
func (d *Device) Reconnect(ctx context.Context) error {
	if err := d.SwitchState(ctx, xenbus.Initialising); err != nil {
		return err
	}
	return d.Connect(ctx)
}

// Suspend does what a resumed or restarted guest does: it drops its rings, and goes back
// to Initialising and from there to Connected with new ones. The backend still has the old
// rings mapped when they are freed.
func (d *Device) Suspend(ctx context.Context) error {
	if err := d.freeRings(); err != nil {
		return err
	}
	return d.Reconnect(ctx)
}

// readOffers reads the backend's features.
func (d *Device) readOffers(ctx context.Context) error {
	o := Offers{MaxQueues: 1}
	for _, k := range []struct {
		name string
		to   *bool
	}{
		{"feature-rx-copy", &o.RxCopy},
		{"feature-sg", &o.SG},
		{"feature-gso-tcpv4", &o.GSOTCPv4},
		{"feature-gso-tcpv6", &o.GSOTCPv6},
		{"feature-no-csum-offload", &o.NoCsumOffload},
		{"feature-ipv6-csum-offload", &o.IPv6CsumOffload},
		{"feature-multicast-control", &o.Multicast},
		{"feature-split-event-channels", &o.SplitEvents},
		{"feature-ctrl-ring", &o.Control},
		{"feature-control-ring", &o.Stream},
		{"feature-xdp-headroom", &o.XDPHeadroom},
	} {
		v, err := d.BackendKey(ctx, k.name)
		if err != nil {
			return err
		}
		switch v {
		case "", "0":
		case "1":
			*k.to = true
		default: // Windows reads them in base 2
			return fmt.Errorf("netfront: backend says %s is %q: neither 0 nor 1", k.name, v)
		}
	}
	v, err := d.BackendKey(ctx, "multi-queue-max-queues")
	if err != nil {
		return err
	}
	if v != "" {
		n, err := strconv.ParseUint(v, 10, 16)
		if err != nil || n == 0 {
			return fmt.Errorf("netfront: backend says multi-queue-max-queues is %q", v)
		}
		o.MaxQueues = int(n)
	}
	if !o.RxCopy {
		return fmt.Errorf("%w: it does not say feature-rx-copy", ErrRefused)
	}
	d.offers = o
	return nil
}

// makeRings makes the queues and the control ring. The rx rings are full of
// buffers from the start, as netfront's are.
func (d *Device) makeRings() error {
	r := rules{
		features: d.cfg.Features,
		offers:   d.offers,
		hash:     d.cfg.Control && !d.cfg.Stream,
		strict:   d.cfg.Strict,
		mtu:      d.cfg.MTU,
		salt:     d.cfg.IDSalt,
	}
	if c, ok := d.Pages.(UseChecker); ok && d.cfg.Strict {
		r.inUse = c.InUse
	}
	split := d.cfg.SplitEvents && d.offers.SplitEvents
	for i := range min(d.cfg.Queues, d.offers.MaxQueues) {
		q, err := newQueue(d.Host, d.BackendID(), i, d.cfg, r, split)
		if err != nil {
			return err
		}
		d.queues = append(d.queues, q)
		q.Post()
		if err := q.Flush(); err != nil {
			return err
		}
	}
	if offered := d.offers.Control && !d.cfg.Stream || d.offers.Stream && d.cfg.Stream; d.cfg.Control && offered {
		c, err := newControl(d.Host, d.BackendID(), d.cfg.Stream)
		if err != nil {
			return err
		}
		d.ctrl = c
	}
	return nil
}

// publish writes all nodes that the backend reads, in one transaction.
func (d *Device) publish(ctx context.Context) error {
	err := d.Store.Transaction(ctx, func(tx *xenstore.Tx) error {
		w := xenfront.NewKeyWriter(ctx, tx, d.cfg.Dir)
		if len(d.queues) == 1 {
			writeQueue(w, "", d.queues[0])
		} else {
			for i, q := range d.queues {
				writeQueue(w, fmt.Sprintf("queue-%d/", i), q)
			}
		}
		if d.offers.MaxQueues > 1 {
			w.Write("multi-queue-num-queues", uint32(len(d.queues)))
		} else {
			w.Remove("multi-queue-num-queues")
		}
		for _, k := range d.cfg.Features.keys() {
			w.Flag(k.name, k.on)
		}
		if d.ctrl != nil {
			w.Write("ctrl-ring-ref", uint32(d.ctrl.pages.Refs()[0]))
			w.Write("event-channel-ctrl", uint32(d.ctrl.port))
		} else {
			w.Remove("ctrl-ring-ref")
			w.Remove("event-channel-ctrl")
		}
		if d.offers.XDPHeadroom {
			w.Write(xdpHeadroomKey, uint32(d.cfg.XDPHeadroom))
		} else {
			w.Remove(xdpHeadroomKey)
		}
		for _, key := range slices.Sorted(maps.Keys(d.cfg.Keys)) {
			if v := d.cfg.Keys[key]; v == "" {
				w.Remove(key)
			} else {
				w.Text(key, v)
			}
		}
		return w.Err()
	})
	if err != nil {
		return fmt.Errorf("netfront: publish: %w", err)
	}
	return nil
}

// writeQueue writes a queue's rings, and removes the nodes it does not use.
func writeQueue(w *xenfront.KeyWriter, prefix string, q *Queue) {
	refs := q.rings.Refs()
	w.Write(prefix+"tx-ring-ref", uint32(refs[0]))
	w.Write(prefix+"rx-ring-ref", uint32(refs[1]))
	if q.rxPort == q.txPort {
		w.Write(prefix+"event-channel", uint32(q.txPort))
		w.Remove(prefix + "event-channel-tx")
		w.Remove(prefix + "event-channel-rx")
		return
	}
	w.Write(prefix+"event-channel-tx", uint32(q.txPort))
	w.Write(prefix+"event-channel-rx", uint32(q.rxPort))
	w.Remove(prefix + "event-channel")
}
