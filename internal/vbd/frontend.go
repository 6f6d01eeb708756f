// SPDX-License-Identifier: Apache-2.0

package vbd

import (
	"context"
	"fmt"
	"slices"
	"strconv"

	"github.com/netbackd/netbackd/pkg/blkif"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// frontend holds a frontend's published values for one connection.
type frontend struct {
	protocol   blkif.Protocol
	persistent bool
	order      int // binary logarithm of the pages of each ring
	queues     []queueKeys
}

// queueKeys names one queue's ring and channel.
type queueKeys struct {
	refs []xen.Gref
	port evtchn.Port
}

// Bounds of the numbers that a frontend writes.
const (
	maxGref = 1<<32 - 1
	maxPort = 1<<17 - 1 // FIFO ABI
)

// readFrontend reads and checks the keys that the frontend in dir has published, within what
// it was offered. The error is that of the first wrong key.
func readFrontend(ctx context.Context, r xenbus.Store, dir string, o offer) (*frontend, error) {
	k := xenbus.NewReader(ctx, xenbus.GuestStore(r), dir)
	f := &frontend{}
	value, ok := k.Text("protocol")
	var err error
	if f.protocol, err = blkif.ParseProtocol(value, ok && value != ""); err != nil {
		k.Fail(&xenbus.KeyError{Key: "protocol", Value: value, Want: "x86_64-abi, x86_32-abi or arm-abi"})
	}
	f.persistent = k.Bool(persistentKey)
	f.order = numberless
	if v, ok := k.Text(pageOrderKey); ok {
		f.order = int(k.Parse(pageOrderKey, v, 0, uint64(o.maxOrder)))
	}
	n := k.UintOr("multi-queue-num-queues", 1, uint64(o.maxQueues), 1)
	for i := range n {
		prefix := ""
		if n > 1 {
			prefix = "queue-" + strconv.FormatUint(i, 10) + "/"
		}
		if k.Err() == nil {
			f.queues = append(f.queues, readQueue(k, prefix, f.order))
		}
	}
	if err := k.Err(); err != nil {
		return nil, frontendError(err)
	}
	f.order = max(f.order, 0)
	return f, nil
}

// pageOrderKey is the frontend's key for the binary logarithm of the pages of a ring.
const pageOrderKey = "ring-page-order"

// numberless is the order of a frontend without pageOrderKey: its rings have one page, whose
// key is ring-ref. There may be keys with numbers, of the guest's system before.
const numberless = -1

// readQueue reads the keys of the queue in the subdirectory prefix. With pageOrderKey the
// pages have the keys ring-ref0 and so on. For one page ring-ref is known too.
func readQueue(k *xenbus.Reader, prefix string, order int) (q queueKeys) {
	for i := range 1 << max(order, 0) {
		key := fmt.Sprintf("%sring-ref%d", prefix, i)
		if order == numberless || order == 0 && !exists(k, key) {
			key = prefix + "ring-ref"
		}
		q.refs = append(q.refs, xen.Gref(k.Uint(key, 0, maxGref)))
	}
	q.port = evtchn.Port(k.Uint(prefix+"event-channel", 1, maxPort))
	return q
}

func exists(k *xenbus.Reader, key string) bool {
	_, ok := k.Text(key)
	return ok
}

// frontendError marks an error as one of the frontend's keys.
func frontendError(err error) error { return fmt.Errorf("frontend %w", err) }

// same reports whether both connect in the same way.
func (f *frontend) same(other *frontend) bool {
	return f != nil && other != nil && f.protocol == other.protocol && f.persistent == other.persistent &&
		slices.EqualFunc(f.queues, other.queues, func(a, b queueKeys) bool {
			return a.port == b.port && slices.Equal(a.refs, b.refs)
		})
}
