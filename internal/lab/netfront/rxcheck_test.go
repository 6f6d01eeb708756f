// SPDX-License-Identifier: Apache-2.0

package netfront

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/internal/lab/fuzzloop"
	"github.com/netbackd/netbackd/internal/lab/packettest"
	"github.com/netbackd/netbackd/pkg/netif"
)

// broken returns the set of rules a backend broke, for comparison.
func broken(q *Queue) map[Rule]uint64 { return q.Broken() }

// one returns the expectation that a rule is broken once.
func one(r Rule) map[Rule]uint64 { return map[Rule]uint64{r: 1} }

// TestJudgeOfTx sends one packet with a GSO extra and one without, and has the backend
// answer wrongly.
func TestJudgeOfTx(t *testing.T) {
	const null = netif.StatusNull
	// answer makes responses of the ids of the two packets.
	for _, c := range []struct {
		name   string
		answer func(b *backend, a, z uint16)
		want   map[Rule]uint64
		fatal  bool
	}{
		{
			name: "in order",
			answer: func(b *backend, a, z uint16) {
				b.commitTx([]netif.TxResponse{{ID: a}, {Status: null}, {ID: z}})
			},
			want: map[Rule]uint64{},
		},
		{
			name: "packets out of order, published one by one",
			answer: func(b *backend, a, z uint16) {
				b.commitTx([]netif.TxResponse{{ID: z}})
				b.commitTx([]netif.TxResponse{{ID: a}})
				b.commitTx([]netif.TxResponse{{ID: 999, Status: null}})
			},
			want: map[Rule]uint64{},
		},
		{
			name: "NULL before its packet",
			answer: func(b *backend, a, z uint16) {
				b.commitTx([]netif.TxResponse{{Status: null}, {ID: a}, {ID: z}})
			},
			want: map[Rule]uint64{RuleTxNull: 2},
		},
		{
			name: "extra answered with OKAY",
			answer: func(b *backend, a, z uint16) {
				b.commitTx([]netif.TxResponse{{ID: a}, {ID: a}, {ID: z}})
			},
			want:  map[Rule]uint64{RuleTxNull: 1, RuleTxID: 1},
			fatal: true,
		},
		{
			name: "status that does not exist",
			answer: func(b *backend, a, z uint16) {
				b.commitTx([]netif.TxResponse{{ID: a, Status: 7}, {Status: null}, {ID: z, Status: -3}})
			},
			want: map[Rule]uint64{RuleTxStatus: 2},
		},
		{
			name: "id that was never sent",
			answer: func(b *backend, a, z uint16) {
				b.commitTx([]netif.TxResponse{{ID: z + 1}})
			},
			want:  one(RuleTxID),
			fatal: true,
		},
		{
			name: "id answered twice",
			answer: func(b *backend, a, z uint16) {
				b.commitTx([]netif.TxResponse{{ID: z}, {ID: z}})
			},
			want:  one(RuleTxID),
			fatal: true,
		},
		{
			name: "id beyond all",
			answer: func(b *backend, a, z uint16) {
				b.commitTx([]netif.TxResponse{{ID: 0xffff}})
			},
			want:  one(RuleTxID),
			fatal: true,
		},
		{
			name: "rsp_prod beyond req_prod",
			answer: func(b *backend, a, z uint16) {
				b.commitTx([]netif.TxResponse{{ID: a}, {Status: null}, {ID: z}, {ID: z}})
			},
			want:  one(RuleIndex),
			fatal: true,
		},
		{
			name: "rsp_prod taken back",
			answer: func(b *backend, a, z uint16) {
				binary.LittleEndian.PutUint32(b.m.Page(b.q.rings.Refs()[0])[8:], 0xffffffff)
			},
			want:  one(RuleIndex),
			fatal: true,
		},
		{
			name: "grant still mapped",
			answer: func(b *backend, a, z uint16) {
				b.hold(b.q.tx.refs[z^b.q.rules.salt])
				b.commitTx([]netif.TxResponse{{ID: a}, {Status: null}, {ID: z}})
			},
			want:  one(RuleGrantInUse),
			fatal: true,
		},
		{
			name: "bytes behind the response",
			answer: func(b *backend, a, z uint16) {
				b.commitTx([]netif.TxResponse{{ID: a}, {Status: null}, {ID: z}})
				b.m.Page(b.q.rings.Refs()[0])[64+24+11]++
			},
			want: one(RuleTxTail),
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			q, b := newPair(t, strictConfig(), false)
			if err := q.Send(partialFrame(2000, false), Meta{CsumBlank: true, DataValidated: true, GSOType: netif.GSOTCPv4, GSOSize: 500}); err != nil {
				t.Fatal(err)
			}
			if err := q.Send(tcpFrame(100), Meta{}); err != nil {
				t.Fatal(err)
			}
			if err := q.Flush(); err != nil {
				t.Fatal(err)
			}
			seen := b.takeTx()
			c.answer(b, seen[0].Req.ID, seen[2].Req.ID)
			_, err := q.Reap()
			if _, err2 := q.Reap(); (err2 != nil) != c.fatal {
				t.Errorf("the next Reap: %v", err2)
			}
			var v *Violation
			if errors.As(err, &v) && !v.Rule.Fatal() {
				t.Errorf("%v is returned", v)
			}
			if diff := cmp.Diff(c.want, broken(q)); diff != "" {
				t.Errorf("rules broken (-want +got):\n%s\n%v", diff, q.Violations())
			}
			if c.fatal {
				if err := q.Flush(); err == nil {
					t.Error("Flush goes on")
				}
				if err := q.Send(tcpFrame(1), Meta{}); err == nil {
					t.Error("Send goes on")
				}
			}
		})
	}
}

// rsp edits a slot as a response.
func rsp(s *netif.RxSlot, edit func(*netif.RxResponse)) {
	r := s.Response()
	edit(&r)
	*s = r.Slot()
}

// extra edits a slot as an extra.
func extra(s *netif.RxSlot, edit func(*netif.ExtraInfo)) {
	e := s.Extra()
	edit(&e)
	*s = e.Slot()
}

const blankFlags = netif.RxCsumBlank | netif.RxDataValidated

func gso4(size uint16) netif.ExtraInfo {
	return netif.NewGSO(netif.GSOInfo{Size: size, Type: netif.GSOTCPv4})
}

// TestJudgeOfRx sends the frontend one wrong packet and a good one behind it. The queue
// has to count the violation and, unless it is fatal, to receive the good packet.
func TestJudgeOfRx(t *testing.T) {
	hash := netif.NewHash(netif.HashInfo{Type: netif.HashIPv4TCP, Algorithm: netif.HashAlgorithmToeplitz, Value: 1})
	for _, c := range []struct {
		name  string
		cfg   func(*Config)
		send  func(b *backend) []netif.RxSlot
		after func(b *backend, s []netif.RxSlot) // once published
		want  map[Rule]uint64
		gets  int // packets received, the good one included
		fatal bool
	}{
		{
			name: "nothing wrong",
			send: func(b *backend) []netif.RxSlot { return b.putRx(tcpFrame(100), netif.RxDataValidated) },
			want: map[Rule]uint64{},
			gets: 2,
		},
		{
			name: "an offset, as QEMU has",
			send: func(b *backend) []netif.RxSlot {
				f := tcpFrame(100)
				req := b.rx.Request(b.rx.ReqCons())
				b.rx.Consume(1)
				copy(b.m.Page(req.Gref)[2:], f)
				return []netif.RxSlot{netif.RxResponse{ID: req.ID, Offset: 2, Status: netif.Status(len(f))}.Slot()}
			},
			want: map[Rule]uint64{},
			gets: 2,
		},
		{
			name: "a slot that failed",
			send: func(b *backend) []netif.RxSlot {
				s := b.putRx(partialFrame(9000, false), blankFlags, gso4(1448))
				rsp(&s[2], func(r *netif.RxResponse) { r.Status = -9 })
				return s
			},
			want: map[Rule]uint64{},
			gets: 1,
		},
		{
			name: "id of another slot",
			send: func(b *backend) []netif.RxSlot {
				s := b.putRx(tcpFrame(100), 0)
				rsp(&s[0], func(r *netif.RxResponse) { r.ID++ })
				return s
			},
			want: one(RuleRxID),
			gets: 1,
		},
		{
			name: "no bytes",
			send: func(b *backend) []netif.RxSlot {
				s := b.putRx(tcpFrame(100), 0)
				rsp(&s[0], func(r *netif.RxResponse) { r.Status = 0 })
				return s
			},
			want: one(RuleRxStatus),
			gets: 1,
		},
		{
			name: "data beyond the page",
			send: func(b *backend) []netif.RxSlot {
				s := b.putRx(tcpFrame(100), 0)
				rsp(&s[0], func(r *netif.RxResponse) { r.Offset = netif.PageSize - uint16(r.Status) + 1 })
				return s
			},
			want: one(RuleRxBounds),
			gets: 1,
		},
		{
			name: "gso_prefix",
			send: func(b *backend) []netif.RxSlot { return b.putRx(tcpFrame(100), netif.RxGSOPrefix) },
			want: one(RuleRxFlags),
			gets: 2,
		},
		{
			name: "csum_blank alone",
			send: func(b *backend) []netif.RxSlot { return b.putRx(partialFrame(100, false), netif.RxCsumBlank) },
			want: one(RuleRxFlags),
			gets: 2,
		},
		{
			name: "data_validated in a later slot",
			cfg:  func(c *Config) { c.MTU = 9000 },
			send: func(b *backend) []netif.RxSlot {
				s := b.putRx(tcpFrame(8000), 0)
				rsp(&s[1], func(r *netif.RxResponse) { r.Flags |= netif.RxDataValidated })
				return s
			},
			want: one(RuleRxFlags),
			gets: 2,
		},
		{
			name: "two slots without feature-sg",
			cfg:  func(c *Config) { c.Features.SG = false; c.MTU = 9000 },
			send: func(b *backend) []netif.RxSlot { return b.putRx(tcpFrame(8000), 0) },
			want: one(RuleRxSG),
			gets: 2,
		},
		{
			name: "a packet of nineteen slots",
			cfg:  func(c *Config) { c.MTU = 0 },
			send: func(b *backend) (s []netif.RxSlot) {
				for i := range 19 {
					f := b.putRx(make([]byte, 300), 0)
					if i < 18 {
						rsp(&f[0], func(r *netif.RxResponse) { r.Flags = netif.RxMoreData })
					}
					s = append(s, f...)
				}
				return s
			},
			want: one(RuleRxSlots),
			gets: 1,
		},
		{
			name: "nineteen with a small first one",
			cfg:  func(c *Config) { c.MTU = 0 },
			send: func(b *backend) (s []netif.RxSlot) {
				for i := range 19 {
					f := b.putRx(make([]byte, 200), 0)
					if i < 18 {
						rsp(&f[0], func(r *netif.RxResponse) { r.Flags = netif.RxMoreData })
					}
					s = append(s, f...)
				}
				return s
			},
			want: map[Rule]uint64{},
			gets: 2,
		},
		{
			name: "a packet without end",
			cfg:  func(c *Config) { c.MTU = 0 },
			send: func(b *backend) (s []netif.RxSlot) {
				for range 200 {
					f := b.putRx(make([]byte, 4096), 0)
					rsp(&f[0], func(r *netif.RxResponse) { r.Flags = netif.RxMoreData })
					s = append(s, f...)
				}
				return append(s, b.putRx(make([]byte, 100), 0)...)
			},
			want: one(RuleRxSlots),
			gets: 1,
		},
		{
			name: "shorter than a header",
			send: func(b *backend) []netif.RxSlot { return b.putRx(make([]byte, 13), 0) },
			want: one(RuleRxLength),
			gets: 2,
		},
		{
			name: "longer than the MTU",
			send: func(b *backend) []netif.RxSlot { return b.putRx(make([]byte, 1500+ethHeader+5), 0) },
			want: one(RuleRxLength),
			gets: 2,
		},
		{
			name: "an extra of type XDP",
			send: func(b *backend) []netif.RxSlot {
				return b.putRx(tcpFrame(100), 0, netif.ExtraInfo{Type: netif.ExtraXDP})
			},
			want: one(RuleExtra),
			gets: 2,
		},
		{
			name: "headroom that was not asked for",
			send: func(b *backend) []netif.RxSlot {
				return b.putRx(tcpFrame(100), 0, netif.NewXDP(256))
			},
			want: map[Rule]uint64{RuleExtra: 1, RuleHeadroom: 2}, // the data has another offset, too
			gets: 2,
		},
		{
			name: "an extra of a type for guests",
			send: func(b *backend) []netif.RxSlot {
				return b.putRx(tcpFrame(100), 0, netif.NewMcast(true, [6]byte{1}))
			},
			want: one(RuleExtra),
			gets: 2,
		},
		{
			name: "extra flags that do not exist",
			send: func(b *backend) []netif.RxSlot {
				s := b.putRx(partialFrame(9000, false), blankFlags, gso4(1448))
				extra(&s[1], func(e *netif.ExtraInfo) { e.Flags = 2 })
				return s
			},
			want: one(RuleExtra),
			gets: 2,
		},
		{
			name: "extras out of order",
			cfg:  func(c *Config) { c.Control = true },
			send: func(b *backend) []netif.RxSlot {
				return b.putRx(partialFrame(9000, false), blankFlags, hash, gso4(1448))
			},
			want: one(RuleExtra),
			gets: 2,
		},
		{
			name: "a hash that was not asked for",
			send: func(b *backend) []netif.RxSlot { return b.putRx(tcpFrame(100), 0, hash) },
			want: one(RuleExtra),
			gets: 2,
		},
		{
			name: "a hash of no known type",
			cfg:  func(c *Config) { c.Control = true },
			send: func(b *backend) []netif.RxSlot {
				return b.putRx(tcpFrame(100), 0, netif.NewHash(netif.HashInfo{Type: 4, Algorithm: 1}))
			},
			want: one(RuleExtra),
			gets: 2,
		},
		{
			name: "segmentation not asked for",
			cfg:  func(c *Config) { c.Features.GSOTCPv4 = false },
			send: func(b *backend) []netif.RxSlot {
				return b.putRx(partialFrame(9000, false), blankFlags, gso4(1448))
			},
			want: one(RuleGSO),
			gets: 2,
		},
		{
			name: "segments of nothing",
			send: func(b *backend) []netif.RxSlot {
				return b.putRx(partialFrame(9000, false), blankFlags, gso4(0))
			},
			want: one(RuleGSO),
			gets: 2,
		},
		{
			name: "bytes of the extra that mean nothing",
			send: func(b *backend) []netif.RxSlot {
				s := b.putRx(partialFrame(9000, false), blankFlags, gso4(1448))
				extra(&s[1], func(e *netif.ExtraInfo) { e.Body[3] = 1 })
				return s
			},
			want: one(RuleGSO),
			gets: 2,
		},
		{
			name: "segmentation with finished checksum",
			send: func(b *backend) []netif.RxSlot {
				return b.putRx(tcpFrame(9000), netif.RxDataValidated, gso4(1448))
			},
			want: one(RuleGSO),
			gets: 2,
		},
		{
			name: "IPv6 packet as TCPv4",
			send: func(b *backend) []netif.RxSlot {
				return b.putRx(partialFrame(9000, true), blankFlags, gso4(1448))
			},
			want: one(RuleGSO),
			gets: 2,
		},
		{
			name: "blank IPv4 checksum with feature-no-csum-offload",
			cfg:  func(c *Config) { c.Features.NoCsumOffload = true },
			send: func(b *backend) []netif.RxSlot { return b.putRx(partialFrame(100, false), blankFlags) },
			want: one(RuleCsumBlank),
			gets: 2,
		},
		{
			name: "blank IPv6 checksum without feature-ipv6-csum-offload",
			cfg:  func(c *Config) { c.Features.IPv6CsumOffload = false },
			send: func(b *backend) []netif.RxSlot { return b.putRx(partialFrame(100, true), blankFlags) },
			want: one(RuleCsumBlank),
			gets: 2,
		},
		{
			name: "blank checksum behind a VLAN tag",
			send: func(b *backend) []netif.RxSlot {
				return b.putRx(packettest.Frame{
					Tags: []packettest.Tag{{TCI: 5}}, IPv4: &packettest.IPv4{}, TCP: &packettest.TCP{}, Partial: true,
				}.Bytes(), blankFlags)
			},
			want: one(RuleCsumBlank),
			gets: 2,
		},
		{
			name: "blank checksum of a fragment",
			send: func(b *backend) []netif.RxSlot {
				return b.putRx(packettest.Frame{
					IPv4: &packettest.IPv4{MF: true}, UDP: &packettest.UDP{}, Partial: true, Payload: make([]byte, 8),
				}.Bytes(), blankFlags)
			},
			want: one(RuleCsumBlank),
			gets: 2,
		},
		{
			name: "blank checksum of ICMP",
			send: func(b *backend) []netif.RxSlot {
				return b.putRx(packettest.Frame{IPv4: &packettest.IPv4{}, ICMP: &packettest.ICMP{Type: 8}}.Bytes(), blankFlags)
			},
			want: one(RuleCsumBlank),
			gets: 2,
		},
		{
			name: "pseudo-header sum that is none",
			send: func(b *backend) []netif.RxSlot {
				f := partialFrame(100, false)
				f[14+20+16] ^= 0xff
				return b.putRx(f, blankFlags)
			},
			want: one(RuleCsum),
			gets: 2,
		},
		{
			name: "wrong checksum called good",
			cfg:  func(c *Config) { c.MTU = 9000 },
			send: func(b *backend) []netif.RxSlot {
				f := tcpFrame(5001)
				f[4500] ^= 1
				return b.putRx(f, netif.RxDataValidated)
			},
			want: one(RuleCsum),
			gets: 2,
		},
		{
			name: "bytes behind the data",
			send: func(b *backend) []netif.RxSlot {
				gref := b.rx.Request(b.rx.ReqCons()).Gref
				s := b.putRx(tcpFrame(100), 0)
				b.m.Page(gref)[4095] = 0
				return s
			},
			want: one(RuleOutsideWrite),
			gets: 2,
		},
		{
			name: "bytes in the buffer of an extra",
			send: func(b *backend) []netif.RxSlot {
				gref := b.rx.Request(b.rx.ReqCons().Add(1)).Gref
				s := b.putRx(partialFrame(2000, false), blankFlags, gso4(500))
				b.m.Page(gref)[0] = 0
				return s
			},
			want: one(RuleOutsideWrite),
			gets: 2,
		},
		{
			name: "rsp_prod beyond req_prod",
			send: func(b *backend) []netif.RxSlot { return b.putRx(tcpFrame(100), 0) },
			after: func(b *backend, _ []netif.RxSlot) {
				binary.LittleEndian.PutUint32(b.m.Page(b.q.rings.Refs()[1])[8:], netif.RxRingSize+1)
			},
			want:  one(RuleIndex),
			fatal: true,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := strictConfig()
			if c.cfg != nil {
				c.cfg(&cfg)
			}
			q, b := newPair(t, cfg, false)
			q.Post()
			if err := q.Flush(); err != nil {
				t.Fatal(err)
			}
			slots := c.send(b)
			slots = append(slots, b.putRx(tcpFrame(7), netif.RxDataValidated)...)
			b.commitRx(slots)
			if c.after != nil {
				c.after(b, slots)
			}
			got := 0
			var p Packet
			var err error
			for {
				var ok bool
				if ok, err = q.Recv(&p); !ok || err != nil {
					break
				}
				got++
				q.Release(&p)
			}
			if (err != nil) != c.fatal {
				t.Errorf("Recv: %v", err)
			}
			if got != c.gets {
				t.Errorf("%d packets, want %d", got, c.gets)
			}
			if diff := cmp.Diff(c.want, broken(q)); diff != "" {
				t.Errorf("rules broken (-want +got):\n%s\n%v", diff, q.Violations())
			}
			if n := len(q.rx.free) + q.rx.count; n != len(q.rx.refs) && !c.fatal {
				t.Errorf("%d of %d pages are left", n, len(q.rx.refs))
			}
		})
	}
}

// TestPartialPackets publishes packets in parts, at every place.
func TestPartialPackets(t *testing.T) {
	for cut := 1; cut < 4; cut++ {
		q, b := newPair(t, strictConfig(), false)
		q.Post()
		if err := q.Flush(); err != nil {
			t.Fatal(err)
		}
		s := b.putRx(partialFrame(9000, false), blankFlags, gso4(1448))
		b.commitRx(s[:cut])
		var p Packet
		if ok, err := q.Recv(&p); ok || err != nil {
			t.Errorf("cut at %d: %v, %v", cut, ok, err)
		}
		if diff := cmp.Diff(one(RulePartial), broken(q)); diff != "" {
			t.Errorf("cut at %d: rules broken (-want +got):\n%s", cut, diff)
		}
	}
}

func TestViolationsAreBounded(t *testing.T) {
	q, b := newPair(t, strictConfig(), false)
	var p Packet
	for range 3 {
		q.Post()
		if err := q.Flush(); err != nil {
			t.Fatal(err)
		}
		for range 100 {
			b.commitRx(b.putRx(make([]byte, 5), 0))
		}
		for {
			ok, err := q.Recv(&p)
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				break
			}
			q.Release(&p)
		}
	}
	if n := len(q.Violations()); n != maxViolations {
		t.Errorf("%d violations are kept, want %d", n, maxViolations)
	}
	if diff := cmp.Diff(map[Rule]uint64{RuleRxLength: 300}, broken(q)); diff != "" {
		t.Errorf("rules broken (-want +got):\n%s", diff)
	}
	if n := q.Stats().Violations; n != 300 {
		t.Errorf("%d violations are counted, want 300", n)
	}
}

func TestRuleNames(t *testing.T) {
	seen := map[string]bool{}
	for r := range numRules {
		if r.String() == "" || seen[r.String()] {
			t.Errorf("rule %d is called %q", uint8(r), r)
		}
		seen[r.String()] = true
	}
	if got := numRules.String(); got != "unknown(21)" {
		t.Errorf("a rule beyond all is called %q", got)
	}
	v := &Violation{Rule: RuleTxID, Queue: 1, Ring: "tx", Index: 7, Detail: "id 9"}
	if got, want := v.Error(), "queue 1, tx slot 7: tx response to no request: id 9"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// FuzzHeaders checks the offsets of findHeaders against bounds that hold for any frame.
func FuzzHeaders(f *testing.F) {
	f.Add(tcpFrame(3))
	f.Add(partialFrame(0, true))
	f.Add(packettest.Frame{
		Tags: []packettest.Tag{{TCI: 1}, {TCI: 2}},
		IPv6: &packettest.IPv6{Ext: []packettest.Ext{packettest.Options(packettest.ProtoHopByHop, 8), packettest.Fragment(8, true, 1)}},
		UDP:  &packettest.UDP{},
	}.Bytes())
	fuzzloop.Fuzz(f, func(t *testing.T, b []byte) {
		h := findHeaders(b)
		if at := h.csumField(); at != 0 && at < h.l3+20 {
			t.Fatalf("checksum at %d, IP header at %d", at, h.l3)
		}
		if h.v4 && len(b) < h.l3+20 || h.v6 && len(b) < h.l3+40 {
			t.Fatalf("an IP header at %d of %d bytes", h.l3, len(b))
		}
		if at := h.csumField(); at != 0 && at+2 <= len(b) {
			_ = h.pseudo(b, h.l4Len(b))
		}
	})
}

func TestHeaders(t *testing.T) {
	tcp, udp := &packettest.TCP{}, &packettest.UDP{}
	for _, c := range []struct {
		name string
		f    packettest.Frame
		csum int
	}{
		{"tcp over v4", packettest.Frame{IPv4: &packettest.IPv4{}, TCP: tcp}, 14 + 20 + 16},
		{"udp over v4", packettest.Frame{IPv4: &packettest.IPv4{}, UDP: udp}, 14 + 20 + 6},
		{"tcp over v4 with options", packettest.Frame{IPv4: &packettest.IPv4{Options: make([]byte, 8)}, TCP: tcp}, 14 + 28 + 16},
		{"tcp over v6", packettest.Frame{IPv6: &packettest.IPv6{}, TCP: tcp}, 14 + 40 + 16},
		{"udp over v6 with options", packettest.Frame{IPv6: &packettest.IPv6{Ext: []packettest.Ext{packettest.Options(packettest.ProtoHopByHop, 16)}}, UDP: udp}, 14 + 40 + 16 + 6},
		{"behind two tags", packettest.Frame{Tags: []packettest.Tag{{TCI: 1}, {TCI: 2}}, IPv4: &packettest.IPv4{}, TCP: tcp}, 14 + 8 + 20 + 16},
		{"first fragment", packettest.Frame{IPv4: &packettest.IPv4{MF: true}, UDP: udp, Payload: make([]byte, 8)}, 0},
		{"v6 fragment", packettest.Frame{IPv6: &packettest.IPv6{Ext: []packettest.Ext{packettest.Fragment(0, true, 1)}}, UDP: udp, Payload: make([]byte, 8)}, 0},
		{"sctp", packettest.Frame{IPv4: &packettest.IPv4{}, SCTP: &packettest.SCTP{}}, 0},
		{"arp", packettest.Frame{EtherType: 0x0806, Payload: make([]byte, 28)}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := c.f.Bytes()
			h := findHeaders(b)
			if got := h.csumField(); got != c.csum {
				t.Fatalf("checksum at %d, want %d", got, c.csum)
			}
			if c.csum == 0 {
				return
			}
			if s := fold(h.pseudo(b, h.l4Len(b)) + sum(b[h.l4:])); s != 0xffff {
				t.Errorf("a good frame sums up to %#04x", s)
			}
			c.f.Partial = true
			b = c.f.Bytes()
			if got, want := checksum(b, c.csum), fold(h.pseudo(b, h.l4Len(b))); got != want {
				t.Errorf("pseudo-header sum %#04x, want %#04x", want, got)
			}
		})
	}
}
