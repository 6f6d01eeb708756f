// SPDX-License-Identifier: Apache-2.0

package netfront

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/pkg/netif"
)

// putBehind is like putRx for one slot, with the data at offset at of its page.
func (b *backend) putBehind(at int, frame []byte, flags netif.RxFlags, extras ...netif.ExtraInfo) []netif.RxSlot {
	b.t.Helper()
	page := b.m.Page(b.rx.Request(b.rx.ReqCons()).Gref)
	slots := b.putRx(frame, flags, extras...)
	copy(page, canary[:at])
	copy(page[at:], frame)
	r := slots[0].Response()
	r.Offset = uint16(at)
	slots[0] = r.Slot()
	return slots
}

// TestJudgeOfHeadroom: packets without headroom may arrive until the first one with it.
func TestJudgeOfHeadroom(t *testing.T) {
	none := map[Rule]uint64{}
	frame := tcpFrame(100)
	for _, tt := range []struct {
		name string
		send func(b *backend) []netif.RxSlot
		want map[Rule]uint64
	}{
		{"with", func(b *backend) []netif.RxSlot { return b.putBehind(256, frame, 0, netif.NewXDP(256)) }, none},
		{"without, then with", func(b *backend) []netif.RxSlot {
			return append(b.putRx(frame, 0), b.putBehind(256, frame, 0, netif.NewXDP(256))...)
		}, none},
		{"with, then without", func(b *backend) []netif.RxSlot {
			return append(b.putBehind(256, frame, 0, netif.NewXDP(256)), b.putRx(frame, 0)...)
		}, one(RuleHeadroom)},
		{"another", func(b *backend) []netif.RxSlot { return b.putBehind(128, frame, 0, netif.NewXDP(128)) }, one(RuleHeadroom)},
		{"data elsewhere", func(b *backend) []netif.RxSlot { return b.putBehind(0, frame, 0, netif.NewXDP(256)) }, one(RuleHeadroom)},
		{"a blank checksum", func(b *backend) []netif.RxSlot {
			return b.putBehind(256, partialFrame(100, false), blankFlags, netif.NewXDP(256))
		}, one(RuleHeadroom)},
		{"junk in the extra", func(b *backend) []netif.RxSlot {
			e := netif.NewXDP(256)
			e.Body[5] = 1
			return b.putBehind(256, frame, 0, e)
		}, one(RuleExtra)},
		{"an extra of 0", func(b *backend) []netif.RxSlot { return b.putRx(frame, 0, netif.NewXDP(0)) }, one(RuleExtra)},
	} {
		q, b := newPair(t, strictConfig(), false)
		q.ExpectXDPHeadroom(256)
		q.Post()
		if err := q.Flush(); err != nil {
			t.Fatal(err)
		}
		b.commitRx(tt.send(b))
		for more := true; more; {
			var p Packet
			var err error
			if more, err = q.Recv(&p); err != nil {
				t.Fatal(err)
			}
			q.Release(&p)
		}
		if diff := cmp.Diff(tt.want, broken(q)); diff != "" {
			t.Errorf("%s: rules broken (-want +got):\n%s\n%v", tt.name, diff, q.Violations())
		}
	}
}
