// SPDX-License-Identifier: Apache-2.0

package ringscript

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/netbackd/netbackd/internal/lab/netfront"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntalloc"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// queue is a queue's rings and channels.
type queue struct {
	rings  *gntalloc.Pages // tx, then rx
	tx     *netif.TxFront
	rx     *netif.RxFront
	events netfront.Events
	txPort evtchn.Port
	rxPort evtchn.Port // txPort if there is one for both

	got     map[uint16]netif.RxResponse // buffers that were filled
	buffers map[uint16][]byte           // by the id of the request
}

// close frees everything. The backend may still have the rings mapped.
func (q *queue) close() error {
	var errs []error
	if q.events != nil {
		errs = append(errs, q.events.Close())
	}
	if q.rings != nil {
		errs = append(errs, q.rings.Free())
	}
	return errors.Join(errs...)
}

// newRings makes n queues for the next offer. Earlier ones stay until the device is
// closed.
func (p *player) newRings(n int, single bool) error {
	for _, q := range p.queues {
		p.past = append(p.past, q)
	}
	if p.ctrl != nil {
		p.past = append(p.past, p.ctrl)
	}
	p.queues, p.at, p.ctrl = nil, 0, nil
	for range n {
		q := &queue{got: map[uint16]netif.RxResponse{}, buffers: map[uint16][]byte{}}
		p.queues = append(p.queues, q)
		var err error
		if q.rings, err = p.host.Pages.Alloc(p.peer, 2, true); err != nil {
			return err
		}
		if q.tx, err = netif.InitTx(q.rings.Bytes()[:netif.PageSize]); err != nil {
			return err
		}
		if q.rx, err = netif.InitRx(q.rings.Bytes()[netif.PageSize:]); err != nil {
			return err
		}
		if q.events, err = p.host.Events(); err != nil {
			return err
		}
		if q.txPort, err = q.events.BindUnbound(p.peer); err != nil {
			return err
		}
		q.rxPort = q.txPort
		if !single {
			if q.rxPort, err = q.events.BindUnbound(p.peer); err != nil {
				return err
			}
		}
	}
	return nil
}

// freeRings ends the grants and channels of the rings, even if the backend uses them.
func (p *player) freeRings() error {
	var errs []error
	for _, q := range p.queues {
		errs = append(errs, q.close())
	}
	p.queues, p.at = nil, 0
	errs = append(errs, p.ctrl.close())
	p.ctrl = nil
	return errors.Join(errs...)
}

// forget frees the rings of earlier offers.
func (p *player) forget() error {
	var errs []error
	for _, q := range p.past {
		errs = append(errs, q.close())
	}
	p.past = nil
	return errors.Join(errs...)
}

func (p *player) setQueue(n int) error {
	if n >= len(p.queues) {
		return fmt.Errorf("there are %d queues", len(p.queues))
	}
	p.at = n
	return nil
}

var errNoRings = errors.New("there are no rings")

// queue returns the queue that directives act on.
func (p *player) queue() (*queue, error) {
	if p.at >= len(p.queues) {
		return nil, errNoRings
	}
	return p.queues[p.at], nil
}

// special has the values of keys that a script cannot know. They are made when the key is
// offered.
var special = map[string]func(*player) (uint32, error){
	"@tx-ring":  func(p *player) (uint32, error) { return uint32(p.queues[0].rings.Refs()[0]), nil },
	"@rx-ring":  func(p *player) (uint32, error) { return uint32(p.queues[0].rings.Refs()[1]), nil },
	"@readonly": func(p *player) (uint32, error) { return uint32(p.readonly.Refs()[0]), nil },
	"@foreign":  func(p *player) (uint32, error) { return uint32(p.foreign.Refs()[0]), nil },
	"@freed": func(p *player) (uint32, error) {
		ref, err := p.freedRef()
		return uint32(ref), err
	},
	"@tx-port": func(p *player) (uint32, error) { return uint32(p.queues[0].txPort), nil },
	"@control-ring": func(p *player) (uint32, error) {
		if p.ctrl == nil {
			return 0, errNoControl
		}
		return uint32(p.ctrl.page.Refs()[0]), nil
	},
	"@closed-port": func(p *player) (uint32, error) {
		port, err := p.outside.BindUnbound(p.peer)
		return uint32(port), errors.Join(err, p.outside.Unbind(port))
	},
	"@foreign-port": func(p *player) (uint32, error) {
		port, err := p.outside.BindUnbound(stranger)
		return uint32(port), err
	},
}

// freedRef returns a grant reference that was valid and has been freed. It may be granted
// again soon.
func (p *player) freedRef() (xen.Gref, error) {
	g, err := p.host.Pages.Alloc(p.peer, 1, true)
	if err != nil {
		return 0, err
	}
	ref := g.Refs()[0]
	return ref, g.Free()
}

// ringKeys returns the nodes that describe the rings, and those that every frontend
// writes.
func (p *player) ringKeys() (keys []setKey) {
	keys = []setKey{{"request-rx-copy", "1"}, {"feature-rx-notify", "1"}, {"feature-sg", "1"}}
	if len(p.queues) > 1 {
		keys = append(keys, setKey{"multi-queue-num-queues", strconv.Itoa(len(p.queues))})
	}
	for i, q := range p.queues {
		prefix := ""
		if len(p.queues) > 1 {
			prefix = fmt.Sprintf("queue-%d/", i)
		}
		add := func(key string, n uint32) {
			keys = append(keys, setKey{prefix + key, strconv.FormatUint(uint64(n), 10)})
		}
		add("tx-ring-ref", uint32(q.rings.Refs()[0]))
		add("rx-ring-ref", uint32(q.rings.Refs()[1]))
		if q.rxPort == q.txPort {
			add("event-channel", uint32(q.txPort))
			continue
		}
		add("event-channel-tx", uint32(q.txPort))
		add("event-channel-rx", uint32(q.rxPort))
	}
	if p.ctrl != nil {
		keys = append(keys,
			setKey{"ctrl-ring-ref", strconv.FormatUint(uint64(p.ctrl.page.Refs()[0]), 10)},
			setKey{"event-channel-ctrl", strconv.FormatUint(uint64(p.ctrl.port), 10)})
	}
	return keys
}

// offer publishes the rings, with the changes of the key directives, and goes to
// Connected, in one transaction. It removes the nodes of the last offer.
func (p *player) offer() error {
	if len(p.queues) == 0 {
		return errNoRings
	}
	keys := p.ringKeys()
	p.names = map[string]string{}
	for _, k := range keys {
		if strings.Contains(k.key, "ref") || strings.Contains(k.key, "event-channel") {
			p.names[k.value] = "@" + k.key
		}
	}
	for _, c := range p.keys {
		keys = slices.DeleteFunc(keys, func(k setKey) bool { return k.key == c.key })
		if make := special[c.value]; make != nil {
			n, err := make(p)
			if err != nil {
				return err
			}
			value := strconv.FormatUint(uint64(n), 10)
			p.names[value] = c.value
			c.value = value
		}
		if c.value != "-" {
			keys = append(keys, c)
		}
	}
	p.keys = nil
	err := p.host.Store.Transaction(p.ctx, func(tx *xenstore.Tx) error {
		for _, k := range p.wrote {
			if err := tx.Remove(p.ctx, p.dir+"/"+k); err != nil && !errors.Is(err, xenstore.ErrNotExist) {
				return err
			}
		}
		for _, k := range keys {
			if err := tx.Write(p.ctx, p.dir+"/"+k.key, k.value); err != nil {
				return err
			}
		}
		return tx.Write(p.ctx, p.dir+"/state", xenbus.Connected.Value())
	})
	p.wrote = nil
	for _, k := range keys {
		p.wrote = append(p.wrote, k.key)
	}
	return err
}

// connect offers the rings and waits until the backend has connected to them.
func (p *player) connect() error {
	return errors.Join(p.offer(), p.awaitBackend(xenbus.Connected))
}

// close disconnects as a driver that is unloaded does, and frees the rings.
func (p *player) close() error {
	if err := p.refused(); err != nil {
		return err
	}
	if err := p.writeState(xenbus.Closing.Value()); err != nil {
		return err
	}
	if err := p.awaitBackend(xenbus.Closing, xenbus.Closed); err != nil {
		return err
	}
	if err := p.writeState(xenbus.Closed.Value()); err != nil {
		return err
	}
	return errors.Join(p.awaitBackend(xenbus.Closed), p.freeRings(), p.forget())
}

// reopen goes back to Initialising after close and waits for the backend.
func (p *player) reopen() error {
	return errors.Join(p.writeState(xenbus.Initialising.Value()), p.awaitBackend(xenbus.InitWait))
}

// rewind brings the device from any state to the one that the toolstack leaves it in.
func (p *player) rewind() error {
	p.keys, p.inForce = nil, ""
	own, err := p.host.Store.Read(p.ctx, p.dir+"/state")
	if err != nil && !errors.Is(err, xenstore.ErrNotExist) {
		return err
	}
	if err := p.offerNothing(); err != nil {
		return err
	}
	if own != "1" {
		if err := p.close(); err != nil {
			return err
		}
	}
	return errors.Join(p.reopen(), p.freeRings(), p.forget())
}

// offerNothing removes the nodes of the last offer.
func (p *player) offerNothing() error {
	for _, k := range p.wrote {
		if err := p.remove(k); err != nil && !errors.Is(err, xenstore.ErrNotExist) {
			return err
		}
	}
	p.wrote = nil
	return nil
}

func (p *player) write(key, value string) error {
	return p.host.Store.Write(p.ctx, p.dir+"/"+key, value)
}

func (p *player) remove(key string) error { return p.host.Store.Remove(p.ctx, p.dir+"/"+key) }

func (p *player) writeState(value string) error { return p.write("state", value) }

// awaitBackend waits until the backend is in one of the states.
func (p *player) awaitBackend(states ...xenbus.State) error {
	ctx, cancel := context.WithTimeout(p.ctx, p.patience)
	defer cancel()
	for {
		got, err := p.host.Store.Read(ctx, p.backend+"/state")
		if err != nil {
			return err
		}
		for _, s := range states {
			if got == s.Value() {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the backend is in state %s, waited for %v: %w", got, states, ctx.Err())
		case _, open := <-p.watch.C():
			if !open {
				return xenstore.ErrClosed
			}
		}
	}
}
