// SPDX-License-Identifier: Apache-2.0

package offload

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/tap"
)

// TestIntegrationKernelUnmerges: the kernel cuts merged packets for a device without
// offloads into exactly the packets that were merged, in random streams.
func TestIntegrationKernelUnmerges(t *testing.T) {
	p := newPipe(t, 0)
	uso := tap.TakesUSO()
	r := rand.New(rand.NewPCG(3, 4))
	merged := map[uint8]int{}
	for range 150 {
		frames := randomStream(r)
		var raw [][]byte
		var csums []Csum
		for _, f := range frames {
			raw, csums = append(raw, f.Bytes()), append(csums, csumOf(f))
		}
		for i := 0; i < len(raw); {
			n, v, packet := merge(t, raw[i:], csums[i:])
			if n == 0 || v.GSOType == tap.VnetGSOUDP && !uso {
				i++
				continue
			}
			_, got := p.through(v, packet, n)
			for k, f := range frames[i : i+n] {
				f.Partial = false
				if want := f.Bytes(); !bytes.Equal(want, got[k]) {
					t.Fatalf("%+v: segment %d (-sent +kernel's):\n%s", v, k, cmp.Diff(want, got[k]))
				}
			}
			merged[v.GSOType] += n
			i += n
		}
	}
	for _, typ := range []uint8{tap.VnetGSOTCPv4, tap.VnetGSOTCPv6, tap.VnetGSOUDP} {
		if merged[typ] < 500 && (typ != tap.VnetGSOUDP || uso) {
			t.Errorf("type %d: %d packets were merged: too few to prove anything", typ, merged[typ])
		}
	}
}

// TestIntegrationKernelUnmergesEach does so for each kind of packet, those behind tags
// included.
func TestIntegrationKernelUnmergesEach(t *testing.T) {
	p := newPipe(t, 0)
	for name, like := range mergeable() {
		frames := flow(like, 40, 1300)
		frames[39].Payload = frames[39].Payload[:77]
		var raw [][]byte
		for _, f := range frames {
			raw = append(raw, f.Bytes())
		}
		n, v, packet := merge(t, raw, make([]Csum, len(raw)))
		if v.GSOType == tap.VnetGSOUDP && !tap.TakesUSO() {
			continue
		}
		if n != len(frames) {
			t.Errorf("%s: %d packets were merged", name, n)
			continue
		}
		_, got := p.through(v, packet, n)
		for k, want := range raw {
			if !bytes.Equal(want, got[k]) {
				t.Errorf("%s: segment %d (-sent +kernel's):\n%s", name, k, cmp.Diff(want, got[k]))
				break
			}
		}
	}
}

// TestIntegrationMergedStaysMerged: a device that takes large packets gets a merged one as
// it is.
func TestIntegrationMergedStaysMerged(t *testing.T) {
	bits := unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6
	if tap.TakesUSO() {
		bits |= unix.TUN_F_USO4 | unix.TUN_F_USO6
	}
	p := newPipe(t, bits)
	for name, like := range mergeable() {
		if len(like.Tags) > 0 {
			continue // a TAP has no offloads for tagged packets
		}
		var raw [][]byte
		for _, f := range flow(like, 30, 1400) {
			raw = append(raw, f.Bytes())
		}
		_, v, packet := merge(t, raw, make([]Csum, len(raw)))
		if v.GSOType == tap.VnetGSOUDP && !tap.TakesUSO() {
			continue
		}
		headers, got := p.through(v, packet, 1)
		v.HdrLen, headers[0].HdrLen = 0, 0
		if headers[0] != v || !bytes.Equal(got[0], packet) {
			t.Errorf("%s: %+v came out as %+v with %d bytes of %d", name, v, headers[0], len(got[0]), len(packet))
		}
	}
}
