// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/nlsock"
)

// counter counts the frames to one guest that enter a bridge, and those that leave it
// through the guest's interface. The difference was lost. Frames are counted as they pass
// between interfaces, so a large TCP frame that the interface needs segmented may leave
// as several.
type counter struct {
	fd      int
	bridge  int
	ports   map[int]bool // ports of the bridge when the counting began
	entered int          // frames that entered the bridge
	left    map[int]int  // frames that left it, by interface
}

// startCounter starts counting frames to mac on a bridge.
func startCounter(bridge int, mac net.HardwareAddr) (*counter, error) {
	if len(mac) != 6 {
		return nil, fmt.Errorf("%q is not a guest's MAC address", mac)
	}
	c := &counter{bridge: bridge, ports: map[int]bool{}, left: map[int]int{}}
	links, err := dump(nlsock.LinkList)
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		if l.Attrs().MasterIndex == bridge {
			c.ports[l.Attrs().Index] = true
		}
	}
	// Without a protocol the socket receives nothing until the filter is attached.
	c.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("packet socket: %w", err)
	}
	err = errors.Join(
		unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20),
		unix.SetsockoptSockFprog(c.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, destinationIs(mac)),
		unix.Bind(c.fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL)}),
	)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("packet socket: %w", err), unix.Close(c.fd))
	}
	return c, nil
}

// destinationIs makes a filter that passes one byte of each frame to mac.
func destinationIs(mac net.HardwareAddr) *unix.SockFprog {
	prog := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 3, K: binary.BigEndian.Uint32(mac)},
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: 4},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: uint32(binary.BigEndian.Uint16(mac[4:]))},
		{Code: unix.BPF_RET | unix.BPF_K, K: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}
	return &unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

// transit is the time that a frame may take through the bridge: one softirq, which a
// busy host may delay.
const transit = 20 * time.Millisecond

// stop waits until the last frame has passed the bridge and ends the counting. Frames that
// reached the guest left the bridge through the given interfaces. more is set if the count
// is incomplete.
func (c *counter) stop(through ...int) (lost int, more bool, err error) {
	time.Sleep(transit)
	c.read()
	stats, err := unix.GetsockoptTpacketStats(c.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err = errors.Join(err, unix.Close(c.fd)); err != nil {
		return 0, false, os.NewSyscallError("packet socket", err)
	}
	lost = c.entered
	for _, index := range through {
		lost -= c.left[index]
	}
	return max(lost, 0), stats.Drops > 0, nil
}

// read counts the frames in the socket's buffer. It holds some 30,000: 16 MB, of which a
// frame takes about 500 bytes.
func (c *counter) read() {
	var frame [1]byte
	for {
		_, from, err := unix.Recvfrom(c.fd, frame[:], 0)
		if err == unix.EINTR {
			continue
		}
		at, ok := from.(*unix.SockaddrLinklayer)
		if err != nil || !ok {
			return
		}
		c.count(at.Ifindex, at.Pkttype == unix.PACKET_OUTGOING)
	}
}

func (c *counter) count(index int, out bool) {
	switch {
	case out && index == c.bridge, !out && c.ports[index]:
		c.entered++ // from the host itself, or from another port
	case out:
		c.left[index]++
	}
}
