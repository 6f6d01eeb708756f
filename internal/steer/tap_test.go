// SPDX-License-Identifier: Apache-2.0

package steer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/netbackd/netbackd/internal/lab/bench"
	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/internal/lab/packettest"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/toeplitz"
)

func TestMain(m *testing.M) {
	if code, done := netns.Enter(); done {
		os.Exit(code)
	}
	if err := netns.NoIPv6(); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	goleak.VerifyTestMain(m)
}

const queues = 4

// newTAP makes a device without a vnet header, sets it up and removes it after the test.
func newTAP(t testing.TB, name string, queues int) *tap.Device {
	t.Helper()
	netns.NeedTUN(t)
	d, err := tap.Create(tap.Config{Name: name, Queues: queues})
	must(t, err)
	t.Cleanup(func() { must(t, d.Close()) })
	must(t, netns.Up(name))
	return d
}

// packetSocket opens a socket with which the host sends to a device without a bridge.
func packetSocket(t testing.TB, d *tap.Device) (fd int) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	t.Cleanup(func() { must(t, unix.Close(fd)) })
	must(t, unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: d.Index()}))
	return fd
}

// reader reads frames from all queues.
type reader struct {
	d    *tap.Device
	poll []unix.PollFd
	buf  []byte
}

func newReader(d *tap.Device) *reader {
	r := &reader{d: d, buf: make([]byte, tap.MaxFrame)}
	for i := range d.Queues() {
		r.poll = append(r.poll, unix.PollFd{Fd: int32(d.Queue(i).FD()), Events: unix.POLLIN})
	}
	return r
}

// next waits for a frame. The frame is valid until the next call.
func (r *reader) next() (queue int, frame []byte, err error) {
	for {
		for i := range r.poll {
			n, err := r.d.Queue(i).Read(r.buf)
			switch err {
			case nil:
				return i, r.buf[:n], nil
			case tap.ErrAgain:
			default:
				return 0, nil, err
			}
		}
		n, err := unix.Poll(r.poll, 5000)
		if err != nil && err != unix.EINTR {
			return 0, nil, err
		}
		if n == 0 {
			return 0, nil, errors.New("no frame on any queue")
		}
	}
}

// TestTheHostSteers sends frames from a socket and through a bridge. A socket has VLAN
// tags in the frame; a bridge has the outer one in the metadata. Each frame has to arrive
// on the queue that its bytes select.
func TestTheHostSteers(t *testing.T) {
	p := newProgram(t)
	d := newTAP(t, "vif1.0", queues)
	must(t, d.SetSteering(p.FD()))
	r := newReader(d)
	for _, route := range []struct {
		name string
		send func(t testing.TB) func(frame []byte) (sent bool, err error)
	}{
		{"from a socket", func(t testing.TB) func([]byte) (bool, error) {
			socket := packetSocket(t, d)
			return func(frame []byte) (bool, error) {
				_, err := unix.Write(socket, frame)
				return true, err
			}
		}},
		{"from a bridge", func(t testing.TB) func([]byte) (bool, error) {
			// Netfilter would drop packets with bad headers.
			for _, of := range []string{"arp", "ip", "ip6"} {
				if err := netns.Sysctl("net/bridge/bridge-nf-call-"+of+"tables", "0"); err != nil && !errors.Is(err, os.ErrNotExist) {
					t.Fatal(err)
				}
			}
			in := newTAP(t, "in0", 1)
			_, err := netns.AddBridge("br0")
			must(t, err)
			t.Cleanup(func() { must(t, netns.Delete("br0")) })
			must(t, netns.Attach("in0", "br0"))
			must(t, netns.Attach("vif1.0", "br0"))
			awaitForwarding(t, "in0", "vif1.0")
			return func(frame []byte) (bool, error) {
				if !wholeTags(frame) {
					return false, nil
				}
				_, err := in.Queue(0).Write(frame)
				return true, err
			}
		}},
	} {
		t.Run(route.name, func(t *testing.T) {
			send := route.send(t)
			check := func(t failer, c *Config, frame []byte) {
				t.Helper()
				sent, err := send(frame)
				must(t, err)
				if !sent {
					return
				}
				queue, got, err := r.next()
				must(t, err)
				if !bytes.Equal(got, frame) {
					t.Fatalf("read %x, sent %x", got, frame)
				}
				if want := wanted(c, got); queue != want.Queue%queues {
					t.Fatalf("%x: read on queue %d, want %+v", frame, queue, want)
				}
			}
			for _, s := range situations(t) {
				must(t, p.Set(s.config))
				check(t, s.config, s.frame)
			}
			rapid.Check(t, func(t *rapid.T) {
				c := drawConfig(t, queues)
				must(t, p.Set(c))
				for range 20 {
					check(t, c, drawFrame(t))
				}
			})
		})
	}
}

// wholeTags reports whether bytes follow each VLAN tag. If not, a bridge drops the frame.
func wholeTags(frame []byte) bool {
	for at := 12; ; at += 4 {
		switch binary.BigEndian.Uint16(frame[at:]) {
		case packettest.TypeVLAN, packettest.TypeQinQ:
			if len(frame) < at+8 {
				return false
			}
		default:
			return true
		}
	}
}

// awaitForwarding waits until ports of a bridge forward.
func awaitForwarding(t testing.TB, ports ...string) {
	t.Helper()
	const forwarding = "3\n" // BR_STATE_FORWARDING
	for deadline := time.Now().Add(5 * time.Second); len(ports) > 0; time.Sleep(time.Millisecond) {
		state, err := os.ReadFile("/sys/class/net/" + ports[0] + "/brport/state")
		if err != nil {
			t.Skip(err) // /sys shows another network namespace
		}
		if string(state) == forwarding {
			ports = ports[1:]
		} else if time.Now().After(deadline) {
			t.Fatalf("%s does not forward", ports[0])
		}
	}
}

// TestLargePackets steers packets whose headers are not in the linear part of the host's
// skb, and packets that the host segments.
func TestLargePackets(t *testing.T) {
	p := newProgram(t)
	c := &Config{Types: toeplitz.AllTypes, Hasher: hasher(t, rssKey), Mapping: toeplitz.NewMapping(queues)}
	must(t, p.Set(c))
	d := newTAP(t, "vif1.0", queues)
	must(t, d.SetMTU(9000))
	must(t, d.SetSteering(p.FD()))
	socket := packetSocket(t, d)
	must(t, unix.SetsockoptInt(socket, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1))
	r := newReader(d)
	seen := map[int]int{}
	for i := range 16 {
		f := packettest.Frame{TCP: &packettest.TCP{SrcPort: uint16(1000 + i)}, Payload: make([]byte, 8000), Partial: true}
		hdr := tap.VnetHdr{Flags: tap.VnetNeedsCsum, GSOSize: 1000, CsumOffset: 16}
		if i%2 == 0 {
			f.IPv4 = &packettest.IPv4{Options: make([]byte, 8)}
			hdr.GSOType, hdr.CsumStart = tap.VnetGSOTCPv4, 14+28
		} else {
			f.IPv6 = &packettest.IPv6{Ext: []packettest.Ext{packettest.Options(packettest.ProtoDest, 16)}}
			hdr.GSOType, hdr.CsumStart = tap.VnetGSOTCPv6, 14+56
		}
		frame := f.Bytes()
		hdr.HdrLen = hdr.CsumStart + 20
		for _, tt := range []struct {
			hdr    tap.VnetHdr
			frames int
		}{{tap.VnetHdr{}, 1}, {hdr, 8}} {
			const short = 10 // a packet socket's header ends before NumBuffers
			b := make([]byte, tap.VnetHdrLen)
			tt.hdr.Encode(b)
			_, err := unix.Write(socket, append(b[:short:short], frame...))
			must(t, err)
			for range tt.frames {
				queue, got, err := r.next()
				must(t, err)
				want := wanted(c, got)
				if queue != want.Queue || !want.Hashed || want != wanted(c, frame) {
					t.Errorf("%d bytes of %d: read on queue %d, want %+v", len(got), len(frame), queue, want)
				}
				seen[queue]++
			}
		}
	}
	if len(seen) != queues {
		t.Errorf("frames per queue: %v", seen)
	}
}

// TestChangesUnderTraffic changes the whole configuration repeatedly while frames of many
// flows arrive. No frame is lost, and each is on the queue of one configuration that was
// in force while it was sent. After a while each change gives the host another program,
// as a successor of this process would.
func TestChangesUnderTraffic(t *testing.T) {
	const (
		flows   = 32
		window  = 200 // frames that may wait to be read; a queue holds 500 or more
		changes = 60
	)
	p := newProgram(t)
	d := newTAP(t, "vif1.0", queues)
	socket := packetSocket(t, d)

	configs := make([]*Config, changes)
	key := append([]byte(nil), rssKey...)
	for i := range configs {
		key[i%len(key)] ^= byte(i)
		entries := make([]uint32, 1+i*7%toeplitz.MaxMapping)
		for j := range entries {
			entries[j] = uint32((i + j*j) % queues)
		}
		configs[i] = &Config{
			Types:   []toeplitz.Types{toeplitz.AllTypes, 5, 10, toeplitz.AllTypes, 2}[i%5],
			Hasher:  hasher(t, key),
			Mapping: mapping(t, queues, entries...),
		}
	}
	must(t, p.Set(configs[0]))
	must(t, d.SetSteering(p.FD()))

	type sending struct{ first, last int32 } // the configurations that may have steered it
	var begun, done, received atomic.Int32   // both count changes
	var enough atomic.Bool
	var sent []sending
	frames := make([][]byte, flows)
	for i := range frames {
		f := packettest.Frame{TCP: &packettest.TCP{SrcPort: uint16(1000 + i)}, Payload: make([]byte, 4)}
		if i%2 == 0 {
			f.IPv4 = &packettest.IPv4{}
		} else {
			f.IPv6 = &packettest.IPv6{}
		}
		frames[i] = f.Bytes()
	}
	number := func(frame []byte) int { return int(binary.BigEndian.Uint32(frame[len(frame)-4:])) }

	sender := make(chan error, 1)
	go func() {
		sender <- func() error {
			for n := 0; !enough.Load(); n++ {
				for stuck := time.Now().Add(10 * time.Second); n-int(received.Load()) >= window; time.Sleep(50 * time.Microsecond) {
					if time.Now().After(stuck) {
						return fmt.Errorf("%d frames sent, only %d received", n, received.Load())
					}
				}
				frame := frames[n%flows]
				binary.BigEndian.PutUint32(frame[len(frame)-4:], uint32(n))
				met := sending{first: done.Load()}
				if _, err := unix.Write(socket, frame); err != nil {
					return err
				}
				met.last = begun.Load()
				sent = append(sent, met)
			}
			return nil
		}()
	}()

	var queue []int // of each frame, by number
	stop := make(chan int, 1)
	receiver := make(chan error, 1)
	go func() {
		receiver <- func() error {
			r := newReader(d)
			for total := -1; ; {
				select {
				case total = <-stop:
				default:
				}
				if total >= 0 && int(received.Load()) >= total {
					return nil
				}
				if total < 0 {
					// No frame may be left to wait for.
					if n, err := unix.Poll(r.poll, 1); err != nil && err != unix.EINTR {
						return err
					} else if n <= 0 {
						continue
					}
				}
				i, frame, err := r.next()
				if err != nil {
					return err
				}
				n := number(frame)
				for len(queue) <= n {
					queue = append(queue, -1)
				}
				if queue[n] >= 0 {
					return fmt.Errorf("frame %d was read twice", n)
				}
				queue[n] = i
				received.Add(1)
			}
		}()
	}()

	// Between changes each flow has some frames.
	some := func() {
		for from := received.Load(); received.Load() < from+2*flows && len(sender) == 0 && len(receiver) == 0; {
			time.Sleep(50 * time.Microsecond)
		}
	}
	some()
	for i := 1; i < changes; i++ {
		begun.Store(int32(i))
		if i < changes*2/3 {
			must(t, p.Set(configs[i]))
		} else {
			p = newProgram(t)
			must(t, p.Set(configs[i]))
			must(t, d.SetSteering(p.FD()))
		}
		done.Store(int32(i))
		some()
	}
	enough.Store(true)
	err := <-sender
	stop <- len(sent)
	if err := errors.Join(err, <-receiver); err != nil {
		t.Fatal(err)
	}

	met := 0
	for n, s := range sent {
		frame := frames[n%flows]
		ok := false
		for i := s.first; i <= s.last; i++ {
			ok = ok || configs[i].Choose(frame).Queue == queue[n]
		}
		if !ok {
			t.Errorf("frame %d was read on queue %d, by none of configurations %d to %d", n, queue[n], s.first, s.last)
		}
		if s.first != s.last {
			met++
		}
	}
	t.Logf("%d frames, none lost; %d changes, which %d frames met", len(sent), changes-1, met)
}

// TestOrderOverAChange moves flows with a change while frames wait, and reads the queues
// as the package comment says. Each flow's frames are in order. Read in another order,
// they are not.
func TestOrderOverAChange(t *testing.T) {
	const flows, rounds = 32, 10
	p := newProgram(t)
	d := newTAP(t, "vif1.0", queues)
	socket := packetSocket(t, d)
	must(t, d.SetSteering(p.FD()))
	before := &Config{Types: toeplitz.AllTypes, Hasher: hasher(t, rssKey), Mapping: mapping(t, queues, 3, 2, 1, 0)}
	after := &Config{Types: toeplitz.AllTypes, Hasher: hasher(t, rssKey), Mapping: mapping(t, queues, 0, 1, 2, 2)}

	flow := func(frame []byte) int { return int(binary.BigEndian.Uint16(frame[34:])) }
	round := func(frame []byte) int { return int(frame[len(frame)-1]) }
	send := func(from, to int) {
		for n := from; n < to; n++ {
			for i := range flows {
				f := packettest.Frame{IPv4: &packettest.IPv4{}, TCP: &packettest.TCP{SrcPort: uint16(1 + i)}, Payload: []byte{byte(n)}}
				_, err := unix.Write(socket, f.Bytes())
				must(t, err)
			}
		}
	}
	// drain reads a queue until it is empty.
	drain := func(queue int, each func(frame []byte)) {
		buf := make([]byte, 2048)
		for {
			n, err := d.Queue(queue).Read(buf)
			if err == tap.ErrAgain {
				return
			}
			must(t, err)
			each(bytes.Clone(buf[:n]))
		}
	}
	for _, careful := range []bool{true, false} {
		must(t, p.Set(before))
		send(0, rounds)
		must(t, p.Set(after))
		send(rounds, 2*rounds)

		var handed, moved [][]byte
		for i := range queues {
			drain(i, func(frame []byte) {
				if careful && before.Choose(frame).Queue != i {
					moved = append(moved, frame)
				} else {
					handed = append(handed, frame)
				}
			})
		}
		handed = append(handed, moved...)

		next, disorder := map[int]int{}, 0
		for _, frame := range handed {
			if round(frame) != next[flow(frame)] {
				disorder++
			}
			next[flow(frame)]++
		}
		if len(handed) != flows*2*rounds || (disorder == 0) != careful {
			t.Errorf("careful: %v; %d frames, %d out of order", careful, len(handed), disorder)
		}
	}
}

// BenchmarkHostSends measures the time in which the host sends a TCP frame of IPv4 to a
// TAP of four queues: with the host's own choice of the queue, with a program that does
// nothing, and with this program. The three take turns.
func BenchmarkHostSends(b *testing.B) {
	const frames = 256 // fit into one queue
	p := newProgram(b)
	must(b, p.Set(&Config{Types: toeplitz.AllTypes, Hasher: hasher(b, rssKey), Mapping: mapping(b, queues, 0, 1, 2, 3)}))
	nothing, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type:         ebpf.SocketFilter,
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
		License:      "Apache-2.0",
	})
	must(b, err)
	b.Cleanup(func() { must(b, nothing.Close()) })
	d := newTAP(b, "vif1.0", queues)
	socket := packetSocket(b, d)
	var flows [frames][]byte
	for i := range flows {
		flows[i] = packettest.Frame{IPv4: &packettest.IPv4{}, TCP: &packettest.TCP{SrcPort: uint16(2000 + i)}, PadTo: 66}.Bytes()
	}
	send := func() error {
		for _, frame := range flows {
			if _, err := unix.Write(socket, frame); err != nil {
				return err
			}
		}
		return nil
	}
	drain := func() (n int) {
		buf := make([]byte, 2048)
		for i := range queues {
			for {
				if _, err := d.Queue(i).Read(buf); err != nil {
					break
				}
				n++
			}
		}
		return n
	}
	g := bench.Group{Name: "send", Packets: frames}
	for _, peer := range []struct {
		name string
		fd   int
	}{{"default", -1}, {"nothing", nothing.FD()}, {"steered", p.FD()}} {
		g.Peers = append(g.Peers, bench.Peer{Name: peer.name, Run: func() (time.Duration, error) {
			if err := d.SetSteering(peer.fd); err != nil {
				return 0, err
			}
			if err := send(); err != nil { // once to warm up
				return 0, err
			}
			drain()
			began := time.Now()
			err := send()
			took := time.Since(began)
			if n := drain(); err == nil && n != frames {
				err = fmt.Errorf("%d frames of %d", n, frames)
			}
			return took, err
		}})
	}
	for b.Loop() {
		res, err := g.Measure(bench.Limits{Rounds: 200, Tries: 3, Spread: 0.05})
		must(b, err)
		for _, f := range res.Figures {
			b.ReportMetric(f.Median, f.Peer+"-ns/frame")
		}
		b.ReportMetric(100*(res.Figure("steered").Median/res.Figure("default").Median-1), "%over-default")
		b.ReportMetric(res.Spread, "spread")
	}
}
