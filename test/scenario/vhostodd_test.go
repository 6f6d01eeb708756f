// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/lab/packettest"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/vhostuser"
)

// TestVhostOddities: strange behaviour that is allowed, or that is refused without an end of
// the session. Each front end is served afterwards, in the same session.
func TestVhostOddities(t *testing.T) {
	w := newWorld(t)
	d := w.vhost("web", "--queues", "2")
	f := d.raw()
	f.served()
	_, files := d.held()
	w.beside(func() {
		for _, o := range []struct {
			name string
			do   func(f *rawVirt)
		}{
			{"ring that is not aligned is refused", refusedRing},
			{"descriptor that spans two regions", spanningDescriptor},
			{"packets that are no packets", badVirtPackets},
			{"rx chain that is too short for the header", shortChains},
			{"call that is full and blocks", fullCall},
			{"call that is made to block afterwards", blockingCall},
			{"kick that the front end reads, and makes blocking", stolenKick},
			{"kick that is closed at its other end", closedKick},
			{"kick that comes without work", emptyKicks},
			{"answers that are asked for and not needed", needlessAcks},
			{"base of a ring that stopped is the next one", basesOfStops},
		} {
			w.situation(o.name, func() {
				f.w = w
				f.renew()
				from := len(d.Log())
				o.do(f)
				f.sends()
				f.close()
				if l := d.warnings(from); len(l) != 0 {
					w.t.Errorf("the log has %q", l)
				}
				d.released(files)
			})
		}
	})
}

func refusedRing(f *rawVirt) {
	f.open(rawFeatures)
	f.share()
	a := f.addr(0)
	a.Descriptor += 4
	if err := f.f.StartRing(a, rawRing, 0, f.kick[0], f.call[0]); !errors.Is(err, vhostuser.ErrRefused) {
		f.w.t.Errorf("the front end gets %v", err)
	}
	f.start(1)
}

// spanningDescriptor sends a packet of which each region has a part, out of two files.
func spanningDescriptor(f *rawVirt) {
	const half = rawSize / 2
	f.open(rawFeatures)
	other, err := unix.MemfdCreate("raw-half", unix.MFD_CLOEXEC)
	f.w.must(err)
	defer unix.Close(other)
	f.w.must(unix.Ftruncate(other, half))
	frame := packettest.Frame{EtherType: typeTest, Payload: packettest.Pattern(1000)}.Bytes()
	const before = 300
	addr, n := f.packet(half-before, frame) // the second part is overwritten in its own file
	_, err = unix.Pwrite(other, f.mem[half:half-before+n], 0)
	f.w.must(err)
	clear(f.mem[half : half-before+n])
	f.w.must(f.f.SetMemory([]vhostuser.Region{
		{Guest: rawGuest, User: rawUser, Size: half},
		{Guest: rawGuest + half, User: rawUser + 2*rawSize, Size: half},
	}, []int{f.fd, other}))
	f.start(0)
	f.start(1)
	c := f.w.cable(f.d.status().Interface, func(f func() error) error { return f() })
	f.desc(1, 0, addr, n, 0, 0)
	f.offer(1, 0)
	if got := c.next().frame; !bytes.Equal(got, frame) {
		f.w.t.Errorf("a frame of %d bytes came out, want %d", len(got), len(frame))
	}
}

// badVirtPackets sends chains that hold no valid packet. Each is dropped and counted, and its chain used.
func badVirtPackets(f *rawVirt) {
	f.running(rawFeatures)
	header := func(h tap.VnetHdr, frame []byte) (uint64, int) {
		addr, n := f.packet(rawData, frame)
		b := make([]byte, tap.VnetHdrLen)
		h.Encode(b)
		copy(f.mem[rawData:], b)
		return addr, n
	}
	frame := plainFrame(60)
	total := func() (n uint64) {
		for name, v := range f.d.status().Counters {
			for _, c := range dataplane.Counters {
				if c.Name == name && c.Kind == dataplane.Drop {
					n += v
				}
			}
		}
		return n
	}
	for name, packet := range map[string]func() (uint64, int){
		"half a header":     func() (uint64, int) { return rawGuest + rawData, 5 },
		"header alone":      func() (uint64, int) { return rawGuest + rawData, 12 },
		"frame of 13 bytes": func() (uint64, int) { return rawGuest + rawData, 25 },
		"frame of 100000":   func() (uint64, int) { return rawGuest + rawData, 100000 },
		"checksum far behind": func() (uint64, int) {
			return header(tap.VnetHdr{Flags: 1, CsumStart: 0xfff0, CsumOffset: 0xfff0}, frame)
		},
		"segments of 0 bytes": func() (uint64, int) {
			return header(tap.VnetHdr{Flags: 1, GSOType: 1, CsumStart: 34, CsumOffset: 16}, frame)
		},
		"unknown segments": func() (uint64, int) { return header(tap.VnetHdr{GSOType: 77, GSOSize: 100}, frame) },
	} {
		before := total()
		addr, n := packet()
		f.desc(1, 3, addr, n, 0, 0)
		f.offer(1, 3)
		f.w.wait(name+" to be used", func() bool { return f.used(1) == f.idx[1] })
		f.w.wait(name+" to be counted", func() bool { return total() == before+1 })
	}
}

// shortChains gives the back end buffers of 4 bytes, which a packet takes as many of as it
// needs.
func shortChains(f *rawVirt) {
	f.running(rawFeatures)
	const small = rawRing - 1
	for i := range small {
		f.desc(0, i, rawGuest+rawData+uint64(0x100*i), 4, descWrite, 0)
		f.offer(0, i)
	}
	f.desc(0, small, rawGuest+rawData+0x4000, 0x1000, descWrite, 0)
	f.offer(0, small)
	f.d.waitCarrier()
	c := f.w.cable(f.d.status().Interface, func(f func() error) error { return f() })
	c.send(tap.VnetHdr{}, plainFrame(1000))
	f.w.wait("the buffers to be used", func() bool { return f.used(0) == rawRing })
	if n := binary.LittleEndian.Uint16(f.mem[rawData+0x200+2:]); n != rawRing {
		// The third buffer has bytes 8 to 11 of the header, with the number of buffers.
		f.w.t.Errorf("the header says %d buffers", n)
	}
}

// fullCall passes a descriptor whose counter is full: writing to it blocks.
func fullCall(f *rawVirt) {
	f.open(rawFeatures)
	f.share()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC) // blocking
	f.w.must(err)
	defer unix.Close(fd)
	_, err = unix.Write(fd, binary.NativeEndian.AppendUint64(nil, math.MaxUint64-1))
	f.w.must(err)
	f.w.must(f.f.StartRing(f.addr(1), rawRing, 0, f.kick[1], fd))
	for range 5 {
		f.sends()
	}
}

// blockingCall passes a descriptor whose counter is full and which is made blocking once the
// back end has it. The session can be ended, and the next one is served.
func blockingCall(f *rawVirt) {
	f.open(rawFeatures)
	f.share()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	f.w.must(err)
	defer unix.Close(fd)
	f.w.must(f.f.StartRing(f.addr(1), rawRing, 0, f.kick[1], fd))
	f.w.must(unix.SetNonblock(fd, false))
	_, err = unix.Write(fd, binary.NativeEndian.AppendUint64(nil, math.MaxUint64-1))
	f.w.must(err)
	addr, n := f.packet(rawData, plainFrame(60))
	f.desc(1, 5, addr, n, 0, 0)
	f.offer(1, 5)
	// The session ends although its worker may be waiting for a reader of the descriptor.
	if _, err := f.f.StopRing(1); err != nil {
		f.w.t.Error(err)
	}
	f.close()
	f.renew()
	f.running(rawFeatures)
}

// stolenKick takes its own kicks back as soon as the back end may have been woken by them.
func stolenKick(f *rawVirt) {
	f.open(rawFeatures)
	f.share()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	f.w.must(err)
	defer unix.Close(fd)
	f.w.must(f.f.StartRing(f.addr(1), rawRing, 0, fd, f.call[1]))
	f.w.must(unix.SetNonblock(fd, false))
	b := make([]byte, 8)
	for end := time.Now().Add(200 * time.Millisecond); time.Now().Before(end); {
		_, err = unix.Write(fd, binary.NativeEndian.AppendUint64(nil, 1))
		f.w.must(err)
		_, _ = unix.Preadv2(fd, [][]byte{b}, -1, unix.RWF_NOWAIT)
	}
	f.close()
	f.renew()
	f.running(rawFeatures)
}

// closedKick passes a pipe whose other end is closed, which is readable for ever.
func closedKick(f *rawVirt) {
	f.open(rawFeatures)
	f.share()
	var p [2]int
	f.w.must(unix.Pipe2(p[:], unix.O_CLOEXEC))
	f.w.must(f.f.StartRing(f.addr(1), rawRing, 0, p[0], f.call[1]))
	f.w.must(errors.Join(unix.Close(p[0]), unix.Close(p[1])))
	f.idle()
	f.w.must(f.f.StartRing(f.addr(0), rawRing, 0, f.kick[0], f.call[0]))
	m := vmessage(vhostuser.SetVringKick)
	m.U64, m.Files = 1, []int{f.kick[1]}
	_, err := f.f.Do(m)
	f.w.must(err)
}

// idle checks that the process does not spin.
func (f *rawVirt) idle() {
	f.w.t.Helper()
	const over = 200 * time.Millisecond
	before := f.w.cpuTime(f.d.PID())
	<-time.After(over)
	if used := f.w.cpuTime(f.d.PID()) - before; used > over/2 {
		f.w.t.Errorf("the process used %v of %v", used, over)
	}
}

// emptyKicks kicks as fast as it can, without any work.
func emptyKicks(f *rawVirt) {
	f.running(rawFeatures)
	for end := time.Now().Add(200 * time.Millisecond); time.Now().Before(end); {
		f.poke(1)
		f.poke(0)
	}
}

// needlessAcks asks for an acknowledgement of each message, also of those with answers.
func needlessAcks(f *rawVirt) {
	f.running(rawFeatures)
	for _, r := range []vhostuser.Request{vhostuser.GetFeatures, vhostuser.GetQueueNum, vhostuser.GetMaxMemSlots} {
		_, err := f.c.Write(vheader(r, 1|1<<3, 0))
		f.w.must(err)
		b := make([]byte, 64)
		n, err := f.c.Read(b)
		f.w.must(err)
		if n != 20 || binary.NativeEndian.Uint32(b) != uint32(r) {
			f.w.t.Errorf("%v is answered with % x", r, b[:n])
		}
	}
}

// basesOfStops stops a ring and starts it where it stopped.
func basesOfStops(f *rawVirt) {
	f.running(rawFeatures)
	f.sends()
	f.sends()
	for range 3 {
		base, err := f.f.StopRing(1)
		f.w.must(err)
		if base != uint32(f.idx[1]) {
			f.w.t.Errorf("stopped at %d of %d", base, f.idx[1])
		}
		f.w.must(f.f.StartRing(f.addr(1), rawRing, base, f.kick[1], f.call[1]))
		f.sends()
	}
}
