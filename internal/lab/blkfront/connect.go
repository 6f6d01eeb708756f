// SPDX-License-Identifier: Apache-2.0

package blkfront

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/netbackd/netbackd/internal/lab/xenfront"
	"github.com/netbackd/netbackd/pkg/blkif"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// ErrRefused is returned when the backend goes to Closing or Closed instead of
// connecting. The error node in the backend domain's directory has the reason.
var ErrRefused = errors.New("blkfront: the backend refused")

// Connect waits for the backend, makes rings, publishes them, waits until the backend has
// connected to them, and reads what it says of the disk. The device's own state must be
// Initialising, where the toolstack leaves it.
func (d *Device) Connect(ctx context.Context) error {
	if err := d.Offer(ctx); err != nil {
		return err
	}
	return d.Finish(ctx)
}

// Offer does what Connect does up to our own Initialised. It does not wait for the backend
// to connect.
func (d *Device) Offer(ctx context.Context) error {
	d.leaveRings()
	if err := d.Locate(ctx); err != nil {
		return err
	}
	if _, err := d.WaitBackend(ctx, xenbus.InitWait); err != nil {
		return err
	}
	return d.offer(ctx)
}

// offer makes and publishes rings, and goes to Initialised.
func (d *Device) offer(ctx context.Context) error {
	if err := d.readLimits(ctx); err != nil {
		return err
	}
	if err := d.makeRings(); err != nil {
		return errors.Join(err, d.freeRings())
	}
	if err := d.publish(ctx); err != nil {
		return errors.Join(err, d.freeRings())
	}
	return d.SwitchState(ctx, xenbus.Initialised)
}

// Finish does what Connect does after Offer.
func (d *Device) Finish(ctx context.Context) error {
	s, err := d.WaitBackend(ctx, xenbus.Connected, xenbus.Closing, xenbus.Closed)
	if err != nil {
		return err
	}
	if s != xenbus.Connected {
		return fmt.Errorf("%w: it is %v", ErrRefused, s)
	}
	if err := d.Refresh(ctx); err != nil {
		return err
	}
	limit := d.MaxSegments()
	for _, q := range d.queues {
		q.connected(limit, d.Persistent())
	}
	if err := d.freeOld(); err != nil {
		return err
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

// Suspend does what a guest does that was started anew by its boot loader or by kexec: it
// leaves its rings, and goes back to Initialising and from there to Connected with new ones.
func (d *Device) Suspend(ctx context.Context) error {
	d.leaveRings()
	return d.Reconnect(ctx)
}

// Replace does what Linux's blkfront does when its domain resumes: it publishes new rings
// and goes to Initialised again, without any state between. A backend that is still
// connected to the old rings has to see that they are others.
func (d *Device) Replace(ctx context.Context) error {
	d.leaveRings()
	if err := d.offer(ctx); err != nil {
		return err
	}
	return d.Finish(ctx)
}

// Refresh reads what a connected backend says of the disk. Its size may change at any time;
// then the backend writes its state again, which Changes reports.
func (d *Device) Refresh(ctx context.Context) error {
	o := d.offers
	for _, k := range []struct {
		name     string
		required bool
		to       any
	}{
		{"sectors", true, &o.Sectors},
		{"info", true, &o.Info},
		{"sector-size", true, &o.SectorSize},
		{"physical-sector-size", false, &o.Physical},
		{"feature-flush-cache", false, &o.Flush},
		{"feature-barrier", false, &o.Barrier},
		{"feature-persistent", false, &o.Persistent},
		{"feature-discard", false, &o.Discard},
		{"discard-secure", false, &o.Secure},
		{"discard-granularity", false, &o.DiscardGranularity},
		{"discard-alignment", false, &o.DiscardAlignment},
	} {
		if err := d.readNumber(ctx, k.name, k.required, k.to); err != nil {
			return err
		}
	}
	d.offers = o
	return nil
}

// readLimits reads what a backend publishes before it connects.
func (d *Device) readLimits(ctx context.Context) error {
	o := Offers{MaxQueues: 1}
	for _, k := range []struct {
		name string
		to   *int
	}{
		{"feature-max-indirect-segments", &o.MaxIndirect},
		{"multi-queue-max-queues", &o.MaxQueues},
		{"max-ring-page-order", &o.MaxOrder},
	} {
		if err := d.readNumber(ctx, k.name, false, k.to); err != nil {
			return err
		}
	}
	if o.MaxQueues < 1 || o.MaxIndirect > blkif.MaxIndirect {
		return fmt.Errorf("blkfront: the backend allows %d queues and %d indirect segments", o.MaxQueues, o.MaxIndirect)
	}
	d.offers = o
	return nil
}

// readNumber reads a node of the backend's into an int, a uint64 or a bool. An absent one
// that is not required leaves the value.
func (d *Device) readNumber(ctx context.Context, key string, required bool, to any) error {
	v, err := d.BackendKey(ctx, key)
	if err != nil || v == "" && !required {
		return err
	}
	n, err := strconv.ParseUint(v, 10, 64)
	if err != nil {
		return fmt.Errorf("blkfront: the backend says %s is %q", key, v)
	}
	switch to := to.(type) {
	case *uint64:
		*to = n
	case *int:
		*to = int(n)
	case *bool:
		*to = n != 0
	}
	return nil
}

func maxSegments(c Config, o Offers) int {
	if n := min(c.Indirect, o.MaxIndirect); n > blkif.MaxDirect {
		return n
	}
	return blkif.MaxDirect
}

func (d *Device) makeRings() error {
	for i := range min(d.cfg.Queues, d.offers.MaxQueues) {
		q, err := newQueue(d.Host, d.BackendID(), i, d.cfg, min(d.cfg.Order, d.offers.MaxOrder), maxSegments(d.cfg, d.offers))
		if err != nil {
			return err
		}
		d.queues = append(d.queues, q)
	}
	return nil
}

// publish writes all nodes that the backend reads, in one transaction.
func (d *Device) publish(ctx context.Context) error {
	err := d.Store.Transaction(ctx, func(tx *xenstore.Tx) error {
		w := xenfront.NewKeyWriter(ctx, tx, d.cfg.Dir)
		for i, q := range d.queues {
			prefix := ""
			if len(d.queues) > 1 {
				prefix = fmt.Sprintf("queue-%d/", i)
			}
			writeQueue(w, prefix, q)
		}
		if d.offers.MaxQueues > 1 {
			w.Write("multi-queue-num-queues", uint32(len(d.queues)))
		} else {
			w.Remove("multi-queue-num-queues")
		}
		if order := d.queues[0].order; order > 0 {
			w.Write("ring-page-order", uint32(order))
		} else {
			w.Remove("ring-page-order")
		}
		if d.cfg.Protocol == NoProtocol {
			w.Remove("protocol")
		} else {
			w.Text("protocol", d.cfg.Protocol)
		}
		w.Flag("feature-persistent", d.cfg.Persistent)
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
		return fmt.Errorf("blkfront: publish: %w", err)
	}
	return nil
}

// writeQueue writes a queue's ring and event channel.
func writeQueue(w *xenfront.KeyWriter, prefix string, q *Queue) {
	refs := q.ring.Refs()
	if len(refs) == 1 {
		w.Write(prefix+"ring-ref", uint32(refs[0]))
	} else {
		w.Remove(prefix + "ring-ref")
		for i, r := range refs {
			w.Write(fmt.Sprintf("%sring-ref%d", prefix, i), uint32(r))
		}
	}
	w.Write(prefix+"event-channel", uint32(q.port))
}
