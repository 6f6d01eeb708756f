// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"context"
	"slices"
	"strconv"

	"github.com/netbackd/netbackd/internal/ctrlserver"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// frontend holds a frontend's published values for one connection.
type frontend struct {
	features features
	headroom uint16 // bytes to leave free before each packet to the guest
	queues   []queueKeys
	ctrl     ctrlKeys
}

// ctrlKeys names the control ring and its channel.
type ctrlKeys struct {
	there bool // the frontend has a control ring
	gref  xen.Gref
	port  evtchn.Port
}

// queueKeys names one queue's rings and channels. txPort and rxPort are the guest's
// ports. They are the same if it has one channel for both rings.
type queueKeys struct {
	txGref, rxGref xen.Gref
	txPort, rxPort evtchn.Port
}

// Bounds of the numbers that a frontend writes.
const (
	maxGref = 1<<32 - 1
	maxPort = 1<<17 - 1 // FIFO ABI
)

// readFrontend reads and checks the keys that the frontend in dir has published. The error
// is that of the first wrong key. The keys of a control ring are read only if one was
// offered: a frontend of another back end may have left them.
func readFrontend(ctx context.Context, r xenbus.Store, dir string, maxQueues int, control ctrlserver.Protocols) (*frontend, error) {
	k := xenbus.NewReader(ctx, xenbus.GuestStore(r), dir)
	f := &frontend{}
	f.features.read(k)
	if !f.features.rxCopy {
		v, ok := k.Text("request-rx-copy")
		k.Fail(&xenbus.KeyError{Key: "request-rx-copy", Value: v, Missing: !ok, Want: "1: page flipping is not supported"})
	}
	f.headroom = readHeadroom(k)
	n := k.UintOr("multi-queue-num-queues", 1, uint64(maxQueues), 1)
	for i := range n {
		if err := k.Err(); err != nil {
			return nil, frontendError(err)
		}
		prefix := ""
		if n > 1 {
			prefix = "queue-" + strconv.FormatUint(i, 10) + "/"
		}
		f.queues = append(f.queues, readQueue(k, prefix))
	}
	if v, ok := k.Text(ctrlRingKey); ok && v != "" && control != 0 {
		f.ctrl.there = true
		f.ctrl.gref = xen.Gref(k.Parse(ctrlRingKey, v, 0, maxGref))
		f.ctrl.port = evtchn.Port(k.Uint("event-channel-ctrl", 1, maxPort))
	}
	if err := k.Err(); err != nil {
		return nil, frontendError(err)
	}
	if !f.features.sg {
		// A packet to segment does not fit one slot (netif.h).
		f.features.guest.GSOTCPv4, f.features.guest.GSOTCPv6 = false, false
	}
	return f, nil
}

// sameRings reports whether both name the same rings and channels. All other keys count
// only when the frontend connects.
func (f *frontend) sameRings(other *frontend) bool {
	return f != nil && other != nil && slices.Equal(f.queues, other.queues) && f.ctrl == other.ctrl
}

// same reports whether both connect in the same way.
func (f *frontend) same(other *frontend) bool {
	return f.sameRings(other) && f.features == other.features
}

// rings returns the rings and channels of the queues.
func (f *frontend) rings() (list []ctrlserver.Rings) {
	for _, q := range f.queues {
		list = append(list, ctrlserver.Rings{TxGref: q.txGref, RxGref: q.rxGref, TxPort: q.txPort, RxPort: q.rxPort})
	}
	return list
}

// readQueue reads the keys of the queue in the subdirectory prefix.
func readQueue(k *xenbus.Reader, prefix string) (q queueKeys) {
	q.txGref = xen.Gref(k.Uint(prefix+"tx-ring-ref", 0, maxGref))
	q.rxGref = xen.Gref(k.Uint(prefix+"rx-ring-ref", 0, maxGref))
	tx, hasTx := k.Text(prefix + "event-channel-tx")
	rx, hasRx := k.Text(prefix + "event-channel-rx")
	if hasTx && hasRx {
		q.txPort = evtchn.Port(k.Parse(prefix+"event-channel-tx", tx, 1, maxPort))
		q.rxPort = evtchn.Port(k.Parse(prefix+"event-channel-rx", rx, 1, maxPort))
		return q
	}
	q.txPort = evtchn.Port(k.Uint(prefix+"event-channel", 1, maxPort))
	q.rxPort = q.txPort
	return q
}
