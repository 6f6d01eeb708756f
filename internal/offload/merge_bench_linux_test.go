// SPDX-License-Identifier: Apache-2.0

package offload

import (
	"fmt"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/internal/lab/packettest"
	"github.com/netbackd/netbackd/pkg/tap"
)

// burstOf is the number of packets of a burst in the benchmarks.
const burstOf = 44

// burst returns a burst of packets as frames for a TAP: one for each, or one for all.
func burst(b *testing.B, like packettest.Frame, size int, merged bool) (out [][]byte) {
	var raw [][]byte
	for _, f := range flow(like, burstOf, size) {
		raw = append(raw, f.Bytes())
	}
	hdr := make([]byte, vnetLen)
	if !merged {
		for _, f := range raw {
			out = append(out, append(hdr[:vnetLen:vnetLen], f...))
		}
		return out
	}
	for len(raw) > 0 {
		n, v, packet := merge(b, raw, make([]Csum, len(raw)))
		if n < 2 {
			b.Fatalf("%d packets were merged", n)
		}
		v.Encode(hdr)
		out = append(out, append(hdr[:vnetLen:vnetLen], packet...))
		raw = raw[n:]
	}
	return out
}

// BenchmarkForwardMerged compares the cost of packets that the host forwards over a bridge,
// alone and merged: to a device that takes none to be segmented, so that the host does it
// again, and to one that takes them. The time includes the reads there.
func BenchmarkForwardMerged(b *testing.B) {
	for _, to := range []struct {
		name    string
		offload int
	}{{"takes none", 0}, {"takes all", unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_USO4 | unix.TUN_F_USO6}} {
		for name, like := range map[string]packettest.Frame{"TCP": tcp4, "UDP": udp4} {
			for _, merged := range []bool{false, true} {
				if name == "UDP" && !tap.TakesUSO() {
					continue
				}
				b.Run(fmt.Sprintf("%s/%s/merged=%v", to.name, name, merged), func(b *testing.B) {
					p := newPipe(b, to.offload)
					writeBursts(b, p.a, burst(b, like, 1448, merged), func(buf []byte) error {
						_, err := unix.Read(p.b, buf)
						return err
					})
				})
			}
		}
	}
}

// BenchmarkReceiveMerged compares the cost of datagrams to a socket of this host.
func BenchmarkReceiveMerged(b *testing.B) {
	if !tap.TakesUSO() {
		b.Skip("no segmentation of datagrams")
	}
	for _, size := range []int{22, 1472} {
		for _, gro := range []int{0, 1} {
			for _, merged := range []bool{false, true} {
				b.Run(fmt.Sprintf("%d B/UDP_GRO=%d/merged=%v", size, gro, merged), func(b *testing.B) {
					netns.NeedTUN(b)
					fd := openTAP(b, "r", 0)
					must(b, netns.SetMAC("r", net.HardwareAddr{2, 0, 0, 0, 0, 2}), netns.AddAddr("r", "192.0.2.2/24"), netns.Up("r"))
					sock, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
					must(b, err)
					b.Cleanup(func() { unix.Close(sock) })
					must(b, unix.SetsockoptInt(sock, unix.SOL_UDP, unix.UDP_GRO, gro),
						unix.SetsockoptInt(sock, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20),
						unix.Bind(sock, &unix.SockaddrInet4{Port: 53, Addr: netip.MustParseAddr("192.0.2.2").As4()}))
					writeBursts(b, fd, burst(b, udp4, size, merged), func(buf []byte) error {
						_, err := unix.Read(sock, buf)
						return err
					})
				})
			}
		}
	}
}

func must(b *testing.B, errs ...error) {
	b.Helper()
	for _, err := range errs {
		if err != nil {
			b.Fatal(err)
		}
	}
}

// writeBursts measures bursts from their writes to the last read.
func writeBursts(b *testing.B, fd int, frames [][]byte, read func([]byte) error) {
	buf := make([]byte, vnetLen+maxFrame)
	reads := 0
	for b.Loop() {
		for _, f := range frames {
			if _, err := unix.Write(fd, f); err != nil {
				b.Fatal(err)
			}
		}
		for read(buf) == nil {
			reads++
		}
	}
	if reads == 0 {
		b.Error("nothing was received")
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/burstOf, "ns/packet")
	b.ReportMetric(float64(reads)/float64(b.N)/burstOf, "reads/packet")
}
