// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/internal/lab/packettest"
	"github.com/netbackd/netbackd/pkg/tap"
)

// uso are the features of a guest that takes UDP to be cut.
const uso = virtGuestUSO4 | virtGuestUSO6

// vrxCase is a packet from the host.
type vrxCase struct {
	name  string
	frame packettest.Frame
	vnet  tap.VnetHdr
	raw   []byte
	mss   int
	needs uint64 // to be passed on
	never bool   // it cannot be done for the guest
}

// vrxCases returns packets with every offload of the host.
func vrxCases() []vrxCase {
	sctp := packettest.Frame{IPv4: &packettest.IPv4{}, SCTP: &packettest.SCTP{}, Payload: packettest.Pattern(100)}
	unsummed := sctp.Bytes()
	copy(unsummed[14+20+8:], []byte{0, 0, 0, 0})
	cwr := partial(tcp(4, 20000))
	cwr.TCP.Flags |= packettest.CWR
	open4 := partial(packettest.Frame{IPv4: &packettest.IPv4{}, UDP: &packettest.UDP{}, Payload: packettest.Pattern(1401)})
	return []vrxCase{
		{name: "finished", frame: packettest.Frame{IPv4: &packettest.IPv4{}, UDP: &packettest.UDP{}, Payload: packettest.Pattern(1400)}},
		{name: "not IP", frame: packettest.Frame{EtherType: packettest.TypeARP, Payload: packettest.Pattern(46)}},
		{name: "open UDP over IPv4", frame: open4, needs: virtGuestCsum},
		{name: "open TCP over IPv6", frame: partial(tcp(6, 1400)), needs: virtGuestCsum},
		{name: "open TCP behind a tag", frame: partial(tcp(4, 1400, vlan)), needs: virtGuestCsum},
		{name: "open SCTP", frame: sctp, raw: unsummed, vnet: tap.VnetHdr{Flags: tap.VnetNeedsCsum, CsumStart: 34, CsumOffset: 8}},
		{name: "GSO over IPv4", frame: partial(tcp(4, 60000)), mss: 1448, needs: virtGuestTSO4},
		{name: "GSO over IPv6", frame: partial(tcp(6, 33333)), mss: 1428, needs: virtGuestTSO6},
		{name: "GSO behind a tag", frame: partial(tcp(4, 20000, vlan)), mss: 1400, needs: virtGuestTSO4},
		{name: "GSO with segments of several buffers", frame: partial(tcp(4, 20000, vlan)), mss: 5000, needs: virtGuestTSO4},
		{name: "GSO with CWR", frame: cwr, vnet: withECN(vnetOf(cwr, 1448)), mss: 1448, needs: virtGuestTSO4 | virtGuestECN},
		{name: "UDP to be cut", frame: partial(udp6(9000)), vnet: usoOf(partial(udp6(9000)), 1200), needs: uso, never: true},
	}
}

// TestVirtRxOffload sends packets with every offload of the host to guests that take all,
// some or none.
func TestVirtRxOffload(t *testing.T) {
	const guest = uint64(virtGuestCsum | virtGuestTSO4 | virtGuestTSO6 | virtGuestECN | uso)
	guests := []struct {
		name  string
		lacks uint64
	}{
		{"everything", 0},
		{"no ECN and no UDP", virtGuestECN | uso},
		{"no GSO", guest &^ virtGuestCsum},
		{"IPv4 only", virtGuestTSO6 | uso},
		{"nothing", guest},
	}
	formats := []vOptions{
		{features: vModern | uso}, {features: vModern | uso, packed: true, indirect: true},
		{features: vModern | uso, grants: true},
		{features: (vModern | uso) &^ (virtMrgRxbuf | virtVersion1), indirect: true, buffer: []int{10, 4086, 4096, 4096, 4096, 4096, 50000}},
	}
	// The TAP has all offloads, as while a guest changes its own.
	wide := tap.Offload{Csum: true, TSO4: true, TSO6: true, ECN: true, USO: true}
	inFormats(t, allModes[:2], formats, func(t *testing.T, m mode, o vOptions) {
		all := o.features
		o.offload = &wide
		for _, guest := range guests {
			o.features = all &^ guest.lacks
			b := newVbed(t, m, o)
			g := b.guest()
			for _, tt := range vrxCases() {
				what := fmt.Sprintf("%s to a guest that takes %s", tt.name, guest.name)
				v := tt.vnet
				if v == (tap.VnetHdr{}) && tt.frame.Partial {
					v = vnetOf(tt.frame, tt.mss)
				}
				raw := tt.raw
				if raw == nil {
					raw = tt.frame.Bytes()
				}
				g.post(50)
				b.host.send(hostFrame{v, raw})
				b.settle()
				got := g.received()
				finished := tt.frame
				finished.Partial = false
				need := tt.needs | virtGuestCsum
				switch {
				case tt.needs != 0 && o.features&need == need:
					v.HdrLen = 0
					sameVirt(t, what, vgot{Vnet: v, Frame: raw}, got)
				case tt.never:
					if len(got) != 0 || b.stat(DropRxCsum) != 1 {
						t.Errorf("%s: %d packets, %v", what, len(got), b.stats(Drop))
					}
					b.queue().stats.n[DropRxCsum].Store(0)
				case tt.mss != 0:
					var cut []hostFrame
					for _, p := range got {
						cut = append(cut, hostFrame{Frame: p.Frame})
					}
					segments(t, what, cut, tt.frame, tt.mss, 1)
				default:
					if len(got) == 1 {
						got[0].Vnet.Flags &^= tap.VnetDataValid
					}
					sameVirt(t, what, vgot{Frame: finished.Bytes()}, got)
				}
			}
			if d := b.stats(Drop); len(d) > 0 || b.breach() != nil {
				t.Errorf("%s: drops %v, %v", guest.name, d, b.breach())
			}
			b.disconnect()
		}
	})
}

// sameVirt compares a delivery, but for its number of chains.
func sameVirt(t *testing.T, what string, want vgot, got []vgot) {
	t.Helper()
	for i := range got {
		got[i].Chains = 0
		got[i].Vnet.HdrLen = 0 // a hint of the kernel
	}
	if len(got) == 1 && bytes.Equal(got[0].Frame, want.Frame) {
		want.Frame, got[0].Frame = nil, nil
	}
	if diff := cmp.Diff([]vgot{want}, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}
