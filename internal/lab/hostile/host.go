// SPDX-License-Identifier: Apache-2.0

package hostile

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/packettest"
)

// flows is the number of flows of the host's packets, so that all queues get some.
const flows = 64

// floodInterface returns the part that sends packets from the host into an interface, past
// its bridge.
func floodInterface(args LoadArgs) (part, error) {
	ifi, err := net.InterfaceByName(args.Interface)
	if err != nil {
		return nil, err
	}
	hw := [6]byte{2, 0, 0, 0, 0, 2}
	var frames [][]byte
	for i := range flows {
		frames = append(frames, packettest.Frame{
			Dst: hw, IPv4: &packettest.IPv4{}, UDP: &packettest.UDP{SrcPort: uint16(1000 + i), DstPort: 9}, Payload: packettest.Pattern(1400),
		}.Bytes())
	}
	return func(ctx context.Context) (s Strength, err error) {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return s, err
		}
		defer func() { err = errors.Join(err, unix.Close(fd)) }()
		ip := binary.NativeEndian.Uint16([]byte{unix.ETH_P_IP >> 8, unix.ETH_P_IP & 0xff})
		to := &unix.SockaddrLinklayer{Protocol: ip, Ifindex: ifi.Index, Halen: 6, Addr: [8]byte(append(hw[:], 0, 0))}
		pace := newPacer(args.Rate)
		for i := 0; pace.wait(ctx); i++ {
			switch err := unix.Sendto(fd, frames[i%flows], 0, to); err {
			case nil:
				s.Done++
			case unix.ENOBUFS, unix.ENETDOWN: // dropped by the interface
				s.Failed++
				s.Done++
			default:
				return s, fmt.Errorf("send to %s: %w", args.Interface, err)
			}
		}
		return s, nil
	}, nil
}
