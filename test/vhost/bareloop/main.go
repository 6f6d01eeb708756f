// SPDX-License-Identifier: Apache-2.0

// Bareloop is the least that a back end of vhost-user can do in Go: one loop between the
// rings of one pair and a TAP, on pkg/virtqueue. It checks no packet, counts nothing, and
// takes only chains of one piece. test/bench-vhost compares netbackd with it.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"runtime/debug"

	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/vhostuser"
)

// features are VERSION_1, MRG_RXBUF, INDIRECT_DESC, EVENT_IDX and IN_ORDER.
const features = 1<<32 | 1<<15 | 1<<28 | 1<<29 | 1<<35

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: bareloop SOCKET TAP")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "bareloop:", err)
		os.Exit(1)
	}
}

func run(socket, name string) error {
	dev, err := tap.Create(tap.Config{Name: name, Single: true, VnetHdr: true})
	if err != nil {
		return err
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return err
	}
	l, err := newLoop(dev.Queue(0).FD())
	if err != nil {
		return err
	}
	debug.SetGCPercent(-1) // the loop sleeps without the scheduler's knowledge, and would hold up a collection
	fmt.Println("ready")
	conn, err := listener.AcceptUnix()
	if err != nil {
		return err
	}
	go l.run()
	b := vhostuser.NewBackend(conn, vhostuser.BackendConfig{
		Features: features, ProtocolFeatures: vhostuser.ProtocolNet, Rings: 2,
	}, l)
	return b.Serve(context.Background())
}
