// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bytes"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/internal/lab/packettest"
	"github.com/netbackd/netbackd/pkg/tap"
)

// diffFrames compares frames, and explains a difference.
func diffFrames(want, got [][]byte) string {
	if slices.EqualFunc(want, got, bytes.Equal) {
		return ""
	}
	return "frames (-want +got):\n" + cmp.Diff(want, got)
}

func vframes(got []vgot) (frames [][]byte) {
	for _, p := range got {
		frames = append(frames, p.Frame)
	}
	return frames
}

// TestVirtRx delivers packets of all sizes to buffers of all shapes.
func TestVirtRx(t *testing.T) {
	buffers := [][]int{{2048}, {1526}, {12, 1514}, {70000}, {4, 5, 1, 300, 4000}, {65562}}
	inFormats(t, allModes, vFormats, func(t *testing.T, m mode, o vOptions) {
		for _, buffer := range buffers {
			o.buffer = buffer
			b := newVbed(t, m, o)
			g := b.guest()
			var want, got [][]byte
			for _, n := range []int{18, 60, 1000, 1460, 1472, 2000, 2006, 2007, 3000, 9000, 18, 30000, 60000, 65000} {
				g.post(64)
				frame := udp(n, uint16(n))
				want = append(want, frame)
				b.host.sendPlain(frame)
				b.settle()
				got = append(got, vframes(g.received())...)
			}
			if diff := diffFrames(want, got); diff != "" {
				t.Fatalf("buffers of %v: %s", buffer, diff)
			}
			if err := b.breach(); err != nil || len(b.warned) > 0 {
				t.Error(err, b.warned)
			}
			b.disconnect()
		}
	})
}

// TestVirtRxLarge delivers many packets that are read into the guest's buffers, others among
// them, and some that the guest cannot take as they are.
func TestVirtRxLarge(t *testing.T) {
	buffers := [][]int{{4096}, {1536}, {12, 500, 3584}, {700}, {65569}, {1, 2, 3, 70000}}
	formats := []vOptions{{features: vModern, indirect: true, size: 1024}, {features: vModern, packed: true, indirect: true, size: 1024}}
	wide := tap.Offload{Csum: true, TSO4: true, TSO6: true}
	inFormats(t, vnetModes, formats, func(t *testing.T, m mode, o vOptions) {
		o.offload = &wide
		for _, o.buffer = range buffers {
			for _, lacks := range []uint64{0, virtGuestTSO6, virtGuestTSO6 | virtGuestTSO4} {
				o.features = vModern &^ lacks
				if o.packed {
					o.features |= virtRingPacked
				}
				if o.buffer[len(o.buffer)-1] > maxFrame {
					o.features &^= virtMrgRxbuf // a chain for each packet
				}
				b := newVbed(t, m, o)
				g := b.guest()
				b.queue().reader.large.last = true
				var want []packettest.Frame
				var got []vgot
				for i, n := range []int{60000, 60000, 50000, 300, 60000, 458, 459, 460, 461, 2049, 60000, 60000, 65000, 30, 60000} {
					f := partial(tcp(4+2*(i%2), n))
					f.TCP.Seq = uint32(i + 1)
					want = append(want, f)
					g.post(60)
					v := vnetOf(f, 1400)
					if n <= 1400 {
						v = vnetOf(f, 0)
					}
					b.host.send(hostFrame{v, f.Bytes()})
					if i%4 == 3 {
						b.settle()
						got = append(got, g.received()...)
						g.post(60)
						b.settle()
						got = append(got, g.received()...)
					}
				}
				for range 10 {
					b.settle()
					got = append(got, g.received()...)
					g.post(60)
				}
				k := 0
				for _, f := range want {
					cutIt := len(f.Payload) > 1400 && (f.IPv6 != nil && lacks&virtGuestTSO6 != 0 || f.IPv4 != nil && lacks&virtGuestTSO4 != 0)
					if !cutIt {
						if k >= len(got) || !bytes.Equal(got[k].Frame, f.Bytes()) {
							t.Fatalf("buffers of %v, without %#x: packet %d of %d bytes differs", o.buffer, lacks, f.TCP.Seq, len(f.Payload))
						}
						k++
						continue
					}
					count := (len(f.Payload) + 1399) / 1400
					if k+count > len(got) {
						t.Fatalf("buffers of %v: %d segments are missing", o.buffer, k+count-len(got))
					}
					var frames []hostFrame
					for _, p := range got[k : k+count] {
						frames = append(frames, hostFrame{Frame: p.Frame})
					}
					segments(t, "a packet to be cut", frames, f, 1400, 1)
					k += count
				}
				if k != len(got) || len(b.stats(Drop)) > 0 || b.breach() != nil {
					t.Errorf("buffers of %v: %d packets too many, drops %v, %v", o.buffer, len(got)-k, b.stats(Drop), b.breach())
				}
				b.disconnect()
			}
		}
	})
}
