// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"encoding/binary"
	"errors"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/vhostuser"
	"github.com/netbackd/netbackd/pkg/virtqueue"
)

// rawVirt is a front end that the test plays itself: any message, and rings whose words the
// test writes.
type rawVirt struct {
	w    *world
	d    *vhost
	c    *net.UnixConn // of f, which owns it
	f    *vhostuser.Frontend
	fd   int // of the memory
	mem  []byte
	kick [4]int
	call [4]int
	errs [4]int
	idx  [4]uint16 // avail.idx
}

// The memory of a rawVirt: a page for each ring, then data.
const (
	rawSize  = 1 << 20
	rawGuest = 0x4000_0000
	rawUser  = 0x7a00_0000_0000
	rawRing  = 16 // descriptors
	rawData  = 0x10000
	rawPage  = 4096
)

// Bits of virtio.
const (
	virtMergeable = 1 << 15
	virtIndirect  = 1 << 28
	virtVersion1  = 1 << 32
	virtPacked    = 1 << 34
	rawFeatures   = virtVersion1 | virtMergeable | virtIndirect

	descNext     = 1
	descWrite    = 2
	descIndirect = 4
)

// raw makes the memory of a front end, without a session.
func (d *vhost) raw() *rawVirt {
	d.w.t.Helper()
	f := &rawVirt{w: d.w, d: d}
	f.renew()
	for i := range f.kick {
		for _, fd := range []*int{&f.kick[i], &f.call[i], &f.errs[i]} {
			var err error
			*fd, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
			d.w.must(err)
			d.w.t.Cleanup(func() { _ = unix.Close(*fd) })
		}
	}
	return f
}

// renew makes other memory.
func (f *rawVirt) renew() {
	f.w.t.Helper()
	if f.mem != nil {
		f.w.must(errors.Join(unix.Munmap(f.mem), unix.Close(f.fd)))
	}
	fd, err := unix.MemfdCreate("raw", unix.MFD_CLOEXEC)
	f.w.must(err)
	f.w.must(unix.Ftruncate(fd, rawSize))
	f.fd = fd
	f.mem, err = unix.Mmap(fd, 0, rawSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	f.w.must(err)
}

// connect opens a connection.
func (f *rawVirt) connect() {
	f.w.t.Helper()
	f.close()
	c, err := net.Dial("unix", f.d.Socket)
	f.w.must(err)
	f.c = c.(*net.UnixConn)
	f.f = vhostuser.NewFrontend(f.c)
}

// open begins a session with features.
func (f *rawVirt) open(features uint64) {
	f.w.t.Helper()
	f.connect()
	_, _, err := f.f.Negotiate(features, vhostuser.ProtocolNet)
	f.w.must(err)
	clear(f.mem[:rawData])
	f.idx = [4]uint16{}
}

func (f *rawVirt) close() {
	if f.f != nil {
		_ = f.f.Close()
	}
	f.f, f.c = nil, nil
}

var rawRegion = vhostuser.Region{Guest: rawGuest, User: rawUser, Size: rawSize}

// share sends the memory as one region.
func (f *rawVirt) share() {
	f.w.t.Helper()
	f.w.must(f.f.SetMemory([]vhostuser.Region{rawRegion}, []int{f.fd}))
}

// addr returns the addresses of a split ring.
func (f *rawVirt) addr(i uint32) vhostuser.VringAddr {
	avail, used, _ := virtqueue.SplitOffsets(rawRing)
	at := uint64(rawUser) + uint64(i)*rawPage
	return vhostuser.VringAddr{Index: i, Descriptor: at, Available: at + uint64(avail), Used: at + uint64(used)}
}

// start starts a split ring.
func (f *rawVirt) start(i uint32) {
	f.w.t.Helper()
	_, err := f.f.Do(vhostuser.Message{Header: vhostuser.Header{Request: vhostuser.SetVringErr}, U64: uint64(i), Files: []int{f.errs[i]}})
	f.w.must(err)
	f.w.must(f.f.StartRing(f.addr(i), rawRing, 0, f.kick[i], f.call[i]))
}

// running begins a session with both rings of the first pair.
func (f *rawVirt) running(features uint64) {
	f.w.t.Helper()
	f.open(features)
	f.share()
	f.start(0)
	f.start(1)
}

// desc writes a descriptor of a split ring.
func (f *rawVirt) desc(ring, i int, addr uint64, n, flags, next int) {
	virtqueue.PutDesc(f.mem[ring*rawPage:], i, addr, uint64(n)|uint64(flags)<<32|uint64(next)<<48)
}

// table writes a descriptor of an indirect table at an offset of the memory.
func (f *rawVirt) table(off, i int, addr uint64, n, flags, next int) {
	virtqueue.PutDesc(f.mem[off:], i, addr, uint64(n)|uint64(flags)<<32|uint64(next)<<48)
}

// offer makes heads available and kicks.
func (f *rawVirt) offer(ring int, heads ...int) {
	avail, _, _ := virtqueue.SplitOffsets(rawRing)
	at := ring*rawPage + avail
	for _, h := range heads {
		binary.LittleEndian.PutUint16(f.mem[at+4+2*int(f.idx[ring]%rawRing):], uint16(h))
		f.idx[ring]++
	}
	f.showAvail(ring, f.idx[ring])
}

// showAvail writes the available index and kicks.
func (f *rawVirt) showAvail(ring int, idx uint16) {
	avail, _, _ := virtqueue.SplitOffsets(rawRing)
	binary.LittleEndian.PutUint16(f.mem[ring*rawPage+avail+2:], idx)
	f.poke(ring)
}

func (f *rawVirt) poke(ring int) { _, _ = unix.Write(f.kick[ring], []byte{1, 0, 0, 0, 0, 0, 0, 0}) }

// used returns the used index.
func (f *rawVirt) used(ring int) uint16 {
	_, used, _ := virtqueue.SplitOffsets(rawRing)
	return binary.LittleEndian.Uint16(f.mem[ring*rawPage+used+2:])
}

// packet writes a vnet header of zeros and a frame to the memory and returns its guest
// address and length.
func (f *rawVirt) packet(off int, frame []byte) (addr uint64, n int) {
	clear(f.mem[off : off+12])
	copy(f.mem[off+12:], frame)
	return rawGuest + uint64(off), 12 + len(frame)
}

// sends checks that a packet from the guest is served.
func (f *rawVirt) sends() {
	f.w.t.Helper()
	addr, n := f.packet(rawData, plainFrame(60))
	f.desc(1, 5, addr, n, 0, 0)
	f.offer(1, 5)
	f.w.wait("a packet to be sent", func() bool { return f.used(1) == f.idx[1] })
}

// served begins a session and sends a packet: the next one is served.
func (f *rawVirt) served() {
	f.w.t.Helper()
	f.renew()
	f.running(rawFeatures)
	f.sends()
	f.close()
}

// hungUp waits until the back end closes the connection, and takes answers meanwhile.
func (f *rawVirt) hungUp() {
	f.w.t.Helper()
	_ = f.c.SetReadDeadline(time.Now().Add(patience))
	b := make([]byte, 4096)
	for {
		if _, err := f.c.Read(b); errors.Is(err, os.ErrDeadlineExceeded) {
			f.w.t.Fatal("the back end keeps the connection")
		} else if err != nil {
			return
		}
	}
}

// warnings returns the lines of the log from an offset on that are no mere information.
func (d *vhost) warnings(from int) (lines []string) {
	for l := range strings.Lines(d.Log()[from:]) {
		if !strings.Contains(l, "\tINFO\t") {
			lines = append(lines, l)
		}
	}
	return lines
}
