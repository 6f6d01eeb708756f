// SPDX-License-Identifier: Apache-2.0

package offload_test

import (
	"fmt"

	"github.com/netbackd/netbackd/internal/lab/packettest"
	"github.com/netbackd/netbackd/internal/offload"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/tap"
)

// A guest sends a TCP packet with a partial checksum and a GSO extra. Its first
// 128 bytes are in private memory.
func ExamplePlanTx() {
	packet := packettest.Frame{
		IPv4:    &packettest.IPv4{},
		TCP:     &packettest.TCP{},
		Payload: make([]byte, 20000),
		Partial: true,
	}.Bytes()
	head, total := packet[:128], len(packet)
	meta := offload.TxMeta{CsumBlank: true, GSOType: netif.GSOTCPv4, GSOSize: 1448}

	h, err := offload.Parse(head, total)
	if err != nil {
		fmt.Println("drop:", err)
		return
	}
	plan, err := offload.PlanTx(meta, h, total)
	if err != nil {
		fmt.Println("drop:", err)
		return
	}
	if plan.WritePseudo {
		offload.WritePseudo(head, h, total)
	}
	fmt.Printf("%+v\n", plan.Header)
	// Output: {Flags:1 GSOType:1 HdrLen:54 GSOSize:1448 CsumStart:34 CsumOffset:16}
}

// A VLAN tagged TCP packet goes to a guest whose frontend, like all, can take
// offloads only without a tag.
func ExamplePlanRx() {
	frame := packettest.Frame{
		Tags:    []packettest.Tag{{TCI: 42}},
		IPv4:    &packettest.IPv4{},
		TCP:     &packettest.TCP{Flags: packettest.ACK | packettest.PSH},
		Payload: make([]byte, 4000),
		Partial: true,
	}.Bytes()
	vnet := tap.VnetHdr{
		Flags:   tap.VnetNeedsCsum,
		GSOType: tap.VnetGSOTCPv4, GSOSize: 1448,
		CsumStart: 38, CsumOffset: 16,
	}
	guest := offload.Guest{CsumIPv4: true, GSOTCPv4: true}

	h, _ := offload.Parse(frame, len(frame))
	plan, err := offload.PlanRx(vnet, h, len(frame), guest)
	if err != nil {
		fmt.Println("drop:", err)
		return
	}
	if plan.WritePseudo {
		offload.WritePseudo(frame, h, len(frame))
	}
	switch plan.Action {
	case offload.ActPass:
	case offload.ActComplete:
		err = offload.Complete(plan.CsumStart, plan.CsumOffset, frame)
	case offload.ActCompleteSCTP:
		err = offload.CompleteSCTP(plan.CsumStart, frame)
	case offload.ActSegment:
		var s offload.Segmenter
		err = s.Init(frame, int(plan.GSOSize))
		buf := make([]byte, s.MaxLen())
		for s.Left() > 0 && err == nil {
			var n int
			if n, err = s.Next(buf); err == nil {
				p, bad := packettest.Verify(buf[:n])
				fmt.Println(len(p.Payload), "bytes, flags", p.Flags, bad)
			}
		}
	}
	fmt.Println(err)
	// Output:
	// 1448 bytes, flags 16 <nil>
	// 1448 bytes, flags 16 <nil>
	// 1104 bytes, flags 24 <nil>
	// <nil>
}
