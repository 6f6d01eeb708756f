// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// reader reads nodes: a client, or a transaction.
type reader interface {
	Read(path string) (string, error)
}

// Frontend is what a frontend published for one connection.
type Frontend struct {
	Features FrontFeatures
	Queues   []QueueKeys
}

// QueueKeys are one queue's rings and channels. TxPort and RxPort are the
// guest's ports, equal if it has one channel for both.
type QueueKeys struct {
	TxGref, RxGref netif.Gref
	TxPort, RxPort evtchn.Port
}

// maxPort is the largest event channel port there is (FIFO ABI, 2^17).
const maxPort = 1<<17 - 1

// readFrontend reads what the frontend at dir published. Every key is checked;
// the first that makes no sense is the error.
func readFrontend(r reader, dir string, maxQueues int) (*Frontend, error) {
	k := keyReader{r: r, dir: dir}
	f := &Frontend{}
	for i := range frontFeatures {
		ft := &frontFeatures[i]
		ft.set(&f.Features, k.bool(ft.key) != ft.inverted)
	}
	n := uint64(1)
	if v, ok := k.get("multi-queue-num-queues"); ok {
		n = k.number("multi-queue-num-queues", v, uint64(maxQueues))
		if n == 0 && k.err == nil {
			k.err = &KeyError{"multi-queue-num-queues", v, fmt.Sprintf("1 to %d", maxQueues)}
		}
	}
	if k.err != nil {
		return nil, k.err
	}
	if !f.Features.RxCopy {
		return nil, errors.New("the frontend does not ask for request-rx-copy; page flipping is not supported")
	}
	for i := range n {
		prefix := ""
		if n > 1 {
			prefix = "queue-" + strconv.FormatUint(i, 10) + "/"
		}
		f.Queues = append(f.Queues, k.queue(prefix))
	}
	if k.err != nil {
		return nil, k.err
	}
	if !f.Features.SG {
		// A packet to segment does not fit one slot (netif.h).
		f.Features.GSOTCPv4, f.Features.GSOTCPv6 = false, false
	}
	return f, nil
}

// keyReader reads keys of one directory and keeps the first error.
type keyReader struct {
	r   reader
	dir string
	err error
}

// get reads a key that may be missing.
func (k *keyReader) get(key string) (v string, ok bool) {
	if k.err != nil {
		return "", false
	}
	v, err := k.r.Read(k.dir + "/" + key)
	if errors.Is(err, xenstore.ErrNotExist) {
		return "", false
	}
	if err != nil {
		k.err = err
		return "", false
	}
	return v, true
}

func (k *keyReader) bool(key string) bool {
	v, ok := k.get(key)
	if !ok {
		return false
	}
	b, err := parseBool(key, v)
	if err != nil && k.err == nil {
		k.err = err
	}
	return b
}

func (k *keyReader) number(key, v string, limit uint64) uint64 {
	n, err := parseUint(key, v, limit)
	if err != nil && k.err == nil {
		k.err = err
	}
	return n
}

// must reads a number that has to be there.
func (k *keyReader) must(key string, limit uint64) uint64 {
	v, ok := k.get(key)
	if !ok {
		if k.err == nil {
			k.err = fmt.Errorf("the frontend did not write %q", key)
		}
		return 0
	}
	return k.number(key, v, limit)
}

func (k *keyReader) queue(prefix string) (q QueueKeys) {
	q.TxGref = netif.Gref(k.must(prefix+"tx-ring-ref", 1<<32-1))
	q.RxGref = netif.Gref(k.must(prefix+"rx-ring-ref", 1<<32-1))
	if v, ok := k.get(prefix + "event-channel-tx"); ok {
		q.TxPort = evtchn.Port(k.number(prefix+"event-channel-tx", v, maxPort))
		q.RxPort = evtchn.Port(k.must(prefix+"event-channel-rx", maxPort))
	} else {
		q.TxPort = evtchn.Port(k.must(prefix+"event-channel", maxPort))
		q.RxPort = q.TxPort
	}
	if k.err == nil && (q.TxPort == 0 || q.RxPort == 0) {
		k.err = &KeyError{prefix + "event-channel", "0", "a port"}
	}
	return q
}

// same reports whether other names the same rings and channels.
func (f *Frontend) same(other *Frontend) bool {
	if f == nil || other == nil || len(f.Queues) != len(other.Queues) {
		return false
	}
	for i := range f.Queues {
		if f.Queues[i] != other.Queues[i] {
			return false
		}
	}
	return f.Features == other.Features
}
