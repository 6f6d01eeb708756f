// SPDX-License-Identifier: Apache-2.0

package offload

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/internal/lab/packettest"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/tap"
)

const vnetLen = 12

func TestMain(m *testing.M) { os.Exit(netns.Main(m)) }

// pipe is two TAP devices on a bridge. Frames written to a come out of b, after the
// kernel segmented or checksummed them if b lacks the offload.
//
//	a --- bridge --- b
type pipe struct {
	t    testing.TB
	a, b int
}

// newPipe makes a pipe. Its end b has the given TUN_F_ offloads.
func newPipe(t testing.TB, offload int) *pipe {
	t.Helper()
	netns.NeedTUN(t)
	// No neighbour discovery among the frames that are compared.
	if err := netns.Sysctl("net/ipv6/conf/default/disable_ipv6", "1"); err != nil {
		t.Logf("IPv6 stays on: %v", err)
	}
	if _, err := netns.AddBridge("br"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netns.Delete("br"); err != nil {
			t.Error(err)
		}
	})
	p := &pipe{t: t, a: openTAP(t, "a", 0), b: openTAP(t, "b", offload)}
	for _, name := range []string{"a", "b"} {
		if err := netns.Attach(name, "br"); err != nil {
			t.Fatal(err)
		}
		if err := netns.Up(name); err != nil {
			t.Fatal(err)
		}
	}
	// The ports begin to forward when the bridge has noticed their carrier.
	probe := packettest.Frame{EtherType: 0x88b5, Payload: packettest.Pattern(46)}.Bytes()
	for range 100 {
		p.write(tap.VnetHdr{}, probe)
		if _, _, ok := p.read(50 * time.Millisecond); ok {
			for ok {
				_, _, ok = p.read(50 * time.Millisecond)
			}
			return p
		}
	}
	t.Fatal("the bridge does not forward")
	return nil
}

func openTAP(t testing.TB, name string, offload int) int {
	t.Helper()
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		t.Fatal(err)
	}
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, vnetLen); err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, offload); err != nil {
		t.Fatal(err)
	}
	return fd
}

func (p *pipe) write(v tap.VnetHdr, frame []byte) {
	p.t.Helper()
	if err := p.tryWrite(v, frame); err != nil {
		p.t.Fatalf("TAP refuses %+v: %v", v, err)
	}
}

func (p *pipe) tryWrite(v tap.VnetHdr, frame []byte) error {
	b := make([]byte, vnetLen, vnetLen+len(frame))
	b[0], b[1] = v.Flags, v.GSOType
	binary.NativeEndian.PutUint16(b[2:], v.HdrLen)
	binary.NativeEndian.PutUint16(b[4:], v.GSOSize)
	binary.NativeEndian.PutUint16(b[6:], v.CsumStart)
	binary.NativeEndian.PutUint16(b[8:], v.CsumOffset)
	_, err := unix.Write(p.a, append(b, frame...))
	return err
}

// read takes the next frame from b, if one arrives within wait. It skips frames that the
// namespace sends by itself (IGMP, for one): they have another source address.
func (p *pipe) read(wait time.Duration) (tap.VnetHdr, []byte, bool) {
	p.t.Helper()
	fds := []unix.PollFd{{Fd: int32(p.b), Events: unix.POLLIN}}
	b := make([]byte, vnetLen+maxFrame)
	n := 0
	for !bytes.HasPrefix(b[vnetLen+6:max(n, vnetLen+6)], []byte{2, 0, 0, 0, 0, 1}) {
		ready, err := unix.Poll(fds, int(wait.Milliseconds()))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			p.t.Fatal(err)
		}
		if ready == 0 {
			return tap.VnetHdr{}, nil, false
		}
		if n, err = unix.Read(p.b, b); err != nil {
			p.t.Fatal(err)
		}
	}
	return tap.VnetHdr{
		Flags:      b[0],
		GSOType:    b[1],
		HdrLen:     binary.NativeEndian.Uint16(b[2:]),
		GSOSize:    binary.NativeEndian.Uint16(b[4:]),
		CsumStart:  binary.NativeEndian.Uint16(b[6:]),
		CsumOffset: binary.NativeEndian.Uint16(b[8:]),
	}, b[vnetLen:n], true
}

const maxFrame = etherLen + 2*vlanLen + maxIPv6

// patience limits the time that a frame may take through the bridge.
const patience = 5 * time.Second

// through sends a frame into the pipe and reads up to n frames from it.
func (p *pipe) through(v tap.VnetHdr, frame []byte, n int) (headers []tap.VnetHdr, frames [][]byte) {
	p.t.Helper()
	p.write(v, frame)
	for range n {
		h, b, ok := p.read(patience)
		if !ok {
			p.t.Fatalf("%d frames came out, want %d", len(frames), n)
		}
		headers, frames = append(headers, h), append(frames, b)
	}
	return headers, frames
}

// vnet returns the header for a frame with a partial checksum and segments of mss bytes.
func vnet(t *testing.T, frame []byte, mss uint16) tap.VnetHdr {
	t.Helper()
	h, err := Parse(frame, len(frame))
	if err != nil {
		t.Fatal(err)
	}
	v := tap.VnetHdr{Flags: tap.VnetNeedsCsum, HdrLen: h.End, CsumStart: h.L4, CsumOffset: h.csumOffset()}
	if mss != 0 {
		v.GSOSize, v.GSOType = mss, tap.VnetGSOTCPv4
		if h.IPv == 6 {
			v.GSOType = tap.VnetGSOTCPv6
		}
		if h.TCPFlags&flagCWR != 0 {
			v.GSOType |= tap.VnetGSOECN
		}
	}
	return v
}

// TestIntegrationKernelCutsAlike: the kernel cuts a frame for a device without offloads
// into the same segments, byte by byte.
func TestIntegrationKernelCutsAlike(t *testing.T) {
	p := newPipe(t, 0)
	for name, f := range gsoFrames() {
		for _, size := range []struct{ payload, mss int }{
			{4000, 1448}, {2896, 1448}, {100, 1}, {100, 7}, {1449, 1448}, {20000, 536}, {65000, 1400},
		} {
			f.Payload = packettest.Pattern(size.payload)
			f.Partial = true
			frame := f.Bytes()
			want := segments(t, frame, size.mss)
			_, got := p.through(vnet(t, frame, uint16(size.mss)), frame, len(want))
			for i := range want {
				if !bytes.Equal(want[i], got[i]) {
					t.Fatalf("%s, %d by %d: segment %d (-ours +kernel's):\n%s",
						name, size.payload, size.mss, i, cmp.Diff(want[i], got[i]))
				}
			}
		}
	}
}

// TestIntegrationKernelCompletesAlike: the kernel computes the same checksum.
func TestIntegrationKernelCompletesAlike(t *testing.T) {
	p := newPipe(t, 0)
	for name, f := range map[string]packettest.Frame{
		"TCP over IPv4":       {IPv4: ip4, TCP: tcp, Payload: packettest.Pattern(1001)},
		"TCP over IPv6":       {IPv6: ip6, TCP: tcp, Payload: packettest.Pattern(1000)},
		"UDP over IPv4":       {IPv4: ip4, UDP: udp, Payload: packettest.Pattern(50)},
		"UDP over IPv6":       {IPv6: ip6, UDP: udp, Payload: packettest.Pattern(51)},
		"UDP, sum of zero":    {IPv4: ip4, UDP: udp, Payload: []byte{0xdf, 0x60}},
		"behind a tag":        {Tags: qTag, IPv4: ip4, UDP: udp, Payload: packettest.Pattern(50)},
		"behind two tags":     {Tags: qTags, IPv6: ip6, TCP: tcp, Payload: packettest.Pattern(50)},
		"extension headers":   {IPv6: ip6ext(packettest.Options(0, 8)), TCP: tcp},
		"IPv4 with options":   {IPv4: &packettest.IPv4{Options: []byte{1, 1}}, TCP: tcp},
		"authenticated":       {IPv6: ip6ext(packettest.Auth(12)), UDP: udp, Payload: packettest.Pattern(9)},
		"whole in a fragment": {IPv6: ip6ext(packettest.Fragment(0, false, 9)), UDP: udp, Payload: packettest.Pattern(9)},
	} {
		f.Partial = true
		frame := f.Bytes()
		v := vnet(t, frame, 0)
		_, got := p.through(v, frame, 1)
		if err := Complete(v.CsumStart, v.CsumOffset, frame); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(frame, got[0]); diff != "" {
			t.Errorf("%s (-ours +kernel's):\n%s", name, diff)
		}
	}
}

// TestIntegrationFramesOfTheKernel: PlanRx has a plan for every guest for the frames that
// the kernel gives to a device with offloads, and their payload arrives intact.
func TestIntegrationFramesOfTheKernel(t *testing.T) {
	p := newPipe(t, unix.TUN_F_CSUM|unix.TUN_F_TSO4|unix.TUN_F_TSO6)
	for name, f := range gsoFrames() {
		for _, mss := range []uint16{0, 1400} {
			f.Payload = packettest.Pattern(1300)
			if mss != 0 {
				f.Payload = packettest.Pattern(9000)
			}
			f.Partial = true
			frame := f.Bytes()
			frames := 1
			sent := vnet(t, frame, mss)
			if sent.GSOType&tap.VnetGSOECN != 0 {
				// The end b does not have TUN_F_TSO_ECN.
				frames = len(segments(t, frame, int(mss)))
			}
			headers, out := p.through(sent, frame, frames)
			for _, guest := range []Guest{bare, linux, only4, noCsum6} {
				got := deliver(t, headers, out, guest)
				if !bytes.Equal(got, f.Payload) {
					t.Errorf("%s, MSS %d, %+v: payload was changed", name, mss, guest)
				}
			}
			if len(f.Tags) > 0 && NeedsParse(headers[0].Flags, headers[0].GSOType) {
				t.Logf("%s: the kernel leaves tagged frames open: %+v", name, headers[0])
			}
		}
	}
}

// deliver carries out the plans and returns the payload of all frames. It checks complete
// checksums, and completes and segments as the guest would.
func deliver(t *testing.T, headers []tap.VnetHdr, frames [][]byte, g Guest) (payload []byte) {
	t.Helper()
	for i, frame := range frames {
		frame = bytes.Clone(frame)
		h, err := Parse(frame, len(frame))
		if err != nil {
			t.Fatal(err)
		}
		p, err := PlanRx(headers[i], h, len(frame), g)
		if err != nil {
			t.Fatalf("%+v: %v", headers[i], err)
		}
		if p.WritePseudo {
			WritePseudo(frame, h, len(frame))
		}
		switch p.Action {
		case ActPass:
			if p.CsumBlank {
				if h.VLANs > 0 {
					t.Errorf("tagged frame left open: %+v", p)
				}
				if err := Complete(h.L4, h.csumOffset(), frame); err != nil {
					t.Fatal(err)
				}
			}
		case ActComplete:
			if err := Complete(p.CsumStart, p.CsumOffset, frame); err != nil {
				t.Fatal(err)
			}
		case ActSegment:
			for _, s := range segments(t, frame, int(p.GSOSize)) {
				d, err := packettest.Verify(s)
				if err != nil {
					t.Errorf("segment: %v", err)
				}
				payload = append(payload, d.Payload...)
			}
			continue
		default:
			t.Fatalf("unexpected plan %+v", p)
		}
		d, err := packettest.Verify(frame)
		if err != nil {
			t.Errorf("%+v: %v", p, err)
		}
		payload = append(payload, d.Payload...)
	}
	return payload
}

// TestIntegrationKernelTakesPlans: the kernel accepts the header of every plan, for any
// packet.
func TestIntegrationKernelTakesPlans(t *testing.T) {
	p := newPipe(t, 0)
	rnd := rand.New(rand.NewPCG(1, 2))
	var frames [][]byte
	frames = append(frames, seeds()...)
	for _, f := range gsoFrames() {
		f.Payload = packettest.Pattern(300)
		frames = append(frames, f.Bytes())
	}
	planned := 0
	for range 20000 {
		b := bytes.Clone(frames[rnd.IntN(len(frames))])
		for range rnd.IntN(3) {
			b[12+rnd.IntN(len(b)-12)] = byte(rnd.Uint32())
		}
		m := TxMeta{CsumBlank: rnd.IntN(4) > 0, GSOType: netif.GSOType(rnd.IntN(3)), GSOSize: uint16(rnd.IntN(400))}
		h, err := Parse(b, len(b))
		if err != nil {
			continue
		}
		plan, err := PlanTx(m, h, len(b))
		if err != nil {
			continue
		}
		if plan.WritePseudo {
			WritePseudo(b, h, len(b))
		}
		planned++
		if err := p.tryWrite(plan.Header, b); err != nil {
			t.Fatalf("kernel refuses %+v of %+v, %x: %v", plan.Header, h, b, err)
		}
	}
	if planned < 1000 {
		t.Errorf("only %d plans were tried", planned)
	}
}
