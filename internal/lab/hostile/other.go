// SPDX-License-Identifier: Apache-2.0

package hostile

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// kicking returns the part that sends events and nothing else.
func (f *front) kicking(args LoadArgs) part {
	return func(ctx context.Context) (s Strength, err error) {
		pace := newPacer(args.Rate)
		for {
			for i := range f.queues {
				if !pace.wait(ctx) {
					return s, nil
				}
				if err := f.events.Notify(f.queues[i].port); err != nil {
					return s, err
				}
				s.Notified++
				s.Done++
			}
		}
	}
}

// writing returns the part that writes to the frontend's directory: its unchanged state, its
// states in turn, or a setting.
func (f *front) writing(args LoadArgs) part {
	steps := []struct{ key, value string }{
		{"state", "4"}, {"request-multicast-control", "1"}, {"state", "4"}, {"request-multicast-control", "0"},
		{"feature-sg", "1"}, {"state", "4"}, {"state", "6"}, {"state", "1"}, {"state", "4"},
	}
	return func(ctx context.Context) (s Strength, err error) {
		pace := newPacer(args.Rate)
		for i := 0; pace.wait(ctx); i++ {
			step := steps[i%len(steps)]
			if err := f.WriteKey(ctx, step.key, step.value); err != nil {
				if ctx.Err() != nil {
					break
				}
				return s, err
			}
			s.Done++
		}
		return s, f.settle(context.WithoutCancel(ctx))
	}
}

// settle leaves the vif connected.
func (f *front) settle(ctx context.Context) error {
	if err := f.SetState(ctx, xenbus.Closed); err != nil {
		return err
	}
	if _, err := f.WaitBackend(ctx, xenbus.Closed); err != nil {
		return err
	}
	if err := f.SetState(ctx, xenbus.Initialising); err != nil {
		return err
	}
	return f.connect(ctx)
}

// reconnecting returns the part that ends its connection and connects again.
func (f *front) reconnecting(args LoadArgs) part {
	return func(ctx context.Context) (s Strength, err error) {
		pace := newPacer(args.Rate)
		for pace.wait(ctx) {
			if err := f.settle(context.WithoutCancel(ctx)); err != nil {
				return s, err
			}
			s.Done++
		}
		return s, nil
	}
}

// messages returns the part that keeps the control ring full.
func (f *front) messages(args LoadArgs) (part, error) {
	list := f.said[args.Load]
	if list == nil {
		messages := f.hashing
		if args.Load == Static {
			messages = f.statics
		}
		var err error
		if list, err = messages(); err != nil {
			return nil, err
		}
		f.said[args.Load] = list
	}
	return func(ctx context.Context) (s Strength, err error) {
		pace := newPacer(args.Rate)
		at := 0
		for ctx.Err() == nil {
			got, err := f.ctrl.Responses()
			if err != nil {
				return s, err
			}
			for k := range got {
				if f.ctrl.Response(f.ctrl.RspCons().Add(k)).Status != netif.CtrlSuccess {
					s.Failed++
				}
			}
			f.ctrl.Take(got)
			s.Done += uint64(got)
			s.Slots += uint64(got)
			s.Looks++
			if f.ctrl.Free() == netif.CtrlRingSize {
				s.Empty++
			}
			n := 0
			for room := pace.room(netif.CtrlRingSize); n < room && f.ctrl.Free() > 0; n++ {
				r := list[at%len(list)]
				r.ID = uint16(at)
				f.ctrl.Put(r)
				at++
			}
			pace.did(n)
			if n > 0 && f.ctrl.Push() {
				s.Notified++
				if err := f.events.Notify(f.ctrlPort); err != nil {
					return s, err
				}
			}
			f.post()
			pause(look)
		}
		return s, nil
	}, nil
}

// tableSize is the number of entries of the mapping tables that hashing sends.
const tableSize = 128

// hashing returns messages that change the distribution of packets: the whole table of
// hashing, again and again.
func (f *front) hashing() ([]netif.CtrlRequest, error) {
	page, err := f.Grant(1, true)
	if err != nil {
		return nil, err
	}
	for i := range tableSize {
		binary.NativeEndian.PutUint32(page.Bytes()[4*i:], uint32(i%len(f.queues)))
	}
	ref := uint32(page.Refs()[0])
	return []netif.CtrlRequest{
		{Type: netif.CtrlSetHashAlgorithm, Data: [3]uint32{netif.HashAlgorithmToeplitz}},
		{Type: netif.CtrlSetHashKey, Data: [3]uint32{ref, 40}},
		{Type: netif.CtrlSetHashMappingSize, Data: [3]uint32{tableSize}},
		{Type: netif.CtrlSetHashMapping, Data: [3]uint32{ref, tableSize, 0}},
		{Type: netif.CtrlSetHashFlags, Data: [3]uint32{1<<netif.HashIPv4 | 1<<netif.HashIPv4TCP}},
	}, nil
}

// listed is the number of static grants of a list.
const listed = 512

// statics returns messages that add and remove static grants of every queue, as many as one
// message can.
func (f *front) statics() (list []netif.CtrlRequest, err error) {
	pages, err := f.Grant(listed, true)
	if err != nil {
		return nil, err
	}
	for q := range f.queues {
		page, err := f.Grant(1, true)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("queue %d", q), err)
		}
		for i, ref := range pages.Refs() {
			binary.NativeEndian.PutUint32(page.Bytes()[8*i:], uint32(ref))
		}
		args := [3]uint32{uint32(q), uint32(page.Refs()[0]), listed}
		list = append(list, netif.CtrlRequest{Type: netif.CtrlAddGrefMapping, Data: args},
			netif.CtrlRequest{Type: netif.CtrlDelGrefMapping, Data: args})
	}
	return list, nil
}
