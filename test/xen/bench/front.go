// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os/signal"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/guest"
	"github.com/netbackd/netbackd/internal/lab/netfront"
	"github.com/netbackd/netbackd/internal/lab/xenfront"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// flushEvery is the number of frames that the guest sends or takes before it notifies the
// back end, as a network card's driver does.
const flushEvery = 64

// front is the guest's end of the frames. It uses its pages repeatedly, and neither writes
// nor reads more of them than necessary.
type front struct {
	q   *netfront.Queue
	pkt netfront.Packet
}

// serveFront connects the guest's vif, with all of its pages as static grants if static is
// set, and serves requests until it is told to end. Then it disconnects.
func serveFront(static bool) error {
	runtime.GOMAXPROCS(4) // a thread that waits in poll keeps its P
	quiet()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	return runFront(ctx, guest.Config{}, static)
}

// runFront is serveFront in any domain, until ctx ends.
func runFront(ctx context.Context, domain guest.Config, static bool) error {
	host, closeHost, err := xenfront.Open(ctx, domain.Xen, domain.Domid)
	if err != nil {
		return err
	}
	dev, err := netfront.Open(ctx, host, netfront.Config{Control: true, Features: netfront.AllFeatures()})
	if err != nil {
		return errors.Join(err, closeHost())
	}
	connect := dev.Connect
	if s := dev.State(); s != xenbus.Initialising && s != xenbus.Unknown {
		connect = dev.Reconnect
	}
	err = connect(ctx)
	if err == nil {
		f := &front{q: dev.Queues()[0]}
		if static {
			err = f.grant(ctx, dev)
		}
		if err == nil {
			err = f.serve(ctx)
		}
	}
	if errors.Is(err, context.Canceled) {
		err = dev.Disconnect(context.Background())
	}
	return errors.Join(err, dev.Close(), closeHost())
}

// grant asks the back end to keep all pages of the rings mapped.
func (f *front) grant(ctx context.Context, dev *netfront.Device) error {
	if dev.Control() == nil {
		return errors.New("the back end offers no control ring")
	}
	f.q.AllowMapped()
	n, err := dev.Control().StaticGrants(ctx, f.q)
	if err != nil {
		return err
	}
	tx, rx := f.q.Buffers()
	if n != len(tx)+len(rx) {
		return fmt.Errorf("the back end keeps %d of %d pages mapped", n, len(tx)+len(rx))
	}
	return nil
}

// serve carries out requests.
func (f *front) serve(ctx context.Context) error {
	for {
		if err := f.recv(ctx); err != nil {
			return err
		}
		op, size, count, ok := parseControl(f.pkt.Frag(0))
		f.q.Release(&f.pkt)
		if !ok {
			continue // left over from a failed request
		}
		var err error
		switch op {
		case opSend:
			err = f.send(ctx, size, count)
		case opSink:
			err = f.sink(ctx, size, count)
		case opCount:
			var k kernelCounts
			if k, err = readKernel(); err == nil {
				b := controlFrame(op, 0, 0)
				copy(b[etherLen:], k.append(nil))
				err = f.tell(b)
			}
		}
		if err != nil {
			return err
		}
	}
}

// recv waits for a frame.
func (f *front) recv(ctx context.Context) error {
	for {
		ok, err := f.q.Recv(&f.pkt)
		if ok || err != nil {
			return err
		}
		if err := f.turn(); err != nil {
			return err
		}
		if err := f.q.Wait(ctx); err != nil {
			return err
		}
	}
}

// turn takes responses, and posts and publishes the free pages.
func (f *front) turn() error {
	if _, err := f.q.Reap(); err != nil {
		return err
	}
	f.q.Post()
	return f.q.Flush()
}

// tell sends a control frame at once.
func (f *front) tell(b []byte) error {
	if err := f.q.Send(b, netfront.Meta{}); err != nil {
		return err
	}
	return f.q.Flush()
}

// send sends count frames, and sends a control frame when all of them are answered.
func (f *front) send(ctx context.Context, size, count int) error {
	q := f.q
	// Control frames have used pages, and the last one may not be answered yet.
	if err := f.idle(ctx); err != nil {
		return err
	}
	q.Prefill(dataHead(size))
	var meta netfront.Meta
	if size == gsoFrame {
		meta = netfront.Meta{CsumBlank: true, DataValidated: true, GSOType: netif.GSOTCPv4, GSOSize: gsoSize}
	}
	for sent := 0; sent < count; {
		err := q.SendPrefilled(size, meta)
		if err == nil {
			sent++
			if sent%flushEvery == 0 {
				err = f.turn()
			}
		} else if errors.Is(err, netfront.ErrFull) {
			err = f.wait(ctx)
		}
		if err != nil {
			return err
		}
	}
	if err := f.turn(); err != nil {
		return err
	}
	if err := f.idle(ctx); err != nil {
		return err
	}
	return f.tell(controlFrame(opSend, 0, 0))
}

// idle waits until all requests are answered, and takes the responses.
func (f *front) idle(ctx context.Context) error {
	for {
		if s := f.q.TxState(); s.RspProd == s.ReqProd {
			_, err := f.q.Reap()
			return err
		}
		if err := f.wait(ctx); err != nil {
			return err
		}
	}
}

// wait takes responses. If there are none it waits for some first.
func (f *front) wait(ctx context.Context) error {
	if err := f.q.Flush(); err != nil {
		return err
	}
	n, err := f.q.Reap()
	if n > 0 || err != nil {
		return err
	}
	if err := f.q.Wait(ctx); err != nil {
		return err
	}
	_, err = f.q.Reap()
	return err
}

// sink takes count frames, and acknowledges them.
func (f *front) sink(ctx context.Context, size, count int) error {
	every := acksOf(size)
	ack := controlFrame(opSink, 0, 0)
	for got := 0; got < count; {
		if err := f.recv(ctx); err != nil {
			return err
		}
		n := f.pkt.Len()
		f.q.Release(&f.pkt)
		if n != size {
			continue
		}
		got++
		switch {
		case got%every == 0:
			if _, err := f.q.Reap(); err != nil {
				return err
			}
			f.q.Post()
			if err := f.tell(ack); err != nil {
				return err
			}
		case got%flushEvery == 0:
			if err := f.turn(); err != nil {
				return err
			}
		}
	}
	return nil
}
