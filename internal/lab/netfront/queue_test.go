// SPDX-License-Identifier: Apache-2.0

package netfront

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/netbackd/netbackd/internal/lab/fuzzloop"
	"github.com/netbackd/netbackd/internal/lab/packettest"
	"github.com/netbackd/netbackd/pkg/netif"
)

// ignoreBlank leaves out the fields that only pad a struct.
var ignoreBlank = cmp.FilterPath(func(p cmp.Path) bool {
	f, ok := p.Last().(cmp.StructField)
	return ok && f.Name() == "_"
}, cmp.Ignore())

func strictConfig() Config {
	return Config{Features: AllFeatures(), Strict: true, MTU: 1500, IDSalt: 0xa500}
}

func tcpFrame(payload int) []byte {
	return packettest.Frame{
		IPv4: &packettest.IPv4{}, TCP: &packettest.TCP{Flags: packettest.ACK},
		Payload: packettest.Pattern(payload),
	}.Bytes()
}

func partialFrame(payload int, v6 bool) []byte {
	f := packettest.Frame{TCP: &packettest.TCP{Flags: packettest.ACK}, Payload: packettest.Pattern(payload), Partial: true}
	if v6 {
		f.IPv6 = &packettest.IPv6{}
	} else {
		f.IPv4 = &packettest.IPv4{}
	}
	return f.Bytes()
}

func noViolations(t testing.TB, q *Queue) {
	t.Helper()
	for _, v := range q.Violations() {
		t.Errorf("violation: %v", v)
	}
}

func TestSendLaysOutSlots(t *testing.T) {
	const blank = netif.TxCsumBlank | netif.TxDataValidated
	gso := Meta{CsumBlank: true, DataValidated: true, GSOType: netif.GSOTCPv4, GSOSize: 1448}
	hash := netif.HashInfo{Type: netif.HashIPv4TCP, Algorithm: netif.HashAlgorithmToeplitz, Value: 0x01020304}
	both := gso
	both.Hash, both.Hashed = hash, true
	gsoExtra := netif.NewGSO(netif.GSOInfo{Size: 1448, Type: netif.GSOTCPv4})
	gsoMore := gsoExtra
	gsoMore.Flags = netif.ExtraMore

	type slot struct {
		Flags netif.TxFlags
		Size  uint16
		Extra netif.ExtraInfo
	}
	for _, c := range []struct {
		name string
		size int
		meta Meta
		want []slot
	}{
		{"one byte", 1, Meta{}, []slot{{Size: 1}}},
		{"a page", 4096, Meta{DataValidated: true}, []slot{{Flags: netif.TxDataValidated, Size: 4096}}},
		{"a page and one", 4097, Meta{}, []slot{{Flags: netif.TxMoreData, Size: 4097}, {Size: 1}}},
		{"blank", 1514, Meta{CsumBlank: true, DataValidated: true}, []slot{{Flags: blank, Size: 1514}}},
		{"gso", 9000, gso, []slot{
			{Flags: blank | netif.TxMoreData | netif.TxExtraInfo, Size: 9000},
			{Extra: gsoExtra},
			{Flags: netif.TxMoreData, Size: 4096},
			{Size: 808},
		}},
		{"gso and hash", 100, both, []slot{
			{Flags: blank | netif.TxExtraInfo, Size: 100},
			{Extra: gsoMore},
			{Extra: netif.NewHash(hash)},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			q, b := newPair(t, strictConfig(), false)
			frame := packettest.Pattern(c.size)
			if err := q.Send(frame, c.meta); err != nil {
				t.Fatal(err)
			}
			if seen := b.takeTx(); len(seen) != 0 {
				t.Fatalf("%d slots are visible before Flush", len(seen))
			}
			if err := q.Flush(); err != nil {
				t.Fatal(err)
			}
			seen := b.takeTx()
			var got []slot
			for _, s := range seen {
				got = append(got, slot{Flags: s.Req.Flags, Size: s.Req.Size, Extra: s.Extra})
			}
			if diff := cmp.Diff(c.want, got, ignoreBlank); diff != "" {
				t.Errorf("slots (-want +got):\n%s", diff)
			}
			if frames := b.frames(seen); len(frames) != 1 || !bytes.Equal(frames[0], frame) {
				t.Error("the slots do not hold the frame")
			}
			b.answerTx(seen, netif.StatusOkay)
			if n, err := q.Reap(); n != len(c.want) || err != nil {
				t.Errorf("reaped %d, %v", n, err)
			}
			noViolations(t, q)
		})
	}
}

func TestLargestPacket(t *testing.T) {
	q, b := newPair(t, strictConfig(), false)
	frame := packettest.Pattern(netif.MaxTxSize)
	if err := q.Send(frame, Meta{}); err != nil {
		t.Fatal(err)
	}
	if err := q.Send(append(frame, 0), Meta{}); err == nil {
		t.Error("a packet of 64 KiB was taken")
	}
	if err := q.Send(nil, Meta{}); err == nil {
		t.Error("a packet of nothing was taken")
	}
	if err := q.Flush(); err != nil {
		t.Fatal(err)
	}
	if f := b.frames(b.takeTx()); len(f) != 1 || !bytes.Equal(f[0], frame) {
		t.Error("the slots do not hold the frame")
	}
}

// TestTxKeepsItsPages sends packets of any shape to a backend that answers whole packets
// in any order and with any status. No page may be lost or used twice, and no violation
// may be counted.
func TestTxKeepsItsPages(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		q, b := newPair(t, strictConfig(), rapid.Bool().Draw(rt, "split"))
		type packet []txSeen
		var pending []packet
		rt.Repeat(map[string]func(*rapid.T){
			"send": func(rt *rapid.T) {
				m := Meta{Hashed: rapid.Bool().Draw(rt, "hash")}
				if rapid.Bool().Draw(rt, "gso") {
					m.GSOType, m.GSOSize = netif.GSOTCPv4, 1448
				}
				frame := make([]byte, rapid.IntRange(1, netif.MaxTxSize).Draw(rt, "size"))
				fits := q.tx.room((len(frame)+4095)/4096, m.extras())
				if err := q.Send(frame, m); fits != (err == nil) || err != nil && !errors.Is(err, ErrFull) {
					rt.Fatalf("send: %v, room %v", err, fits)
				}
			},
			"mcast": func(rt *rapid.T) {
				if err := q.SendMcast(rapid.Bool().Draw(rt, "add"), [6]byte{1}); err != nil && !errors.Is(err, ErrFull) {
					rt.Fatal(err)
				}
			},
			"flush": func(rt *rapid.T) {
				if err := q.Flush(); err != nil {
					rt.Fatal(err)
				}
			},
			"back takes": func(rt *rapid.T) {
				seen := b.takeTx()
				for len(seen) > 0 {
					k := 1
					for k < len(seen) && seen[k].Is {
						k++
					}
					// A data slot is answered with the extras behind it.
					pending = append(pending, packet(seen[:k]))
					seen = seen[k:]
				}
			},
			"back answers": func(rt *rapid.T) {
				if len(pending) == 0 {
					return
				}
				i := rapid.IntRange(0, len(pending)-1).Draw(rt, "which")
				s := rapid.SampledFrom([]netif.Status{netif.StatusOkay, netif.StatusError, netif.StatusDropped}).Draw(rt, "status")
				b.answerTx(pending[i], s)
				pending = append(pending[:i:i], pending[i+1:]...)
			},
			"reap": func(rt *rapid.T) {
				if _, err := q.Reap(); err != nil {
					rt.Fatal(err)
				}
			},
			"": func(rt *rapid.T) {
				used := 0
				for _, s := range q.tx.slots {
					if s.pending {
						used++
					}
				}
				if used+len(q.tx.free) != len(q.tx.refs) {
					rt.Fatalf("%d pages are used and %d free of %d", used, len(q.tx.free), len(q.tx.refs))
				}
			},
		})
		if v := q.Violations(); len(v) > 0 {
			rt.Fatalf("%v", v)
		}
	})
}

func TestMulticastAnswers(t *testing.T) {
	q, b := newPair(t, strictConfig(), false)
	addr := [6]byte{0x01, 0x00, 0x5e, 1, 2, 3}
	for _, add := range []bool{true, false} {
		if err := q.SendMcast(add, addr); err != nil {
			t.Fatal(err)
		}
	}
	if err := q.Flush(); err != nil {
		t.Fatal(err)
	}
	seen := b.takeTx()
	want := []netif.ExtraInfo{netif.NewMcast(true, addr), netif.NewMcast(false, addr)}
	if diff := cmp.Diff(want, []netif.ExtraInfo{seen[1].Extra, seen[3].Extra}, ignoreBlank); diff != "" {
		t.Errorf("extras (-want +got):\n%s", diff)
	}
	b.answerTx(seen[:2], netif.StatusOkay)
	b.answerTx(seen[2:], netif.StatusError)
	if _, err := q.Reap(); err != nil {
		t.Fatal(err)
	}
	if s := q.Stats(); s.McastOkay != 1 || s.McastError != 1 {
		t.Errorf("okay %d, error %d, want 1 and 1", s.McastOkay, s.McastError)
	}
	noViolations(t, q)
}

// TestRecvGivesBackWhatWasSent has a correct backend send packets of any size, with and
// without offloads and extras.
func TestRecvGivesBackWhatWasSent(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		cfg := strictConfig()
		cfg.Control = true
		cfg.RxPages = rapid.SampledFrom([]int{0, 20, 64}).Draw(rt, "pages")
		q, b := newPair(t, cfg, rapid.Bool().Draw(rt, "split"))
		var p Packet
		for range rapid.IntRange(1, 6).Draw(rt, "rounds") {
			q.Post()
			if err := q.Flush(); err != nil {
				rt.Fatal(err)
			}
			var want [][]byte
			var metas []Meta
			var slots []netif.RxSlot
			for room, _ := b.rx.Available(); room > maxSlots; room, _ = b.rx.Available() {
				v6 := rapid.Bool().Draw(rt, "v6")
				var frame []byte
				var m Meta
				var flags netif.RxFlags
				var extras []netif.ExtraInfo
				switch rapid.SampledFrom([]string{"plain", "validated", "blank", "gso"}).Draw(rt, "kind") {
				case "plain":
					frame = make([]byte, rapid.IntRange(14, 1514).Draw(rt, "size"))
				case "validated":
					frame = tcpFrame(rapid.IntRange(0, 1400).Draw(rt, "payload"))
					m.DataValidated, flags = true, netif.RxDataValidated
				case "blank":
					frame = partialFrame(rapid.IntRange(0, 1400).Draw(rt, "payload"), v6)
					m.CsumBlank, m.DataValidated, flags = true, true, netif.RxCsumBlank|netif.RxDataValidated
				case "gso":
					frame = partialFrame(rapid.IntRange(1449, 65000).Draw(rt, "payload"), v6)
					m.CsumBlank, m.DataValidated, flags = true, true, netif.RxCsumBlank|netif.RxDataValidated
					m.GSOSize, m.GSOType = 1448, netif.GSOTCPv4
					if v6 {
						m.GSOType = netif.GSOTCPv6
					}
					extras = append(extras, netif.NewGSO(netif.GSOInfo{Size: m.GSOSize, Type: m.GSOType}))
				}
				if rapid.Bool().Draw(rt, "hash") {
					m.Hash, m.Hashed = netif.HashInfo{Type: netif.HashIPv4TCP, Algorithm: netif.HashAlgorithmToeplitz, Value: rapid.Uint32().Draw(rt, "value")}, true
					extras = append(extras, netif.NewHash(m.Hash))
				}
				slots = append(slots, b.putRx(frame, flags, extras...)...)
				want, metas = append(want, frame), append(metas, m)
			}
			b.commitRx(slots)
			for i, w := range want {
				ok, err := q.Recv(&p)
				if !ok || err != nil {
					rt.Fatalf("packet %d: %v, %v", i, ok, err)
				}
				if got := p.AppendTo(nil); !bytes.Equal(got, w) || p.Len() != len(w) {
					rt.Fatalf("packet %d of %d bytes differs", i, len(w))
				}
				if diff := cmp.Diff(metas[i], p.Meta); diff != "" {
					rt.Fatalf("packet %d (-want +got):\n%s", i, diff)
				}
				q.Release(&p)
			}
			if ok, err := q.Recv(&p); ok || err != nil {
				rt.Fatalf("one packet too many: %v, %v", ok, err)
			}
			if got := len(q.rx.free) + q.rx.count; got != len(q.rx.refs) {
				rt.Fatalf("%d pages of %d", got, len(q.rx.refs))
			}
		}
		if v := q.Violations(); len(v) > 0 {
			rt.Fatalf("%v", v)
		}
	})
}

func TestRxTargetWithholdsBuffers(t *testing.T) {
	q, b := newPair(t, strictConfig(), false)
	q.SetRxTarget(3)
	q.Post()
	if err := q.Flush(); err != nil {
		t.Fatal(err)
	}
	if n, _ := b.rx.Available(); n != 3 {
		t.Errorf("%d buffers, want 3", n)
	}
	q.SetRxTarget(0)
	b.commitRx(b.putRx(make([]byte, 100), 0))
	var p Packet
	if ok, err := q.Recv(&p); !ok || err != nil {
		t.Fatal(ok, err)
	}
	q.Release(&p)
	q.Post()
	if err := q.Flush(); err != nil {
		t.Fatal(err)
	}
	if n, _ := b.rx.Available(); n != 2 {
		t.Errorf("%d buffers, want 2", n)
	}
	q.SetRxTarget(1000)
	q.Post()
	if err := q.Flush(); err != nil {
		t.Fatal(err)
	}
	if n, _ := b.rx.Available(); n != netif.RxRingSize {
		t.Errorf("%d buffers, want all", n)
	}
}

func TestFlushNotifies(t *testing.T) {
	for _, c := range []struct {
		name     string
		split    bool
		rxNotify bool
		tx, rx   int // events, on the same port unless split
	}{
		{name: "one channel", rxNotify: true, tx: 1, rx: 1},
		{name: "split", split: true, rxNotify: true, tx: 1, rx: 1},
		{name: "no feature-rx-notify", split: true, tx: 1, rx: 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := strictConfig()
			cfg.Features.RxNotify = c.rxNotify
			q, b := newPair(t, cfg, c.split)
			q.Post()
			for range 10 {
				if err := q.Send(make([]byte, 60), Meta{}); err != nil {
					t.Fatal(err)
				}
			}
			for range 3 { // the later ones publish nothing
				if err := q.Flush(); err != nil {
					t.Fatal(err)
				}
			}
			if tx, rx := b.m.Sent(q.txPort), b.m.Sent(q.rxPort); tx != c.tx || rx != c.rx {
				t.Errorf("events: tx %d, rx %d, want %d, %d", tx, rx, c.tx, c.rx)
			}
			if err := q.Send(make([]byte, 60), Meta{}); err != nil {
				t.Fatal(err)
			}
			before := q.Stats().NotifiesHeld
			if err := q.Flush(); err != nil {
				t.Fatal(err)
			}
			if got := b.m.Sent(q.txPort); got != c.tx {
				t.Errorf("%d events to a backend that did not arm again, want %d", got, c.tx)
			}
			if got := q.Stats().NotifiesHeld - before; got != 1 {
				t.Errorf("%d events were held off, want 1", got)
			}
		})
	}
}

func TestWait(t *testing.T) {
	q, b := newPair(t, strictConfig(), true)
	q.Post()
	if err := q.Flush(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()

	t.Run("a packet that is there", func(t *testing.T) {
		b.commitRx(b.putRx(make([]byte, 100), 0))
		if err := q.Wait(ctx); err != nil {
			t.Fatal(err)
		}
		var p Packet
		if ok, err := q.Recv(&p); !ok || err != nil {
			t.Fatal(ok, err)
		}
		q.Release(&p)
	})
	t.Run("a packet that comes", func(t *testing.T) {
		// The event of the first subtest is still pending: Wait may return
		// once early.
		done := make(chan struct{})
		slots := b.putRx(make([]byte, 100), 0)
		go func() {
			defer close(done)
			b.commitRx(slots)
		}()
		var p Packet
		for {
			ok, err := q.Recv(&p)
			if err != nil {
				t.Fatal(err)
			}
			if ok {
				break
			}
			if err := q.Wait(ctx); err != nil {
				t.Fatal(err)
			}
		}
		q.Release(&p)
		<-done
	})
	t.Run("the last tx response", func(t *testing.T) {
		for range 5 {
			if err := q.Send(make([]byte, 60), Meta{}); err != nil {
				t.Fatal(err)
			}
		}
		if err := q.Flush(); err != nil {
			t.Fatal(err)
		}
		seen := b.takeTx()
		done := make(chan struct{})
		go func() {
			defer close(done)
			for _, s := range seen {
				b.answerTx([]txSeen{s}, netif.StatusOkay)
			}
		}()
		for q.tx.outstanding() > 0 {
			if _, err := q.Reap(); err != nil {
				t.Fatal(err)
			}
			if q.tx.outstanding() > 0 {
				if err := q.Wait(ctx); err != nil {
					t.Fatal(err)
				}
			}
		}
		<-done
	})
	t.Run("a context that ends", func(t *testing.T) {
		short, cancel := context.WithTimeout(ctx, time.Millisecond)
		defer cancel()
		for {
			if err := q.Wait(short); err != nil {
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Error(err)
				}
				return
			}
		}
	})
	noViolations(t, q)
}

func TestDataPathDoesNotAllocate(t *testing.T) {
	cfg := strictConfig()
	q, b := newPair(t, cfg, false)
	small, large := tcpFrame(1000), tcpFrame(20000)
	rsp := make([]netif.TxResponse, 0, 64)
	slots := make([]netif.RxSlot, 0, 64)
	q.rules.mtu = 0
	var p Packet
	n := testing.AllocsPerRun(200, func() {
		for _, f := range [][]byte{small, large} {
			if err := q.Send(f, Meta{DataValidated: true}); err != nil {
				t.Fatal(err)
			}
		}
		q.Post()
		if err := q.Flush(); err != nil {
			t.Fatal(err)
		}
		a, _ := b.tx.Available()
		rsp, slots = rsp[:0], slots[:0]
		for range a {
			req := b.tx.Request(b.tx.ReqCons())
			b.tx.Consume(1)
			rsp = append(rsp, netif.TxResponse{ID: req.ID})
		}
		b.tx.Commit(rsp)
		for range 5 {
			req := b.rx.Request(b.rx.ReqCons())
			b.rx.Consume(1)
			copy(b.m.Page(req.Gref), small)
			slots = append(slots, netif.RxResponse{ID: req.ID, Status: netif.Status(len(small)), Flags: netif.RxDataValidated}.Slot())
		}
		b.rx.Commit(slots)
		if _, err := q.Reap(); err != nil {
			t.Fatal(err)
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
	})
	if n != 0 {
		t.Errorf("%v allocations for 2 packets sent and 5 received", n)
	}
	noViolations(t, q)
}

func TestRawMixesWithTraffic(t *testing.T) {
	q, b := newPair(t, strictConfig(), false)
	r := q.Raw()
	if err := q.Send(tcpFrame(10), Meta{}); err != nil {
		t.Fatal(err)
	}
	bad := netif.TxRequest{Gref: 0xdead, ID: 0x1234, Size: 60, Flags: netif.TxExtraInfo}
	if err := r.PutTx(bad); err != nil {
		t.Fatal(err)
	}
	if err := r.PutExtra(netif.NewGSO(netif.GSOInfo{Size: 1})); err != nil {
		t.Fatal(err)
	}
	if err := q.Send(tcpFrame(20), Meta{}); err != nil {
		t.Fatal(err)
	}
	if err := q.Flush(); err != nil {
		t.Fatal(err)
	}
	seen := b.takeTx()
	if diff := cmp.Diff(bad, seen[1].Req, ignoreBlank); diff != "" {
		t.Errorf("raw request (-want +got):\n%s", diff)
	}
	b.answerTx(seen[:1], netif.StatusOkay)
	b.answerTx(seen[1:3], netif.StatusError)
	b.answerTx(seen[3:], netif.StatusOkay)
	if _, err := q.Reap(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]netif.TxResponse{{ID: 0x1234, Status: netif.StatusError}}, r.TxResponses(), ignoreBlank); diff != "" {
		t.Errorf("raw responses (-want +got):\n%s", diff)
	}
	noViolations(t, q)
}

// fuzzBackend writes random data into the rings, as a broken backend.
func fuzzBackend(b *backend, q *Queue, data []byte) {
	rings := [][]byte{b.m.Page(q.rings.Refs()[0]), b.m.Page(q.rings.Refs()[1])}
	rnd := rand.New(rand.NewPCG(1, uint64(len(data))))
	for len(data) >= 4 {
		ring := rings[data[0]&1]
		switch data[0] >> 1 & 3 {
		case 0: // rsp_prod
			ring[8] += data[1] % 32
		case 1: // any word of the header
			ring[data[1]%16] = data[2]
		default: // any byte of a slot near the start
			ring[64+(int(data[1])|int(data[2])<<8)%(netif.PageSize-64)] = data[3]
		}
		if rnd.IntN(4) == 0 {
			for _, p := range rings {
				copy(p[64:], data)
			}
		}
		data = data[4:]
	}
}

// FuzzJudge has a broken backend write anything. The frontend must not panic, hang or lose
// a page. It may count violations.
func FuzzJudge(f *testing.F) {
	f.Add([]byte{0, 1, 0, 0, 1, 1, 0, 0})
	f.Add([]byte{1, 31, 0, 0, 5, 0, 0, 9, 5, 4, 0, 0x0c, 5, 6, 0, 100})
	f.Add(bytes.Repeat([]byte{5, 7, 1, 0xff}, 40))
	fuzzloop.Fuzz(f, func(t *testing.T, data []byte) {
		q, b := newPair(t, strictConfig(), false)
		q.Post()
		for range 10 {
			if err := q.Send(tcpFrame(5000), Meta{GSOType: netif.GSOTCPv4, GSOSize: 100}); err != nil {
				t.Fatal(err)
			}
		}
		if err := q.Flush(); err != nil {
			t.Fatal(err)
		}
		var p Packet
		for len(data) > 0 {
			n := min(len(data), 64)
			fuzzBackend(b, q, data[:n])
			data = data[n:]
			_, _ = q.Reap()
			for range netif.RxRingSize + 1 {
				ok, err := q.Recv(&p)
				if !ok || err != nil {
					break
				}
				if p.Len() < 0 || p.Len() > maxFrags*netif.PageSize || len(p.AppendTo(nil)) != p.Len() {
					t.Fatalf("a packet of %d bytes", p.Len())
				}
				q.Release(&p)
			}
			if q.dead == nil && len(q.rx.free)+q.rx.count != len(q.rx.refs) {
				t.Fatalf("%d free and %d posted of %d pages", len(q.rx.free), q.rx.count, len(q.rx.refs))
			}
			q.Post()
			_ = q.Flush()
		}
	})
}
