// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/foreign"
	"github.com/netbackd/netbackd/internal/lab/packettest"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/vhostuser"
	"github.com/netbackd/netbackd/pkg/virtqueue"
)

// A batch of the front end of this file, how many there are, and the pause between two. The
// back end sleeps in it.
const (
	batchPackets = 32
	batches      = 500
	pause        = 2 * time.Millisecond
)

// Memory of the front end: the ring at the start, then the packets.
const (
	ringSize   = 256
	packetsAt  = 64 << 10
	packetRoom = 2048
	memorySize = packetsAt + ringSize*packetRoom
)

// txRing is the ring of packets from the guest.
const txRing = 1

// txFront is a front end with nothing but a ring for packets from the guest.
type txFront struct {
	session *vhostuser.Frontend
	driver  *virtqueue.SplitDriver
	kick    int
	packet  int // bytes, with the vnet header
}

// wakes measures how often the back end wakes for a batch of packets.
func (b *bed) wakes() error {
	back, err := b.startNetbackd("wnb", true)
	if err != nil {
		return err
	}
	p := &peer{name: "netbackd", tap: "wnb", back: back}
	b.peers = append(b.peers, p)
	f, err := newTxFront(b.path("wnb"))
	if err != nil {
		return err
	}
	defer func() { _ = f.session.Close() }()
	if err := f.send(20); err != nil {
		return err
	}
	before, err := foreign.Threads(back.PID())
	if err != nil {
		return err
	}
	if err := f.send(batches); err != nil {
		return err
	}
	after, err := foreign.Threads(back.PID())
	if err != nil {
		return err
	}
	// The worker is the thread that took most time. The Go runtime has a thread that looks
	// at the others and sleeps in between; it is not part of the data path.
	var worker foreign.Usage
	for id, u := range after {
		if u = u.Sub(before[id]); u.CPU > worker.CPU {
			worker = u
		}
	}
	b.report.AtMost("W1", fmt.Sprintf("wakes of the worker per batch of %d packets", batchPackets), float64(worker.Wakes)/batches, 1.05, false)
	return nil
}

// newTxFront connects to a back end and starts the ring.
func newTxFront(socket string) (*txFront, error) {
	memory, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	if err := unix.Ftruncate(memory, memorySize); err != nil {
		return nil, err
	}
	mem, err := unix.Mmap(memory, 0, memorySize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return nil, err
	}
	f := &txFront{session: vhostuser.NewFrontend(conn)}
	if _, _, err := f.session.Negotiate(1<<32|1<<29, vhostuser.ProtocolReplyAck); err != nil { // VERSION_1, EVENT_IDX
		return nil, err
	}
	if err := f.session.SetMemory([]vhostuser.Region{{Size: memorySize}}, []int{memory}); err != nil {
		return nil, err
	}
	if f.driver, err = virtqueue.NewSplitDriver(virtqueue.DriverConfig{Size: ringSize, EventIdx: true}, virtqueue.SplitRingsIn(mem, ringSize)); err != nil {
		return nil, err
	}
	if f.kick, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, err
	}
	frame := packettest.Frame{IPv4: &packettest.IPv4{}, UDP: &packettest.UDP{}, Payload: packettest.Pattern(22)}.Bytes()
	for i := range ringSize {
		f.packet = tap.VnetHdrLen + copy(mem[packetsAt+i*packetRoom+tap.VnetHdrLen:], frame)
	}
	avail, used, _ := virtqueue.SplitOffsets(ringSize)
	return f, f.session.StartRing(vhostuser.VringAddr{Index: txRing, Available: uint64(avail), Used: uint64(used)}, ringSize, 0, f.kick, -1)
}

// send sends batches, one after the other has been taken and the back end sleeps.
func (f *txFront) send(n int) error {
	for range n {
		for i := range batchPackets {
			f.driver.Add(virtqueue.Buffer{Addr: uint64(packetsAt + i*packetRoom), Len: uint32(f.packet)})
		}
		if f.driver.Publish() {
			if _, err := unix.Write(f.kick, []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
				return err
			}
		}
		deadline := time.Now().Add(5 * time.Second)
		for done := 0; done < batchPackets; {
			if _, _, ok := f.driver.Poll(); ok {
				done++
				continue
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("the back end has taken %d packets of %d", done, batchPackets)
			}
			time.Sleep(50 * time.Microsecond)
		}
		time.Sleep(pause)
	}
	return nil
}
