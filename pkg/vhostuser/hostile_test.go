// SPDX-License-Identifier: Apache-2.0

package vhostuser

import (
	"errors"
	"io"
	"math"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// hostile is a front end that breaks one rule.
type hostile struct {
	name string
	do   func(b *bed) error
	want error
}

func changed(change func(r *Region)) Region {
	r := guestRegion
	change(&r)
	return r
}

// sends returns a front end that sends a message.
func sends(m Message) func(b *bed) error {
	return func(b *bed) error { _, err := b.f.Do(m); return err }
}

func hostileMemory() []hostile {
	table := func(files int, regions ...Region) func(b *bed) error {
		return func(b *bed) error {
			fds := make([]int, files)
			for i := range fds {
				fds[i] = memfd(b.t, guestSize)
			}
			return b.f.SetMemory(regions, fds)
		}
	}
	return []hostile{
		{"guest ranges overlap", table(2, guestRegion, changed(func(r *Region) { r.User = 0; r.Guest += guestSize - 1 })), ErrRegionOverlap},
		{"user ranges overlap", table(2, guestRegion, changed(func(r *Region) { r.Guest = 0; r.User-- })), ErrRegionOverlap},
		{"region of no bytes", table(1, changed(func(r *Region) { r.Size = 0 })), ErrRegionRange},
		{"guest range wraps", table(1, changed(func(r *Region) { r.Guest = math.MaxUint64 })), ErrRegionRange},
		{"user range wraps", table(1, changed(func(r *Region) { r.User = math.MaxUint64 })), ErrRegionRange},
		{"offset wraps", table(1, changed(func(r *Region) { r.Offset = math.MaxUint64 })), ErrRegionRange},
		{"file is shorter", table(1, changed(func(r *Region) { r.Size++ })), ErrRegionShort},
		{"file is shorter than the offset", table(1, changed(func(r *Region) { r.Offset = 0x1000 })), ErrRegionShort},
		{"one descriptor for two regions", table(1, guestRegion, changed(func(r *Region) { r.Guest, r.User = 0, 0 })), ErrFiles},
		{"two descriptors for one region", table(2, guestRegion), ErrFiles},
		{"flags 3", table(1, changed(func(r *Region) { r.Flags = 3 })), ErrRegionFlags},
		{"no advance alone", table(1, changed(func(r *Region) { r.Flags = 0x100 })), ErrRegionFlags},
		{"foreign without advance", table(1, changed(func(r *Region) { r.Flags = 0x101 })), ErrRegionFlags},
		{"grant with both bits", table(1, changed(func(r *Region) { r.Flags = 0x10a })), ErrRegionFlags},
		{"flag of the future", table(1, changed(func(r *Region) { r.Flags = 0x200 })), ErrRegionFlags},
		{"foreign region of a memfd", table(1, changed(func(r *Region) { r.Flags = 1 })), ErrRegionFile},
		{"grant region of a memfd", table(1, changed(func(r *Region) { r.Flags = 2 })), ErrRegionFile},
		{"foreign region with an offset", table(1, changed(func(r *Region) { r.Flags, r.Offset = 1, 0x1000 })), ErrRegionRange},
		{"domain that cannot be", table(1, changed(func(r *Region) { r.Flags, r.Domid = 1, 0x7ff0 })), ErrRegionDomain},
		{"grants past the last one", table(1, changed(func(r *Region) { r.Flags, r.Guest = 2, 1<<44-0x1000 })), ErrRegionGref},
		{"region to remove does not exist", sends(Message{Header: Header{Request: RemMemReg}, Regions: []Region{guestRegion}}), ErrRegionUnknown},
	}
}

func hostileRings() []hostile {
	state := func(r Request, index, num uint32) func(b *bed) error {
		return sends(Message{Header: Header{Request: r}, State: VringState{index, num}})
	}
	ring := func(change func(a *VringAddr)) func(b *bed) error {
		return func(b *bed) error {
			b.must(b.f.SetMemory([]Region{guestRegion}, []int{memfd(b.t, guestSize)}))
			a := ringAddr(0)
			change(&a)
			return b.f.StartRing(a, 8, 0, -1, -1)
		}
	}
	running := func(m Message) func(b *bed) error {
		return func(b *bed) error {
			b.must(ring(func(*VringAddr) {})(b))
			return sends(m)(b)
		}
	}
	moved := ringAddr(0)
	moved.Used += 0x1000
	return []hostile{
		{"table ends a ring", ring(func(a *VringAddr) { a.Descriptor = guestUser + guestSize - 127 }), ErrAddress},
		{"ring is in no region", ring(func(a *VringAddr) { a.Used = guestAddr }), ErrAddress},
		{"ring flags of the future", ring(func(a *VringAddr) { a.Flags = 2 }), ErrFlags},
		{"ring size 0", state(SetVringNum, 0, 0), ErrRingSize},
		{"ring size 6", state(SetVringNum, 0, 6), ErrRingSize},
		{"ring size 65536", state(SetVringNum, 0, 65536), ErrRingSize},
		{"ring 4 of 4", state(SetVringNum, 4, 8), ErrRing},
		{"base of ring 4", state(SetVringBase, math.MaxUint32, 8), ErrRing},
		{"enable ring 4", state(SetVringEnable, 4, 1), ErrRing},
		{"enable 2", state(SetVringEnable, 0, 2), ErrFlags},
		{"kick of ring 4", sends(eventMessage(SetVringKick, 4, -1)), ErrRing},
		{"kick without a descriptor", sends(Message{Header: Header{Request: SetVringKick}}), ErrFiles},
		{"kick word of the future", sends(Message{Header: Header{Request: SetVringKick}, U64: 1 << 9}), ErrFlags},
		{"size of a ring that runs", running(Message{Header: Header{Request: SetVringNum}, State: VringState{0, 8}}), ErrRunning},
		{"base of a ring that runs", running(Message{Header: Header{Request: SetVringBase}}), ErrRunning},
		{"addresses of a ring that runs", running(Message{Header: Header{Request: SetVringAddr}, Addr: moved}), ErrRunning},
		{"features while rings run", running(Message{Header: Header{Request: SetFeatures}}), ErrRunning},
		{"features that were not offered", sends(Message{Header: Header{Request: SetFeatures}, U64: 1 << 57}), ErrFeatures},
		{"protocol features that were not offered", sends(Message{Header: Header{Request: SetProtocolFeatures}, U64: 1<<20 | ProtocolReplyAck}), ErrFeatures},
		{"inflight region of too many queues", sends(Message{Header: Header{Request: GetInflightFD}, Inflight: Inflight{Queues: 5, QueueSize: 8}}), ErrInflight},
	}
}

// TestHostileMessages has a front end that breaks one rule each. Each is acknowledged with
// an error and ends the session.
func TestHostileMessages(t *testing.T) {
	for _, tc := range append(hostileMemory(), hostileRings()...) {
		t.Run(tc.name, func(t *testing.T) {
			b := newBed(t)
			b.negotiate()
			err := tc.do(b)
			if !errors.Is(err, ErrRefused) && err != io.EOF {
				t.Errorf("the front end gets %v", err)
			}
			if err := b.end(); !errors.Is(err, tc.want) {
				t.Errorf("the session ends with %v, want %v", err, tc.want)
			}
		})
	}
}

// TestHostileDescriptors passes descriptors where none belong, too many, and of files that
// have no events. None stays open.
func TestHostileDescriptors(t *testing.T) {
	regular := func(b *bed) int { return memfd(b.t, 1) }
	directory := func(b *bed) int {
		f, err := os.Open(b.t.TempDir())
		b.must(err)
		b.t.Cleanup(func() { f.Close() })
		return int(f.Fd())
	}
	for _, tc := range []struct {
		name string
		m    func(b *bed) Message
		want error
	}{
		{"33 descriptors", func(b *bed) Message {
			fds := make([]int, 33)
			for i := range fds {
				fds[i] = regular(b)
			}
			return Message{Header: Header{Request: SetMemTable}, Files: fds}
		}, ErrFiles},
		{"descriptor of a message without", func(b *bed) Message {
			return Message{Header: Header{Request: SetFeatures}, Files: []int{regular(b)}}
		}, ErrFiles},
		{"kick is a regular file", func(b *bed) Message { return eventMessage(SetVringKick, 0, regular(b)) }, ErrEvent},
		{"call is a directory", func(b *bed) Message { return eventMessage(SetVringCall, 0, directory(b)) }, ErrEvent},
		{"memory is a directory", func(b *bed) Message {
			return Message{Header: Header{Request: SetMemTable}, Regions: []Region{guestRegion}, Files: []int{directory(b)}}
		}, ErrRegionFile},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBed(t)
			b.negotiate()
			m := tc.m(b)
			before := openFiles(t)
			if _, err := b.f.Do(m); err == nil {
				t.Error("the front end gets no error")
			}
			if err := b.end(); !errors.Is(err, tc.want) {
				t.Errorf("the session ends with %v, want %v", err, tc.want)
			}
			if after := openFiles(t); after >= before { // the socket is closed
				t.Errorf("%d descriptors are open, were %d", after, before)
			}
		})
	}
}

// TestBlockingCall: a call descriptor that blocks does not block Signal.
func TestBlockingCall(t *testing.T) {
	b := newBed(t)
	b.negotiate()
	b.must(b.f.SetMemory([]Region{guestRegion}, []int{memfd(t, guestSize)}))
	call := eventfd(t) // blocking
	full := make([]byte, 8)
	native.PutUint64(full, math.MaxUint64-1)
	if _, err := unix.Write(call, full); err != nil {
		t.Fatal(err)
	}
	b.must(b.f.StartRing(ringAddr(0), 8, 0, -1, call))
	if err := Signal(b.rec.ring(0).Call); err != nil {
		t.Error(err)
	}
}

// TestCallMadeBlocking: a front end that makes a full descriptor blocking, after it has passed
// it, delays its own session.
func TestCallMadeBlocking(t *testing.T) {
	b := newBed(t)
	b.negotiate()
	b.must(b.f.SetMemory([]Region{guestRegion}, []int{memfd(t, guestSize)}))
	call := eventfd(t)
	b.must(b.f.StartRing(ringAddr(0), 8, 0, -1, call))
	b.must(unix.SetNonblock(call, false))
	_, err := unix.Write(call, native.AppendUint64(nil, math.MaxUint64-1))
	b.must(err)
	b.rec.set(func(r *recorder) { r.last = r.rings[0].Call })
	_, err = b.f.StopRing(0)
	b.must(err)
	if n, err := eventCount(call); n != 1 || err != nil {
		t.Errorf("the counter is %d, %v", n, err)
	}
}

// TestEventsAreEventfds: what Signal writes to can be emptied.
func TestEventsAreEventfds(t *testing.T) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(p[0])
	defer unix.Close(p[1])
	for _, r := range []Request{SetVringCall, SetVringErr} {
		b := newBed(t)
		b.negotiate()
		if _, err := b.f.Do(eventMessage(r, 0, p[1])); err == nil {
			t.Errorf("%v: a pipe is accepted", r)
		}
		if err := b.end(); !errors.Is(err, ErrEvent) {
			t.Errorf("%v: the session ends with %v", r, err)
		}
	}
}

// raw writes bytes to the socket.
func (b *bed) raw(p []byte, files ...int) error {
	var oob []byte
	if len(files) > 0 {
		oob = unix.UnixRights(files...)
	}
	_, _, err := b.f.conn.c.WriteMsgUnix(p, oob, nil)
	return err
}

func short(c *BackendConfig) { c.Timeout = 50 * time.Millisecond }

// TestHostileStreams breaks the stream itself.
func TestHostileStreams(t *testing.T) {
	header := func(h Header) []byte {
		b := native.AppendUint32(nil, uint32(h.Request))
		return native.AppendUint32(native.AppendUint32(b, h.Flags), h.Size)
	}
	features := header(Header{SetFeatures, flagVersion, 8})
	for _, tc := range []struct {
		name string
		do   func(b *bed) error
		want error
	}{
		{"half a header, then silence", func(b *bed) error { return b.raw(features[:5]) }, os.ErrDeadlineExceeded},
		{"half a message, then silence", func(b *bed) error { return b.raw(append(features, 1, 2, 3)) }, os.ErrDeadlineExceeded},
		{"half a message, then the end", func(b *bed) error {
			b.must(b.raw(append(features, 1, 2, 3)))
			return b.f.Close()
		}, io.ErrUnexpectedEOF},
		{"descriptor with the payload", func(b *bed) error {
			b.must(b.raw(features))
			return b.raw(make([]byte, 8), memfd(b.t, 1))
		}, ErrFiles},
		{"payload of 4097 bytes", func(b *bed) error { return b.raw(header(Header{SetMemTable, flagVersion, 4097})) }, ErrSize},
		{"payload of 4 GiB", func(b *bed) error { return b.raw(header(Header{SetMemTable, flagVersion, math.MaxUint32})) }, ErrSize},
		{"version 2", func(b *bed) error { return b.raw(header(Header{SetOwner, 2, 0})) }, ErrVersion},
		{"answers are not read", func(b *bed) error {
			m := header(Header{GetFeatures, flagVersion | flagNeedReply, 0})
			for {
				if err := b.f.conn.c.SetWriteDeadline(time.Now().Add(waitFor)); err != nil {
					return err
				}
				if b.raw(m) != nil {
					return nil // the back end has closed the connection
				}
			}
		}, os.ErrDeadlineExceeded},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBed(t)
			if tc.want == os.ErrDeadlineExceeded {
				b = newBed(t, short)
			}
			b.must(tc.do(b))
			if err := b.end(); !errors.Is(err, tc.want) {
				t.Errorf("the session ends with %v, want %v", err, tc.want)
			}
		})
	}
}

// TestSlowMessage arrives byte by byte, with its descriptor at the first one.
func TestSlowMessage(t *testing.T) {
	b := newBed(t)
	b.negotiate()
	m := Message{Header: Header{Request: SetMemTable, Flags: flagNeedReply}, Regions: []Region{guestRegion}}
	files := []int{memfd(t, guestSize)}
	for _, c := range m.Append(nil) {
		b.must(b.raw([]byte{c}, files...))
		files = nil
	}
	h, payload, _, err := b.f.conn.receive()
	b.must(err)
	if reply, err := DecodeReply(h, payload); err != nil || reply.U64 != 0 {
		t.Errorf("answer %+v, %v", reply, err)
	}
}
