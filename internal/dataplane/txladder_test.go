// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/internal/lab/packettest"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xentest"
)

// udp returns a finished frame whose payload has n bytes and contains id.
func udp(n int, id uint16) []byte {
	return packettest.Frame{
		IPv4: &packettest.IPv4{ID: id}, UDP: &packettest.UDP{SrcPort: id}, Payload: packettest.Pattern(n),
	}.Bytes()
}

// cut splits n bytes into parts of the given sizes and a last one.
func cut(n int, sizes ...int) []int {
	for _, s := range sizes {
		n -= s
	}
	return append(slices.Clone(sizes), n)
}

// parts splits n bytes into k parts.
func parts(n, k int) (sizes []int) {
	for ; k > 0; k-- {
		sizes = append(sizes, n/k)
		n -= n / k
	}
	return sizes
}

// TestLadder puts a packet that is wrong, or nearly so, between two good packets and
// checks the fate of all three, of the next packet, and of the next queue.
func TestLadder(t *testing.T) {
	good := udp(100, 7)
	okay := func(f *front, p packet) []answer { return f.put(p) }

	tests := []struct {
		name string
		// put puts the packet into the ring and returns its answers; nil
		// for none.
		put     func(f *front) []answer
		frame   []byte            // the part of it that the host gets
		drops   map[string]uint64 // counted
		traffic map[string]uint64 // counted besides packets, bytes and slots
		breach  error             // without a response to it or to later requests
		says    string
	}{{
		name:  "two slots",
		put:   func(f *front) []answer { return okay(f, packet{frame: good, slots: cut(len(good), 50)}) },
		frame: good,
	}, {
		name: "19 slots",
		put: func(f *front) []answer {
			return okay(f, packet{frame: udp(8000, 1), slots: parts(8042, 19)})
		},
		frame: udp(8000, 1),
	}, {
		name: "20 slots",
		put: func(f *front) []answer {
			return errored(okay(f, packet{frame: udp(8000, 1), slots: parts(8042, 20)}))
		},
		drops: map[string]uint64{"tx_too_many_slots": 1},
	}, {
		name: "21 slots",
		put: func(f *front) []answer {
			return errored(okay(f, packet{frame: udp(8000, 1), slots: parts(8042, 21)}))
		},
		drops: map[string]uint64{"tx_too_many_slots": 1},
	}, {
		name: "22 slots",
		put: func(f *front) []answer {
			return okay(f, packet{frame: udp(8000, 1), slots: parts(8042, 22)})
		},
		breach: errTooManySlots,
	}, {
		name: "chain without end",
		put: func(f *front) []answer {
			r := netif.TxRequest{Gref: firstRef, Size: 1, Flags: netif.TxMoreData}
			for f.tx.Free() > 0 {
				f.tx.Put(r)
			}
			f.push()
			return nil
		},
		breach: errTooManySlots,
	}, {
		name: "more_data on the last slot published",
		put: func(f *front) []answer {
			r := f.requests(packet{frame: good})
			r[0].Flags |= netif.TxMoreData
			f.ring(r, len(good), 0)
			f.push()
			return nil
		},
		breach: errSlotMissing,
	}, {
		name: "more_data on the last of three slots published",
		put: func(f *front) []answer {
			r := f.requests(packet{frame: good, slots: parts(len(good), 3)})
			r[2].Flags |= netif.TxMoreData
			f.ring(r, len(good), 0)
			f.push()
			return nil
		},
		breach: errSlotMissing,
	}, {
		name: "extra announced and not published",
		put: func(f *front) []answer {
			f.ring(f.requests(packet{frame: good}), len(good), netif.TxExtraInfo)
			f.push()
			return nil
		},
		breach: errExtraMissing,
	}, {
		name: "extra that announces another one",
		put: func(f *front) []answer {
			f.ring(f.requests(packet{frame: good}), len(good), 0,
				netif.ExtraInfo{Type: netif.ExtraHash, Flags: netif.ExtraMore})
			f.push()
			return nil
		},
		breach: errExtraMissing,
	}, {
		name: "extra of no type",
		put: func(f *front) []answer {
			return okay(f, packet{frame: good, extras: []netif.ExtraInfo{{}}})
		},
		says: "extra info of none",
	}, {
		name: "extra that only goes the other way",
		put: func(f *front) []answer {
			return okay(f, packet{frame: good, extras: []netif.ExtraInfo{{Type: netif.ExtraXDP}}})
		},
		says: "extra info of xdp",
	}, {
		name: "extra of unknown type behind one that is known",
		put: func(f *front) []answer {
			return okay(f, packet{frame: good, extras: []netif.ExtraInfo{{Type: netif.ExtraHash}, {Type: 200}}})
		},
		says: "extra info of unknown(200)",
	}, {
		name: "hash extra, which is advice",
		put: func(f *front) []answer {
			return okay(f, packet{frame: good, extras: []netif.ExtraInfo{netif.NewHash(netif.HashInfo{Algorithm: 1, Value: 5})}})
		},
		frame: good,
	}, {
		name: "five extras before two more data slots",
		put: func(f *front) []answer {
			e := netif.NewHash(netif.HashInfo{})
			return okay(f, packet{frame: good, slots: parts(len(good), 3), extras: []netif.ExtraInfo{e, e, e, e, e}})
		},
		frame: good,
	}, {
		name: "req_prod more than a ring ahead",
		put: func(f *front) []answer {
			f.tx.SetReqProd(f.tx.RspCons().Add(257))
			f.events.send(txPort)
			return nil
		},
		breach: netif.ErrOverflow,
	}, {
		name: "req_prod taken back",
		put: func(f *front) []answer {
			f.tx.SetReqProd(f.tx.RspCons().Add(1<<32 - 1))
			f.events.send(txPort)
			return nil
		},
		breach: netif.ErrOverflow,
	}, {
		name: "first slot beyond its page",
		put: func(f *front) []answer {
			r := f.requests(packet{frame: good})
			r[0].Offset = uint16(netif.PageSize - len(good) + 1)
			return errored(f.ring(r, len(good), 0))
		},
		drops: map[string]uint64{"tx_cross_page": 1},
	}, {
		name: "first slot up to the end of its page",
		put: func(f *front) []answer {
			return okay(f, packet{frame: good, offset: netif.PageSize - len(good)})
		},
		frame: good,
	}, {
		name: "offset beyond the page",
		put: func(f *front) []answer {
			r := f.requests(packet{frame: good})
			r[0].Offset = 0xffff
			return errored(f.ring(r, len(good), 0))
		},
		drops: map[string]uint64{"tx_cross_page": 1},
	}, {
		name: "offset and size that add up to 64 KiB",
		put: func(f *front) []answer {
			r := f.requests(packet{frame: good})
			r[0].Offset = uint16(1<<16 - len(good))
			return errored(f.ring(r, len(good), 0))
		},
		drops: map[string]uint64{"tx_cross_page": 1},
	}, {
		name: "size of the whole packet in one slot",
		put: func(f *front) []answer {
			return errored(f.ring(f.requests(packet{frame: good}), 0xffff, 0))
		},
		drops: map[string]uint64{"tx_cross_page": 1},
	}, {
		name: "later slot beyond its page",
		put: func(f *front) []answer {
			r := f.requests(packet{frame: good, slots: parts(len(good), 3)})
			r[2].Offset = netif.PageSize - 10
			return errored(f.ring(r, len(good), 0))
		},
		drops: map[string]uint64{"tx_cross_page": 1},
	}, {
		name: "later slot a byte beyond its page",
		put: func(f *front) []answer {
			r := f.requests(packet{frame: good, slots: cut(len(good), 50)})
			r[1].Offset = uint16(netif.PageSize - (len(good) - 50) + 1)
			return errored(f.ring(r, len(good), 0))
		},
		drops: map[string]uint64{"tx_cross_page": 1},
	}, {
		name: "later slot up to the end of its page",
		put: func(f *front) []answer {
			r := f.requests(packet{frame: good, slots: cut(len(good), 50)})
			r[1].Offset = uint16(netif.PageSize - (len(good) - 50))
			copy(f.page(r[1].Gref)[r[1].Offset:], good[50:])
			return f.ring(r, len(good), 0)
		},
		frame: good,
	}, {
		name: "later slots beyond their pages, with extras",
		put: func(f *front) []answer {
			r := f.requests(packet{frame: good, slots: parts(len(good), 3)})
			r[1].Offset, r[2].Offset = 0xffff, 0xffff
			return errored(f.ring(r, len(good), 0, netif.NewHash(netif.HashInfo{}), netif.NewHash(netif.HashInfo{})))
		},
		drops: map[string]uint64{"tx_cross_page": 1},
	}, {
		name: "later slot larger than the packet",
		put: func(f *front) []answer {
			r := f.requests(packet{frame: good, slots: parts(len(good), 2)})
			r[1].Size = uint16(len(good) + 1)
			return errored(f.ring(r, len(good), 0))
		},
		drops: map[string]uint64{"tx_size_mismatch": 1},
	}, {
		name: "later slots that leave the first one no header",
		put: func(f *front) []answer {
			return errored(okay(f, packet{frame: good, slots: cut(len(good), 13)}))
		},
		drops: map[string]uint64{"tx_too_short": 1},
	}, {
		name: "first slot of just an Ethernet header",
		put: func(f *front) []answer {
			return okay(f, packet{frame: good, slots: cut(len(good), 14)})
		},
		frame: good,
	}, {
		name: "packet without a header",
		put: func(f *front) []answer {
			return errored(okay(f, packet{frame: good[:13]}))
		},
		drops: map[string]uint64{"tx_too_short": 1},
	}, {
		name: "packet without anything",
		put: func(f *front) []answer {
			return errored(okay(f, packet{frame: good[:0]}))
		},
		drops: map[string]uint64{"tx_too_short": 1},
	}, {
		name: "later slots of no size and with no page", // XSA-448
		put: func(f *front) []answer {
			r := f.requests(packet{frame: good, slots: []int{50, 0, len(good) - 50, 0}})
			r[1].Gref, r[3].Gref = 0, 0xffffffff
			r[1].Offset = 5
			return f.ring(r, len(good), 0)
		},
		frame: good,
	}, {
		name: "nothing but slots of no size behind the first", // XSA-448
		put: func(f *front) []answer {
			r := f.requests(packet{frame: udp(3000, 1), slots: []int{3042, 0, 0, 0}})
			for i := range r[1:] {
				r[i+1].Gref = 0
			}
			return f.ring(r, 3042, 0)
		},
		frame: udp(3000, 1),
	}, {
		name: "bad gref in the only slot",
		put: func(f *front) []answer {
			r := f.requests(packet{frame: good})
			r[0].Gref = 3
			return errored(f.ring(r, len(good), 0))
		},
		drops: map[string]uint64{"tx_grant": 1},
	}, {
		name: "bad gref in one slot of three, behind an extra",
		put: func(f *front) []answer {
			r := f.requests(packet{frame: good, slots: parts(len(good), 3)})
			r[1].Gref = 3
			want := f.ring(r, len(good), 0, netif.NewHash(netif.HashInfo{}))
			want[2].Status = netif.StatusError
			return want
		},
		drops: map[string]uint64{"tx_grant": 1},
	}, {
		name: "bad grefs in two slots of a large packet with one of no size",
		put: func(f *front) []answer {
			r := f.requests(packet{frame: udp(8000, 1), slots: []int{2042, 0, 2000, 2000, 2000}})
			r[1].Gref, r[0].Gref, r[4].Gref = 0, 3, 3
			want := f.ring(r, 8042, 0)
			want[0].Status, want[4].Status = netif.StatusError, netif.StatusError
			return want
		},
		drops: map[string]uint64{"tx_grant": 1},
	}, {
		name: "grant that the hypervisor refuses for another reason",
		put: func(f *front) []answer {
			r := f.requests(packet{frame: good})
			f.guest.FailRef(xentest.OpCopy, r[0].Gref, gntdev.StatusEagain)
			return errored(f.ring(r, len(good), 0))
		},
		drops: map[string]uint64{"tx_grant": 1},
	}, {
		name: "GSO extra without a size",
		put: func(f *front) []answer {
			return errored(okay(f, packet{frame: good, extras: []netif.ExtraInfo{
				netif.NewGSO(netif.GSOInfo{Type: netif.GSOTCPv4})}}))
		},
		drops: map[string]uint64{"tx_bad_gso": 1},
	}, {
		name: "GSO extra without a type",
		put: func(f *front) []answer {
			return errored(okay(f, packet{frame: good, extras: []netif.ExtraInfo{
				netif.NewGSO(netif.GSOInfo{Size: 1000})}}))
		},
		drops: map[string]uint64{"tx_bad_gso": 1},
	}, {
		name: "GSO extra of unknown type, on two slots",
		put: func(f *front) []answer {
			return errored(okay(f, packet{frame: good, slots: parts(len(good), 2), extras: []netif.ExtraInfo{
				netif.NewGSO(netif.GSOInfo{Size: 1000, Type: 3})}}))
		},
		drops: map[string]uint64{"tx_bad_gso": 1},
	}, {
		name: "GSO on what is not TCP",
		put: func(f *front) []answer {
			return errored(okay(f, packet{frame: good, slots: parts(len(good), 2), extras: []netif.ExtraInfo{
				netif.NewGSO(netif.GSOInfo{Size: 1000, Type: netif.GSOTCPv4})}}))
		},
		drops: map[string]uint64{"tx_bad_gso": 1},
	}, {
		name: "two GSO extras, of which the last one counts",
		put: func(f *front) []answer {
			return errored(okay(f, packet{frame: good, extras: []netif.ExtraInfo{
				netif.NewGSO(netif.GSOInfo{Size: 1000, Type: netif.GSOTCPv4}),
				netif.NewGSO(netif.GSOInfo{Size: 0, Type: netif.GSOTCPv4})}}))
		},
		drops: map[string]uint64{"tx_bad_gso": 1},
	}, {
		name: "checksum left open in what has none",
		put: func(f *front) []answer {
			return okay(f, packet{frame: arp(), flags: netif.TxCsumBlank})
		},
		drops: map[string]uint64{"tx_bad_csum": 1},
	}, {
		name: "checksum left open in a fragment",
		put: func(f *front) []answer {
			frag := packettest.Frame{IPv4: &packettest.IPv4{MF: true}, UDP: &packettest.UDP{}, Payload: packettest.Pattern(64)}
			return okay(f, packet{frame: frag.Bytes(), flags: netif.TxCsumBlank})
		},
		drops: map[string]uint64{"tx_bad_csum": 1},
	}, {
		name: "headers that lie about their length",
		put: func(f *front) []answer {
			b := tcp(4, 100).Bytes()
			b[14+20+12] = 0xf0
			return okay(f, packet{frame: b[:14+20+20+10], flags: netif.TxCsumBlank})
		},
		drops: map[string]uint64{"tx_bad_csum": 1},
	}, {
		name: "multicast address",
		put: func(f *front) []answer {
			r := f.requests(packet{frame: good})
			r[0].Gref = 0 // not examined
			return f.ring(r, 0, 0, netif.NewMcast(true, [6]byte{1, 2, 3, 4, 5, 6}))
		},
		traffic: map[string]uint64{"mcast_changes": 1},
	}}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inModes(t, allModes, func(t *testing.T, m mode) {
				b := newBed(t, m, setup{cfg: full, queues: 2})
				b.settle()
				f := b.front()
				before, after := udp(60, 1), udp(70, 2)
				breaks := tt.breach != nil || tt.says != ""

				want := f.put(packet{frame: before})
				own := tt.put(f)
				if !breaks {
					want = append(want, own...)
					want = append(want, f.put(packet{frame: after})...)
				}
				if own != nil || !breaks {
					f.push()
				}
				if errors.Is(tt.breach, netif.ErrOverflow) {
					want = nil // nothing of the ring can be believed
				} else if breaks {
					// The rest of the ring is never looked at.
					f.tx.SetReqProd(f.tx.ReqProd())
				}
				b.settle()

				if diff := cmp.Diff(want, f.answers()); diff != "" {
					t.Errorf("answers (-want +got):\n%s", diff)
				}
				var frames [][]byte
				if want != nil {
					frames = append(frames, before)
				}
				if tt.frame != nil {
					frames = append(frames, tt.frame)
				}
				if !breaks {
					frames = append(frames, after)
				}
				if diff := cmp.Diff(frames, b.host.frames(), asBytes); diff != "" {
					t.Errorf("frames at the host (-want +got):\n%s", diff)
				}
				if diff := cmp.Diff(mapOf(tt.drops), b.stats(Drop)); diff != "" {
					t.Errorf("drops (-want +got):\n%s", diff)
				}
				traffic := mapOf(tt.traffic)
				if len(frames) > 0 {
					traffic["tx_packets"] = uint64(len(frames))
					traffic["tx_bytes"] = bytesOf(frames)
					traffic["tx_slots"] = uint64(len(want))
				}
				if diff := cmp.Diff(traffic, b.stats(Traffic)); diff != "" {
					t.Errorf("traffic (-want +got):\n%s", diff)
				}

				err := b.breach()
				switch {
				case !breaks && err != nil:
					t.Errorf("breach: %v", err)
				case breaks && (err == nil || tt.breach != nil && !errors.Is(err, tt.breach) || !strings.Contains(err.Error(), tt.says)):
					t.Errorf("breach %v, want %v %s", err, tt.breach, tt.says)
				}

				// A queue in breach is not served, even if its guest sends more.
				if breaks {
					f.events.send(txPort)
					b.settle()
					if got := f.answers(); got != nil {
						t.Errorf("answers after a breach: %v", got)
					}
				} else {
					want := f.put(packet{frame: good})
					f.push()
					b.settle()
					if diff := cmp.Diff(want, f.answers()); diff != "" {
						t.Errorf("answers to the next packet (-want +got):\n%s", diff)
					}
					b.host.received()
				}
				// The other queue is not affected.
				f = b.fronts[1]
				want = f.put(packet{frame: good})
				f.push()
				b.settle()
				if diff := cmp.Diff(want, f.answers()); diff != "" {
					t.Errorf("answers on the other queue (-want +got):\n%s", diff)
				}
				if diff := cmp.Diff([][]byte{good}, b.host.frames(), asBytes); diff != "" {
					t.Errorf("frames of the other queue (-want +got):\n%s", diff)
				}
			})
		})
	}
}

func arp() []byte {
	return packettest.Frame{EtherType: packettest.TypeARP, Payload: packettest.Pattern(46)}.Bytes()
}

func mapOf(m map[string]uint64) map[string]uint64 {
	c := map[string]uint64{}
	for k, v := range m {
		c[k] = v
	}
	return c
}

func bytesOf(frames [][]byte) (n uint64) {
	for _, f := range frames {
		n += uint64(len(f))
	}
	return n
}

// TestAWholeCopyThatFails costs every packet of the batch and nothing else.
func TestAWholeCopyThatFails(t *testing.T) {
	inModes(t, allModes[:2], func(t *testing.T, m mode) {
		b := newBed(t, m, setup{cfg: full})
		f := b.front()
		f.beforeCopy(0, func() error { return unix.EFAULT })
		want := errored(f.put(packet{frame: udp(100, 1)}))
		large := f.put(packet{frame: udp(8000, 1), extras: []netif.ExtraInfo{netif.NewHash(netif.HashInfo{})}})
		want = append(want, errored(large)...)
		f.push()
		b.settle()
		if diff := cmp.Diff(want, f.answers()); diff != "" {
			t.Errorf("answers (-want +got):\n%s", diff)
		}
		want = f.put(packet{frame: udp(100, 2)})
		f.push()
		b.settle()
		if diff := cmp.Diff(want, f.answers()); diff != "" {
			t.Errorf("answers to the next packet (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff([][]byte{udp(100, 2)}, b.host.frames(), asBytes); diff != "" {
			t.Errorf("frames (-want +got):\n%s", diff)
		}
		if got := b.stat(DropTxGrant); got != 2 {
			t.Errorf("%d packets dropped, want 2", got)
		}
	})
}

// TestATAPThatRefuses: the packets are lost, and answered with okay.
func TestATAPThatRefuses(t *testing.T) {
	inModes(t, allModes, func(t *testing.T, m mode) {
		b := newBed(t, m, setup{cfg: full, ownTAP: true})
		f := b.front()
		must(t, netns.Down(ownName))
		var want []answer
		for i := range 6 {
			want = append(want, f.put(packet{frame: udp(100, uint16(i))})...)
			want = append(want, f.put(packet{frame: udp(5000, uint16(i))})...)
			want = append(want, f.put(packet{
				frame: partial(tcp(4, 5000)).Bytes(), flags: netif.TxCsumBlank, extras: []netif.ExtraInfo{gso(4, 1448)},
			})...)
		}
		f.push()
		b.settle()
		if diff := cmp.Diff(want, f.answers()); diff != "" {
			t.Errorf("answers (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(map[string]uint64{"tx_tap_down": 18}, b.stats(Drop)); diff != "" {
			t.Errorf("drops (-want +got):\n%s", diff)
		}
	})
}
