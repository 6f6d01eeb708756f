// SPDX-License-Identifier: Apache-2.0

package vhostuser

import (
	"errors"
	"runtime"
	"runtime/debug"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/virtqueue"
)

// TestSuccessorOfPackedRing: a back end dies with a chain in flight, and the next one gets
// the inflight region from the front end and serves that chain first.
func TestSuccessorOfPackedRing(t *testing.T) {
	fd := memfd(t, guestSize)
	mem, err := unix.Mmap(fd, 0, guestSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(mem) })
	const size = 7
	driver, err := virtqueue.NewPackedDriver(virtqueue.DriverConfig{Size: size}, virtqueue.PackedRingsIn(mem, size))
	if err != nil {
		t.Fatal(err)
	}
	drv, dev, _ := virtqueue.PackedOffsets(size)
	addr := VringAddr{Descriptor: guestUser, Available: guestUser + uint64(drv), Used: guestUser + uint64(dev), Flags: vringLog}
	var inflight Message
	connect := func(base uint32) (*bed, *virtqueue.Packed) {
		b := newBed(t)
		_, _, err := b.f.Negotiate(1<<32|featureRingPacked|featureLogAll, b.cfg.ProtocolFeatures)
		b.must(err)
		if inflight.Files == nil {
			inflight, err = b.f.Do(Message{Header: Header{Request: GetInflightFD}, Inflight: Inflight{Queues: 1, QueueSize: size}})
			b.must(err)
			t.Cleanup(func() { closeAll(inflight.Files) })
		}
		_, err = b.f.Do(Message{Header: Header{Request: SetInflightFD}, Inflight: inflight.Inflight, Files: inflight.Files})
		b.must(err)
		b.must(b.f.SetMemory([]Region{guestRegion}, []int{fd}))
		b.must(b.f.StartRing(addr, size, base, -1, -1))
		r := b.rec.ring(0)
		q, err := virtqueue.NewPacked(r.Config(b.rec.memory()), r.PackedRings())
		b.must(err)
		log, err := virtqueue.NewLog(make([]byte, 64))
		b.must(err)
		if l := r.Logging(log); l.RingAddr != guestAddr || l.EventAddr != guestAddr+uint64(dev) || !l.Ring {
			t.Errorf("logging %+v", l)
		}
		if l := r.Logging(nil); l != (virtqueue.Logging{}) {
			t.Errorf("logging without a log %+v", l)
		}
		return b, q
	}

	b, q := connect(0x8000) // as DPDK begins
	batch := virtqueue.NewBatch(4)
	first, _ := driver.Add(virtqueue.Buffer{Addr: guestAddr + 0x8000, Len: 8})
	second, _ := driver.Add(virtqueue.Buffer{Addr: guestAddr + 0x8000, Len: 9})
	driver.Publish()
	if n, err := q.Take(batch, 1); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	q.Publish(batch)
	if n, err := q.Take(batch, 1); n != 1 || err != nil { // and dies
		t.Fatal(n, err)
	}
	b.must(b.f.Close())
	b.must(b.end())

	_, q = connect(0)
	next := virtqueue.NewBatch(4)
	if n, err := q.Take(next, 4); n != 1 || err != nil || next.Chain(0).ReadLen != 9 {
		t.Fatalf("took %d, %v", n, err)
	}
	q.Publish(next)
	for _, want := range []uint16{first, second} {
		if id, _, ok := driver.Poll(); !ok || id != want {
			t.Errorf("chain %d, %t; want %d", id, ok, want)
		}
	}
	if _, _, ok := driver.Poll(); ok {
		t.Error("a chain was published twice")
	}
}

// TestFileMadeShorter: a worker that uses memory which is gone can survive.
func TestFileMadeShorter(t *testing.T) {
	b := newBed(t)
	b.negotiate()
	fd := memfd(t, guestSize)
	b.must(b.f.SetMemory([]Region{guestRegion}, []int{fd}))
	if err := unix.Ftruncate(fd, 0); err != nil {
		t.Fatal(err)
	}
	mem := b.rec.memory().Memory().Bytes(guestAddr, 1)
	err := func() (err error) {
		defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
		defer func() {
			if e, ok := recover().(runtime.Error); ok {
				err = e
			}
		}()
		mem[0]++
		return nil
	}()
	if err == nil {
		t.Error("the memory is still there")
	}
	b.stop()
}

// TestKinds has a word for each.
func TestKinds(t *testing.T) {
	for k, want := range map[Kind]string{KindShared: "shared", KindForeign: "foreign", KindGrant: "grant", KindGrantCopy: "grant copy"} {
		if k.String() != want {
			t.Errorf("%d is %q", k, k)
		}
	}
	if GetFeatures.String() != "GET_FEATURES" || Request(41).String() != "request 41" {
		t.Errorf("%v, %v", GetFeatures, Request(41))
	}
}

// TestNewConnRefuses descriptors that are no unix sockets.
func TestNewConnRefuses(t *testing.T) {
	udp, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range []int{udp, memfd(t, 1)} {
		own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := NewConn(own); err == nil {
			t.Error("no error")
		}
	}
	unix.Close(udp)
}

// TestMTUs: what does not fit the field is refused without asking.
func TestMTUs(t *testing.T) {
	b := newBed(t)
	b.negotiate()
	if err := b.f.U64(NetSetMTU, 65536); !errors.Is(err, ErrRefused) {
		t.Errorf("error %v", err)
	}
	b.must(b.f.U64(NetSetMTU, 65535))
}
