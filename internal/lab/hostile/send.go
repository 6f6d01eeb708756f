// SPDX-License-Identifier: Apache-2.0

package hostile

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/netbackd/netbackd/internal/lab/packettest"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xen"
)

// The packets.
const (
	typeTest     = 0x88b5 // an EtherType for experiments, which no kernel answers
	leastSegment = 8      // the least segment size that a backend takes
	segments     = 2000   // of a packet; a backend takes 2048
	manySlots    = 18     // the most slots of a packet
)

// slot is a request of a packet, or the extra behind the first one.
type slot struct {
	request netif.TxRequest
	extra   *netif.ExtraInfo
}

// frame returns the frame of a load.
func frame(kind Kind, dst [6]byte) []byte {
	f := packettest.Frame{Dst: dst, EtherType: typeTest}
	switch kind {
	case Segments:
		f = packettest.Frame{
			Dst: dst, IPv4: &packettest.IPv4{ID: 1, DF: true}, Partial: true,
			TCP: &packettest.TCP{Flags: packettest.ACK, Window: 500}, Payload: packettest.Pattern(segments * leastSegment),
		}
	case Bulk, VirtBulk:
		f.Payload = packettest.Pattern(1500)
	case Fragments:
		f.Payload = packettest.Pattern(46 + manySlots - 1)
	default:
		f.Payload = packettest.Pattern(46)
	}
	return f.Bytes()
}

// slots spreads a frame over slots. refs are the grefs of its pages. Behind the 60 bytes of the
// first slot, those of Fragments have one byte each.
func slots(kind Kind, frame []byte, refs []xen.Gref) (list []slot) {
	size := netif.PageSize
	for at := 0; at < len(frame); at += size {
		if kind == Fragments {
			size = 1
			if at == 0 {
				size = len(frame) - manySlots + 1
			}
		}
		r := netif.TxRequest{
			Gref: refs[at/netif.PageSize], Offset: uint16(at % netif.PageSize),
			ID: uint16(len(list)), Size: uint16(min(size, len(frame)-at)),
		}
		if at+size < len(frame) {
			r.Flags |= netif.TxMoreData
		}
		if at == 0 {
			r.Size = uint16(len(frame)) // of the whole packet
		}
		list = append(list, slot{request: r})
	}
	if kind == Segments {
		e := netif.NewGSO(netif.GSOInfo{Size: leastSegment, Type: netif.GSOTCPv4})
		list[0].request.Flags |= netif.TxExtraInfo | netif.TxCsumBlank | netif.TxDataValidated
		list[0].extra = &e
	}
	return list
}

// packet is a packet that is sent again and again.
type packet struct {
	slots []slot
	ring  uint32 // slots that it takes in the ring
}

// packets grants the pages of a load's packets, one for each destination.
func (f *front) packets(args LoadArgs) (list []packet, err error) {
	key := fmt.Sprint(args.Load, args.Dst)
	if list = f.sent[key]; list != nil {
		return list, nil
	}
	defer func() {
		if err == nil {
			f.sent[key] = list
		}
	}()
	dst, err := destinations(args)
	if err != nil {
		return nil, err
	}
	for _, d := range dst {
		b := frame(args.Load, d)
		pages, err := f.Grant((len(b)+netif.PageSize-1)/netif.PageSize, false)
		if err != nil {
			return nil, err
		}
		copy(pages.Bytes(), b)
		p := packet{slots: slots(args.Load, b, pages.Refs())}
		p.ring = uint32(len(p.slots))
		if p.slots[0].extra != nil {
			p.ring++
		}
		list = append(list, p)
	}
	return list, nil
}

// destinations returns the Ethernet addresses that a load sends to, at least one.
func destinations(args LoadArgs) (list [][6]byte, err error) {
	for _, d := range args.Dst {
		hw, err := net.ParseMAC(d)
		if err != nil || len(hw) != 6 {
			return nil, fmt.Errorf("%q is no Ethernet address", d)
		}
		list = append(list, [6]byte(hw))
	}
	if len(list) == 0 {
		err = fmt.Errorf("%s wants a destination", args.Load)
	}
	return list, err
}

// put puts a packet into a ring that has room for it.
func (p *packet) put(tx *netif.TxFront) {
	for i := range p.slots {
		tx.Put(p.slots[i].request)
		if e := p.slots[i].extra; e != nil {
			tx.PutExtra(*e)
		}
	}
}

// sending returns the part that sends packets on all queues of a vif.
func (f *front) sending(args LoadArgs) (part, error) {
	list, err := f.packets(args)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) (s Strength, err error) {
		pace := newPacer(args.Rate)
		next := 0
		for ctx.Err() == nil {
			for i := range f.queues {
				tx := f.queues[i].tx
				got, err := tx.Responses()
				if err != nil {
					return s, err
				}
				s.Failed += f.failures(tx, got)
				tx.Take(got)
				s.Slots += uint64(got)
				s.Looks++
				if tx.Free() == netif.TxRingSize {
					s.Empty++
				}
				room := pace.room(netif.TxRingSize)
				n := 0
				for ; n < room && tx.Free() >= list[next].ring; n++ {
					list[next].put(tx)
					next = (next + 1) % len(list)
				}
				pace.did(n)
				if n > 0 && tx.Push() {
					s.Notified++
					if err := f.events.Notify(f.queues[i].port); err != nil {
						return s, err
					}
				}
			}
			f.post()
			pause(look)
		}
		s.Done = s.Slots / uint64(list[0].ring)
		return s, nil
	}, nil
}

// failures counts the last n responses that are errors.
func (f *front) failures(tx *netif.TxFront, n uint32) (failed uint64) {
	at := tx.RspCons()
	for k := range n {
		if tx.Response(at.Add(k)).Status == netif.StatusError {
			failed++
		}
	}
	return failed
}

// idling returns the part that sends nothing.
func (f *front) idling() part {
	return func(ctx context.Context) (s Strength, _ error) {
		last := time.Now()
		for n := uint32(1); ctx.Err() == nil; pause(5 * look) {
			if f.buffers {
				s.Slots += f.post()
				continue
			}
			// A vif that posts nothing for ten seconds loses its carrier, and the load ends.
			if time.Since(last) > time.Second {
				last = time.Now()
				for i := range f.queues {
					s.Slots += f.refill(i, n)
				}
			}
		}
		s.Done = s.Slots
		return s, nil
	}
}

// dripping returns the part that posts one rx slot for each queue, and the next one when that
// is answered.
func (f *front) dripping() part {
	return func(ctx context.Context) (s Strength, _ error) {
		for ; ctx.Err() == nil; pause(look / 4) {
			for i := range f.queues {
				s.Slots += f.refill(i, 1)
				s.Notified++
				_ = f.events.Notify(f.queues[i].port) // a connection that is closing has no port
			}
		}
		s.Done = s.Slots
		return s, nil
	}
}
