// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/netbackd/netbackd/internal/ctrlserver"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// reader reads nodes. A client and a transaction are readers.
type reader interface {
	Read(ctx context.Context, path string) (string, error)
}

// guestNodes reads nodes that belong to a guest. A node that may not be read counts as
// missing: below a directory that a driver domain may not read, xenstored answers EACCES
// for a node that is gone (errno_from_parents in xenstored_core.c). The error of such a
// read is both ErrNotExist and ErrPermission.
type guestNodes struct{ reader }

func (g guestNodes) Read(ctx context.Context, path string) (string, error) {
	v, err := g.reader.Read(ctx, path)
	if errors.Is(err, xenstore.ErrPermission) {
		err = fmt.Errorf("%w: %w", err, xenstore.ErrNotExist)
	}
	return v, err
}

// frontend holds what a frontend has published for one connection.
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
func readFrontend(ctx context.Context, r reader, dir string, maxQueues int, control ctrlserver.Protocols) (*frontend, error) {
	k := keyReader{ctx: ctx, r: guestNodes{r}, dir: dir}
	f := &frontend{}
	f.features.read(&k)
	if !f.features.rxCopy {
		v, ok := k.get("request-rx-copy")
		k.fail(&xenbus.KeyError{Key: "request-rx-copy", Value: v, Missing: !ok, Want: "1: page flipping is not supported"})
	}
	f.headroom = k.headroom()
	n := uint64(1)
	if v, ok := k.get("multi-queue-num-queues"); ok {
		n = k.number("multi-queue-num-queues", v, 1, uint64(maxQueues))
	}
	for i := range n {
		if k.err != nil {
			return nil, frontendError(k.err)
		}
		prefix := ""
		if n > 1 {
			prefix = "queue-" + strconv.FormatUint(i, 10) + "/"
		}
		f.queues = append(f.queues, k.queue(prefix))
	}
	if v, ok := k.get(ctrlRingKey); ok && v != "" && control != 0 {
		f.ctrl.there = true
		f.ctrl.gref = xen.Gref(k.number(ctrlRingKey, v, 0, maxGref))
		f.ctrl.port = evtchn.Port(k.must("event-channel-ctrl", 1, maxPort))
	}
	if k.err != nil {
		return nil, frontendError(k.err)
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

// connection names the connection of the frontend, for the record of its control ring.
func (f *frontend) connection(stamp netif.Stamp) ctrlserver.Connection {
	c := ctrlserver.Connection{Stamp: stamp, Control: ctrlserver.ControlRing{Gref: f.ctrl.gref, Port: f.ctrl.port}}
	for _, q := range f.queues {
		c.Queues = append(c.Queues, ctrlserver.Rings{TxGref: q.txGref, RxGref: q.rxGref, TxPort: q.txPort, RxPort: q.rxPort})
	}
	return c
}

// keyReader reads keys of one directory. It keeps the first error, and reads nothing
// after that.
type keyReader struct {
	ctx context.Context
	r   reader
	dir string
	err error
}

func (k *keyReader) fail(err error) {
	if k.err == nil {
		k.err = err
	}
}

// get reads a key that may be missing, and reports whether it is there.
func (k *keyReader) get(key string) (v string, ok bool) {
	if k.err != nil {
		return "", false
	}
	v, err := k.r.Read(k.ctx, k.dir+"/"+key)
	switch {
	case err == nil:
		return tidy(v), true
	case !errors.Is(err, xenstore.ErrNotExist):
		k.fail(err)
	}
	return "", false
}

// bool reads a key that is 0 or 1. A missing key is false.
func (k *keyReader) bool(key string) bool {
	v, ok := k.get(key)
	if !ok {
		return false
	}
	b, err := parseBool(key, v)
	if err != nil {
		k.fail(err)
	}
	return b
}

// number parses a number from min to max.
func (k *keyReader) number(key, v string, min, max uint64) uint64 {
	n, err := parseUint(key, v, min, max)
	if err != nil {
		k.fail(err)
	}
	return n
}

// must reads a number from min to max that has to be there.
func (k *keyReader) must(key string, min, max uint64) uint64 {
	v, ok := k.get(key)
	if !ok {
		k.fail(&xenbus.KeyError{Key: key, Missing: true, Want: fmt.Sprintf("a number from %d to %d", min, max)})
		return 0
	}
	return k.number(key, v, min, max)
}

// queue reads the keys of the queue in the subdirectory prefix.
func (k *keyReader) queue(prefix string) (q queueKeys) {
	q.txGref = xen.Gref(k.must(prefix+"tx-ring-ref", 0, maxGref))
	q.rxGref = xen.Gref(k.must(prefix+"rx-ring-ref", 0, maxGref))
	tx, hasTx := k.get(prefix + "event-channel-tx")
	rx, hasRx := k.get(prefix + "event-channel-rx")
	if hasTx && hasRx {
		q.txPort = evtchn.Port(k.number(prefix+"event-channel-tx", tx, 1, maxPort))
		q.rxPort = evtchn.Port(k.number(prefix+"event-channel-rx", rx, 1, maxPort))
		return q
	}
	q.txPort = evtchn.Port(k.must(prefix+"event-channel", 1, maxPort))
	q.rxPort = q.txPort
	return q
}
