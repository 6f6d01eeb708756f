// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/netbackd/netbackd/internal/lab/fuzzloop"
	"github.com/netbackd/netbackd/internal/lab/netns"
)

func TestMain(m *testing.M) {
	if code, done := netns.Enter(); done {
		os.Exit(code)
	}
	goleak.VerifyTestMain(m)
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// serve runs a server until the test ends.
func serve(t *testing.T, s interface{ Serve(context.Context) error }) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
}

func TestPattern(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		seed, off := rapid.Uint64().Draw(t, "seed"), rapid.Uint64Max(1<<40).Draw(t, "off")
		whole := make([]byte, rapid.IntRange(1, 200).Draw(t, "len"))
		Fill(whole, seed, off)
		// The pattern does not depend on its division into parts.
		cut := rapid.IntRange(0, len(whole)).Draw(t, "cut")
		parts := make([]byte, len(whole))
		Fill(parts[:cut], seed, off)
		Fill(parts[cut:], seed, off+uint64(cut))
		if !bytes.Equal(whole, parts) {
			t.Fatalf("cut at %d:\n%x\n%x", cut, whole, parts)
		}
		if wrong, first := Check(whole, seed, off); wrong != 0 || first != -1 {
			t.Fatalf("right bytes: wrong %d, first %d", wrong, first)
		}
		bad := rapid.IntRange(0, len(whole)-1).Draw(t, "bad")
		whole[bad] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		if wrong, first := Check(whole, seed, off); wrong != 1 || first != bad {
			t.Fatalf("byte %d changed: wrong %d, first %d", bad, wrong, first)
		}
	})
}

func TestTCP(t *testing.T) {
	netns.Need(t)
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0"} {
		t.Run(addr, func(t *testing.T) {
			ctx := testContext(t)
			s, err := ListenTCP(addr)
			if err != nil {
				t.Fatal(err)
			}
			serve(t, s)
			for _, send := range []TCPSend{
				{Bytes: 1},
				{Bytes: 10<<20 + 3, Seed: 7},
				{Duration: 50 * time.Millisecond},
				{Bytes: 200_000, Rate: 1_000_000},
			} {
				c, err := DialTCP(ctx, s.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				r, err := SendTCP(ctx, c, send)
				if err != nil {
					t.Fatalf("%+v: %v", send, err)
				}
				if send.Bytes > 0 && r.Bytes != send.Bytes || r.Bytes == 0 || r.Wrong != 0 || r.First != -1 {
					t.Errorf("%+v: %+v", send, r)
				}
				if send.Rate > 0 && r.Duration < 100*time.Millisecond {
					t.Errorf("%+v took %v", send, r.Duration)
				}
			}
			if n := len(s.Results()); n != 4 {
				t.Errorf("%d results, want 4", n)
			}
		})
	}
}

func TestTCPSeesWrongBytes(t *testing.T) {
	netns.Need(t)
	ctx := testContext(t)
	s, err := ListenTCP("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serve(t, s)
	c, err := DialTCP(ctx, s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	r, err := SendTCP(ctx, &flipper{Conn: c, at: tcpHeader + 5000}, TCPSend{Bytes: 10000})
	if err == nil {
		t.Error("no error")
	}
	if r.Wrong != 1 || r.First != 5000 || r.Bytes != 10000 {
		t.Errorf("%+v", r)
	}
}

// flipper changes one byte of the written data.
type flipper struct {
	net.Conn
	at int
}

func (f *flipper) Write(b []byte) (int, error) {
	if f.at >= 0 && f.at < len(b) {
		b = bytes.Clone(b)
		b[f.at] ^= 1
	}
	f.at -= len(b)
	return f.Conn.Write(b)
}

func (f *flipper) CloseWrite() error { return f.Conn.(*net.TCPConn).CloseWrite() }

func TestTCPEndsWithItsContext(t *testing.T) {
	netns.Need(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0") // accepts and never reads
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := DialTCP(testContext(t), ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := SendTCP(ctx, c, TCPSend{Bytes: 1 << 30}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v, want %v", err, context.DeadlineExceeded)
	}
}

func TestUDP(t *testing.T) {
	netns.Need(t)
	ctx := testContext(t)
	s, err := ListenUDP("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serve(t, s)
	for _, send := range []UDPSend{
		{Count: 1, Size: MinUDP},
		{Count: 1000, Size: 1400, Rate: 20000},
		{Count: 10, Size: MaxUDP, Rate: 1000, Stream: 77},
		{Count: 0, Size: MinUDP},
		{Count: 20000, Size: MinUDP, Window: 64}, // far more than the socket holds
	} {
		c, err := DialUDP(ctx, s.Addr().String(), "")
		if err != nil {
			t.Fatal(err)
		}
		r, err := SendUDP(ctx, c, send)
		if err != nil {
			t.Fatal(err)
		}
		r.Duration = 0
		n := uint64(send.Count)
		want := UDPResult{Sent: n, Received: n, Bytes: n * uint64(send.Size)}
		if diff := cmp.Diff(want, r); diff != "" {
			t.Errorf("%+v (-want +got):\n%s", send, diff)
		}
	}
	if r, ok := s.Result(77); !ok || r.Received != 10 {
		t.Errorf("stream 77: %+v, %v", r, ok)
	}
	if n := len(s.Results()); n != 5 {
		t.Errorf("%d results, want 5", n)
	}
}

// TestUDPCounts sends the receiver lost, duplicate, reordered and corrupt packets.
func TestUDPCounts(t *testing.T) {
	s := &UDPServer{flows: map[uint64]*flow{}}
	packet := func(seq uint64) []byte {
		b := make([]byte, 100)
		putUDP(b, udpData, 9, seq)
		Fill(b[MinUDP:], 9, patternAt(seq))
		return b
	}
	corrupt := packet(5)
	corrupt[50]++
	far := packet(maxCount)
	for _, b := range [][]byte{
		packet(0), packet(2), packet(1), packet(2), packet(7), packet(7), packet(7),
		corrupt, far, []byte("short"), bytes.Repeat([]byte{1}, 60),
	} {
		if r := s.take(b); r != nil {
			t.Errorf("answered %x", r)
		}
	}
	end := make([]byte, MinUDP)
	putUDP(end, udpEnd, 9, 8)
	got, ok := parseReport(s.take(end), 9)
	if !ok {
		t.Fatal("no report")
	}
	got.Duration = 0
	want := UDPResult{Sent: 8, Received: 4, Lost: 4, Duplicated: 3, Reordered: 1, Corrupt: 2, Bytes: 400}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("report (-want +got):\n%s", diff)
	}
}

func TestUDPServerIsBounded(t *testing.T) {
	s := &UDPServer{flows: map[uint64]*flow{}}
	b := make([]byte, MinUDP)
	for i := range uint64(10 * maxFlows) {
		putUDP(b, udpData, i, 0)
		s.take(b)
	}
	if len(s.flows) != maxFlows || len(s.order) != maxFlows {
		t.Errorf("%d flows in order of %d", len(s.flows), len(s.order))
	}
	if _, ok := s.Result(10*maxFlows - 1); !ok {
		t.Error("the latest flow is gone")
	}
}

func TestUDPWithoutAReceiver(t *testing.T) {
	netns.Need(t)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	c, err := DialUDP(ctx, "127.0.0.1:9", "")
	if err != nil {
		t.Fatal(err)
	}
	r, err := SendUDP(ctx, c, UDPSend{Count: 5, Size: 100})
	if !errors.Is(err, context.DeadlineExceeded) || r.Sent != 5 {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestMulticast(t *testing.T) {
	netns.Need(t)
	if _, err := netns.AddBridge("mc0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netns.Delete("mc0") })
	if err := errors.Join(netns.AddAddr("mc0", "192.0.2.1/24"), netns.Up("mc0")); err != nil {
		t.Fatal(err)
	}
	ctx := testContext(t)
	const group = "239.1.2.3:7777"
	s, err := ListenMulticast(group, "mc0")
	if err != nil {
		t.Fatal(err)
	}
	serve(t, s)
	c, err := DialUDP(ctx, group, "mc0")
	if err != nil {
		t.Fatal(err)
	}
	if r, err := SendUDP(ctx, c, UDPSend{Count: 20, Size: 500, Stream: 5, NoReport: true}); err != nil || r.Sent != 20 {
		t.Fatalf("%+v, %v", r, err)
	}
	for {
		if r, _ := s.Result(5); r.Received == 20 {
			return
		}
		if err := sleepUntil(ctx, time.Now().Add(time.Millisecond)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestPing(t *testing.T) {
	netns.Need(t)
	for _, a := range []string{"127.0.0.1", "::1"} {
		t.Run(a, func(t *testing.T) {
			p, err := DialPing(netip.MustParseAddr(a))
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			r, err := p.Ping(testContext(t), PingOptions{Count: 20, Size: 2000})
			if err != nil {
				t.Fatal(err)
			}
			if r.Sent != 20 || r.Received != 20 || len(r.RTT) != 20 || r.Corrupt != 0 || r.Median() <= 0 {
				t.Errorf("%+v", r)
			}
		})
	}
}

func TestPingWithoutAnswer(t *testing.T) {
	netns.Need(t)
	if _, err := netns.AddBridge("nb0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netns.Delete("nb0") })
	if err := errors.Join(netns.AddAddr("nb0", "198.51.100.1/24"), netns.Up("nb0")); err != nil {
		t.Fatal(err)
	}
	p, err := DialPing(netip.MustParseAddr("198.51.100.9"))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	r, err := p.Ping(testContext(t), PingOptions{Count: 2, Timeout: 20 * time.Millisecond})
	if err != nil || r.Sent != 2 || r.Received != 0 || r.Median() != 0 {
		t.Errorf("%+v, %v", r, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if _, err := p.Ping(ctx, PingOptions{Timeout: time.Hour}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v, want %v", err, context.DeadlineExceeded)
	}
}

func TestLimits(t *testing.T) {
	netns.Need(t)
	ctx := testContext(t)
	for _, s := range []UDPSend{{Size: MinUDP - 1}, {Size: MaxUDP + 1}, {Size: 100, Count: maxCount + 1}, {Size: 100, Count: -1}} {
		c, err := DialUDP(ctx, "127.0.0.1:9", "")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := SendUDP(ctx, c, s); err == nil || !strings.Contains(err.Error(), "bytes can be sent") {
			t.Errorf("%+v: %v", s, err)
		}
	}
	p, err := DialPing(netip.MustParseAddr("127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for _, o := range []PingOptions{{Count: -1}, {Count: maxPings + 1}, {Size: -1}, {Size: maxPingSize + 1}} {
		if _, err := p.Ping(ctx, o); err == nil {
			t.Errorf("%+v was taken", o)
		}
	}
}

// FuzzUDP gives the receiver any packet, and the sender any report.
func FuzzUDP(f *testing.F) {
	b := make([]byte, 64)
	putUDP(b, udpData, 1, 2)
	f.Add(b)
	end := make([]byte, MinUDP)
	putUDP(end, udpEnd, 1, 1<<63)
	f.Add(end)
	fuzzloop.Fuzz(f, func(t *testing.T, b []byte) {
		s := &UDPServer{flows: map[uint64]*flow{}}
		reply := s.take(b)
		if reply != nil {
			if _, ok := parseReport(reply, binary.BigEndian.Uint64(b[8:])); !ok {
				t.Fatal("a report that cannot be read")
			}
		}
		for _, fl := range s.flows {
			if len(fl.seen) > maxCount/64+1 {
				t.Fatalf("%d words to tell packets apart", len(fl.seen))
			}
		}
		parseReport(b, 0)
	})
}
