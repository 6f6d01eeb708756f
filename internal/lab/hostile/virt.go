// SPDX-License-Identifier: Apache-2.0

package hostile

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/vhostuser"
	"github.com/netbackd/netbackd/pkg/virtqueue"
)

// The memory of a front end of vhost-user: two rings, the table of an indirect descriptor, and
// data.
const (
	virtSize  = 1 << 20
	virtGuest = 0x4000_0000
	virtUser  = 0x7a00_0000_0000
	virtRing  = 1024 // descriptors of a ring
	virtRoom  = 0x8000
	virtTable = 2 * virtRoom
	virtData  = virtTable + virtRoom
	virtHdr   = 12 // of a packet

	virtFeatures = 1<<15 | 1<<28 | 1<<32 // mergeable buffers, indirect descriptors, version 1

	descNext     = 1
	descWrite    = 2
	descIndirect = 4
	noNotify     = 1 // in the flags of the used ring
)

// virt is a front end of vhost-user with one pair of rings. It belongs to the goroutine of its
// load.
type virt struct {
	socket string
	f      *vhostuser.Frontend // nil: not connected
	fd     int
	mem    []byte
	kick   [2]int
	call   [2]int
	avail  uint16 // index of the ring for sending
}

func newVirt(socket string) (_ *virt, err error) {
	v := &virt{socket: socket, fd: -1, kick: [2]int{-1, -1}, call: [2]int{-1, -1}}
	defer func() {
		if err != nil {
			err = errors.Join(err, v.leave())
		}
	}()
	if v.fd, err = unix.MemfdCreate("hostile", unix.MFD_CLOEXEC); err != nil {
		return v, err
	}
	if err = unix.Ftruncate(v.fd, virtSize); err != nil {
		return v, err
	}
	if v.mem, err = unix.Mmap(v.fd, 0, virtSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return v, err
	}
	for i := range 2 {
		for _, fd := range []*int{&v.kick[i], &v.call[i]} {
			if *fd, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
				return v, err
			}
		}
	}
	return v, v.connect()
}

func (v *virt) leave() error {
	err := v.disconnect()
	if v.mem != nil {
		err = errors.Join(err, unix.Munmap(v.mem))
	}
	for _, fd := range []int{v.fd, v.kick[0], v.kick[1], v.call[0], v.call[1]} {
		if fd >= 0 {
			err = errors.Join(err, unix.Close(fd))
		}
	}
	return err
}

func (v *virt) disconnect() (err error) {
	if v.f != nil {
		err = v.f.Close()
	}
	v.f = nil
	return err
}

// connect begins a session with empty rings.
func (v *virt) connect() error {
	c, err := net.Dial("unix", v.socket)
	if err != nil {
		return err
	}
	v.f = vhostuser.NewFrontend(c.(*net.UnixConn))
	if _, _, err := v.f.Negotiate(virtFeatures, vhostuser.ProtocolNet); err != nil {
		return err
	}
	clear(v.mem[:2*virtRoom])
	v.avail = 0
	if err := v.f.SetMemory([]vhostuser.Region{{Guest: virtGuest, User: virtUser, Size: virtSize}}, []int{v.fd}); err != nil {
		return err
	}
	avail, used, _ := virtqueue.SplitOffsets(virtRing)
	for i := range uint32(2) {
		at := uint64(virtUser) + uint64(i)*virtRoom
		a := vhostuser.VringAddr{Index: i, Descriptor: at, Available: at + uint64(avail), Used: at + uint64(used)}
		if err := v.f.StartRing(a, virtRing, 0, v.kick[i], v.call[i]); err != nil {
			return err
		}
	}
	return nil
}

// desc writes a descriptor of a table at an offset of the memory.
func (v *virt) desc(table, i, at, n, flags, next int) {
	virtqueue.PutDesc(v.mem[table:], i, virtGuest+uint64(at), uint64(n)|uint64(flags)<<32|uint64(next)<<48)
}

// fill writes the packets of a load to the ring for sending and returns their number and the
// descriptors of each.
func (v *virt) fill(args LoadArgs) (packets, descs int, err error) {
	dst, err := destinations(args)
	if err != nil {
		return 0, 0, err
	}
	frame := frame(args.Load, dst[0])
	clear(v.mem[virtData : virtData+virtHdr])
	copy(v.mem[virtData+virtHdr:], frame)
	size := virtHdr + len(frame)
	var heads []int
	switch args.Load {
	case VirtFlood, VirtBulk:
		descs = 1
		for i := range virtRing {
			v.desc(virtRoom, i, virtData, size, 0, 0)
			heads = append(heads, i)
		}
	case VirtTiny: // a descriptor for each byte
		descs = size
		for i := range virtRing / size * size {
			flags := descNext
			if i%size == size-1 {
				flags = 0
			}
			if i%size == 0 {
				heads = append(heads, i)
			}
			v.desc(virtRoom, i, virtData+i%size, 1, flags, i+1)
		}
	case VirtIndirect: // the same in the longest table that a back end takes
		descs = virtqueue.MaxPieces
		for i := range descs {
			flags := descNext
			if i == descs-1 {
				flags = 0
			}
			v.desc(virtTable, i, virtData+i, 1, flags, i+1)
		}
		for i := range virtRing {
			v.desc(virtRoom, i, virtTable, 16*descs, descIndirect, 0)
			heads = append(heads, i)
		}
	default:
		return 0, 0, fmt.Errorf("no load %.40q on a ring of vhost-user", args.Load)
	}
	avail, _, _ := virtqueue.SplitOffsets(virtRing)
	for i := range virtRing { // there may be fewer packets than entries, which name them in turn
		binary.LittleEndian.PutUint16(v.mem[virtRoom+avail+4+2*i:], uint16(heads[i%len(heads)]))
	}
	return len(heads), descs, nil
}

// sending returns the part that keeps the ring for sending full. A descriptor is in use again
// as soon as it is back, in the order in which the entries of the ring name it.
func (v *virt) sending(args LoadArgs) (part, error) {
	packets, descs, err := v.fill(args)
	if err != nil {
		return nil, err
	}
	avail, used, _ := virtqueue.SplitOffsets(virtRing)
	word := func(at int) uint16 { return binary.LittleEndian.Uint16(v.mem[virtRoom+at:]) }
	return func(ctx context.Context) (s Strength, err error) {
		pace := newPacer(args.Rate)
		last := word(used + 2)
		for ctx.Err() == nil {
			done := word(used + 2)
			s.Done += uint64(done - last)
			last = done
			s.Looks++
			empty := done == v.avail
			if empty {
				s.Empty++
			}
			n := pace.room(packets - int(v.avail-done))
			rest(empty && args.Rate == 0 && s.Looks%16 != 0)
			if n <= 0 {
				continue
			}
			pace.did(n)
			v.avail += uint16(n)
			binary.LittleEndian.PutUint16(v.mem[virtRoom+avail+2:], v.avail)
			if word(used)&noNotify == 0 {
				v.notify(&s)
			}
		}
		s.Slots = s.Done * uint64(descs)
		return s, nil
	}, nil
}

// notify kicks the ring for sending. A counter that is full has a kick already.
func (v *virt) notify(s *Strength) {
	if _, err := unix.Write(v.kick[1], []byte{1, 0, 0, 0, 0, 0, 0, 0}); err == nil {
		s.Notified++
	}
}

// kicking returns the part that kicks and does nothing else.
func (v *virt) kicking(args LoadArgs) part {
	return func(ctx context.Context) (s Strength, err error) {
		for pace := newPacer(args.Rate); pace.wait(ctx); {
			v.notify(&s)
			s.Done++
		}
		return s, nil
	}
}

// reconnecting returns the part that ends its session and begins another.
func (v *virt) reconnecting(args LoadArgs) part {
	return func(ctx context.Context) (s Strength, err error) {
		for pace := newPacer(args.Rate); pace.wait(ctx); s.Done++ {
			if err := errors.Join(v.disconnect(), v.connect()); err != nil {
				return s, err
			}
		}
		return s, nil
	}
}

// part returns the part of a load.
func (v *virt) part(args LoadArgs) (part, error) {
	switch args.Load {
	case VirtKicks:
		return v.kicking(args), nil
	case VirtReconnect:
		return v.reconnecting(args), nil
	}
	return v.sending(args)
}
