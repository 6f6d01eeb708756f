// SPDX-License-Identifier: Apache-2.0

package vhostuser_test

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/vhostuser"
	"github.com/netbackd/netbackd/pkg/virtqueue"
)

// sink is the smallest back end: a device that reads what its guest sends.
type sink struct {
	done chan error
	stop int // an eventfd
	q    *virtqueue.Split
	got  chan string
}

func (s *sink) SetFeatures(uint64) error                           { return nil }
func (s *sink) SetMemory(*vhostuser.Table, []vhostuser.Ring) error { return nil }
func (s *sink) UpdateRing(vhostuser.Ring) error                    { return nil }
func (s *sink) SetLog(*virtqueue.Log) error                        { return nil }
func (s *sink) SetStatus(uint8) error                              { return nil }
func (s *sink) Reset() error                                       { return nil }
func (s *sink) SetMTU(uint16) error                                { return nil }
func (s *sink) SendRARP([6]byte) error                             { return nil }

// StartRing gives the ring to a goroutine of its own.
func (s *sink) StartRing(r vhostuser.Ring, t *vhostuser.Table, _ *virtqueue.Log) (err error) {
	if s.q, err = virtqueue.NewSplit(r.Config(t), r.SplitRings()); err != nil {
		return err
	}
	if s.stop, err = unix.Eventfd(0, unix.EFD_CLOEXEC); err != nil {
		return err
	}
	s.done = make(chan error, 1)
	go func() { s.done <- s.serve(r) }()
	return nil
}

// StopRing waits for the goroutine, after which the ring is not touched.
func (s *sink) StopRing(int) (uint32, error) {
	if err := vhostuser.Signal(s.stop); err != nil {
		return 0, err
	}
	err := <-s.done
	return s.q.Base(), err
}

// serve takes chains at each kick.
func (s *sink) serve(r vhostuser.Ring) error {
	defer unix.Close(s.stop)
	batch := virtqueue.NewBatch(16)
	wait := []unix.PollFd{{Fd: int32(r.Kick), Events: unix.POLLIN}, {Fd: int32(s.stop), Events: unix.POLLIN}}
	var count [8]byte
	for {
		if _, err := unix.Poll(wait, -1); err != nil && err != unix.EINTR {
			return err
		}
		if wait[1].Revents != 0 {
			return nil
		}
		_, _ = unix.Read(r.Kick, count[:]) // does not block
		for more := true; more; {
			if _, err := s.q.Take(batch, 16); err != nil {
				return err
			}
			for i := range batch.Len() {
				for _, p := range batch.Readable(i) {
					s.got <- string(p.Mem)
				}
			}
			if s.q.Publish(batch) {
				if err := vhostuser.Signal(r.Call); err != nil {
					return err
				}
			}
			var err error
			if more, err = s.q.Arm(); err != nil {
				return err
			}
		}
	}
}

// A back end and a front end talk over a socket pair, and a buffer goes from one to the
// other through shared memory.
func Example() {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	check(err)
	back, err := vhostuser.NewConn(fds[0])
	check(err)
	front, err := vhostuser.NewConn(fds[1])
	check(err)

	// The back end.
	dev := &sink{got: make(chan string)}
	session := vhostuser.NewBackend(back, vhostuser.BackendConfig{
		Features:         1 << 32, // VIRTIO_F_VERSION_1
		ProtocolFeatures: vhostuser.ProtocolNet,
		Rings:            2,
	}, dev)
	ended := make(chan error)
	go func() { ended <- session.Serve(context.Background()) }()

	// The guest: memory, a ring at its start and a buffer behind it.
	const size, addr, data = 1 << 16, 0x100000, 0x8000
	fd, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC)
	check(err)
	check(unix.Ftruncate(fd, size))
	mem, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	check(err)
	driver, err := virtqueue.NewSplitDriver(virtqueue.DriverConfig{Size: 16}, virtqueue.SplitRingsIn(mem, 16))
	check(err)
	kick, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	check(err)

	// The front end.
	f := vhostuser.NewFrontend(front)
	_, _, err = f.Negotiate(1<<32, vhostuser.ProtocolNet)
	check(err)
	check(f.SetMemory([]vhostuser.Region{{Guest: addr, Size: size, User: addr}}, []int{fd}))
	avail, used, _ := virtqueue.SplitOffsets(16)
	check(f.StartRing(vhostuser.VringAddr{
		Index: 1, Descriptor: addr, Available: addr + uint64(avail), Used: addr + uint64(used),
	}, 16, 0, kick, -1))

	n := copy(mem[data:], "hello")
	driver.Add(virtqueue.Buffer{Addr: addr + data, Len: uint32(n)})
	if driver.Publish() {
		check(vhostuser.Signal(kick))
	}
	fmt.Println(<-dev.got)
	base, err := f.StopRing(1)
	check(err)
	fmt.Println("stopped at", base)

	check(f.Close())
	check(<-ended)
	// Output:
	// hello
	// stopped at 1
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}
