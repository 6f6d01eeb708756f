// SPDX-License-Identifier: Apache-2.0

package vhostfront

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/pkg/tap"
)

func TestMain(m *testing.M) {
	if code, done := netns.Enter(); done {
		os.Exit(code)
	}
	goleak.VerifyTestMain(m)
}

// guest is a device with pumps and a card, whose kernel's end is a packet socket.
type guest struct {
	t      *testing.T
	ctx    context.Context
	dev    *Device
	socket int
	pumps  []*Pump
	sent   uint32
}

const cardName = "eth0"

func newGuest(t *testing.T, cfg Config) *guest {
	t.Helper()
	netns.NeedTUN(t)
	if err := netns.NoIPv6(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	g := &guest{t: t, ctx: ctx}
	var err error
	g.dev, err = Open(ctx, cfg)
	g.must(err)
	card, err := tap.Create(tap.Config{Name: cardName, VnetHdr: true, Queues: len(g.dev.Pairs())})
	g.must(err)
	g.must(errors.Join(card.SetMTU(9000), card.SetUp(), card.SetOffload(g.dev.Offload())))
	var wg sync.WaitGroup
	running, stop := context.WithCancel(context.Background())
	for i, p := range g.dev.Pairs() {
		u, err := NewPump(p, card.Queue(i))
		g.must(err)
		g.pumps = append(g.pumps, u)
		wg.Go(func() {
			if err := u.Run(running); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() {
		stop()
		wg.Wait()
		if err := errors.Join(g.dev.Close(), card.Close(), unix.Close(g.socket)); err != nil {
			t.Error(err)
		}
	})
	g.dev.SetPumps(func(i int, f func(*Pair)) error { return g.pumps[i].Do(f) })
	g.open()
	g.must(g.dev.Start())
	return g
}

func (g *guest) must(err error) {
	g.t.Helper()
	if err != nil {
		g.t.Fatal(err)
	}
}

const testType = 0x88b5

// open opens the packet socket.
func (g *guest) open() {
	ifi, err := net.InterfaceByName(cardName)
	g.must(err)
	g.socket, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	g.must(err)
	g.must(unix.SetsockoptTimeval(g.socket, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 20}))
	g.must(unix.SetsockoptInt(g.socket, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20))
	g.must(unix.SetsockoptInt(g.socket, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1))
	g.must(unix.Bind(g.socket, &unix.SockaddrLinklayer{Protocol: binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, testType)), Ifindex: ifi.Index}))
}

// frame returns a frame of n bytes with a number.
func frame(number uint32, n int) []byte {
	b := append(bytes.Repeat([]byte{0xff}, 12), testType>>8, testType&0xff)
	b = binary.BigEndian.AppendUint32(b, number)
	for i := len(b); i < n; i++ {
		b = append(b, byte(i)^byte(number))
	}
	return b
}

func sizeOf(number uint32) int { return 60 + int(number*911%8900) }

// rounds sends frames of many sizes, some at a time, and gets each back, in order.
func (g *guest) rounds(n int) {
	g.t.Helper()
	buf := make([]byte, 1<<16)
	for left := n; left > 0; {
		some := min(left, 20)
		left -= some
		for i := range some {
			number := g.sent + uint32(i)
			_, err := unix.Write(g.socket, frame(number, sizeOf(number)))
			g.must(err)
		}
		for range some {
			k, err := unix.Read(g.socket, buf)
			for err == unix.EINTR { // as signals of Go's scheduler do with a time limit on a socket
				k, err = unix.Read(g.socket, buf)
			}
			if err != nil {
				g.t.Fatalf("frame %d does not come back: %v", g.sent, err)
			}
			if want := frame(g.sent, sizeOf(g.sent)); !bytes.Equal(buf[:k], want) {
				g.t.Fatalf("a frame of %d bytes came back for number %d of %d", k, g.sent, len(want))
			}
			g.sent++
		}
	}
}

// try sends frames and takes as many as half of them back, with any contents.
func (g *guest) try(n int) {
	g.t.Helper()
	buf := make([]byte, 1<<16)
	for i := range n {
		_, err := unix.Write(g.socket, frame(uint32(i), 1000))
		g.must(err)
	}
	for range n / 2 {
		_, err := unix.Read(g.socket, buf)
		g.must(err)
	}
}

// innocent checks that the back end has broken no rule.
func (g *guest) innocent() {
	g.t.Helper()
	g.must(g.dev.Settle(g.ctx))
	for i := range g.pumps {
		g.must(g.dev.on(i, func(p *Pair) {
			for _, f := range p.Faults() {
				g.t.Errorf("pair %d: %s", i, f)
			}
		}))
	}
}

func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "vf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}

// TestEcho runs a device with each set of features through all that a session can bring.
func TestEcho(t *testing.T) {
	for name, cfg := range map[string]Config{
		"linux":                         {},
		"strict":                        {Strict: true, Regions: 3},
		"packed":                        {Strict: true, Packed: true, Inflight: true},
		"packed, in order":              {Strict: true, Packed: true, InOrder: true, Slots: true},
		"in order, no event index":      {Strict: true, InOrder: true, NoEventIdx: true},
		"not mergeable":                 {Strict: true, NoMergeable: true, Slots: true},
		"not mergeable, not indirect":   {Strict: true, NoMergeable: true, NoIndirect: true},
		"small, not mergeable":          {Strict: true, NoMergeable: true, NoGuestTSO: true, MTU: 9000},
		"small rings":                   {Strict: true, Size: 64, NoIndirect: true, RxBuffer: 1500},
		"without checksums":             {NoCsum: true, NoGuestCsum: true},
		"inflight":                      {Strict: true, Inflight: true},
		"before virtio 1.0, mergeable":  {Strict: true, Legacy: true},
		"two pairs, as server":          {Strict: true, Pairs: 2, Server: true},
		"eight pairs, packed, 2 pieces": {Pairs: 8, Packed: true, Regions: 2, InOrder: true},
	} {
		t.Run(name, func(t *testing.T) {
			cfg.Socket = socketPath(t)
			b := newBackend(t, cfg.Socket, cfg.Server, "")
			g := newGuest(t, cfg)
			g.rounds(300)
			for range 4 {
				g.must(g.dev.Swap())
				g.rounds(40)
			}
			g.must(g.dev.Quiet(g.ctx, 5*time.Millisecond))
			g.rounds(40)
			b.kill()
			newBackend(t, cfg.Socket, cfg.Server, "")
			g.must(g.dev.Reconnect(g.ctx))
			g.rounds(300)
			g.must(g.dev.StartLog())
			g.rounds(300)
			g.must(g.dev.TakeLog())
			g.rounds(300)
			pages, err := g.dev.EndLog()
			g.must(err)
			if pages < 5 {
				t.Errorf("only %d pages are in the log", pages)
			}
			g.rounds(40)
			g.innocent()
			g.must(g.dev.Restart(false))
			g.rounds(40)
			g.must(g.dev.Restart(true))
			g.rounds(40)
			g.innocent()
		})
	}
}

// TestFaults has back ends that break a rule, each of which is noticed.
func TestFaults(t *testing.T) {
	for _, tc := range []struct {
		fault string
		check func(g *guest) string
	}{
		{"tx", nil},
		{"behind", nil},
		{"flags", nil},
		{"base", func(g *guest) string { return text(g.dev.Stop()) }},
		{"late call", func(g *guest) string { return text(g.dev.Quiet(g.ctx, 100*time.Millisecond)) }},
		{"log", func(g *guest) string {
			g.must(g.dev.StartLog())
			g.try(600)
			_, err := g.dev.EndLog()
			return text(err)
		}},
	} {
		t.Run(tc.fault, func(t *testing.T) {
			path := socketPath(t)
			newBackend(t, path, false, tc.fault)
			g := newGuest(t, Config{Socket: path, Strict: true, NoGuestCsum: tc.fault == "flags"})
			g.try(40)
			said := ""
			if tc.check != nil {
				said = tc.check(g)
			}
			for i := range g.pumps {
				g.must(g.dev.on(i, func(p *Pair) { said += strings.Join(p.Faults(), "; ") }))
			}
			if said == "" {
				t.Error("nothing is noticed")
			}
			t.Log(said)
		})
	}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
