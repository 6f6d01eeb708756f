// SPDX-License-Identifier: Apache-2.0

package tap

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/netns"
)

// hdrLen returns the length of the header before each frame.
func hdrLen(d *Device) int {
	if d.VnetHdr() {
		return VnetHdrLen
	}
	return 0
}

// plainly puts an empty vnet header before a frame where there has to be one.
func plainly(d *Device, frame []byte) []byte {
	return append(make([]byte, hdrLen(d)), frame...)
}

// readFrame waits for a frame and returns it with its header.
func readFrame(t *testing.T, q *Queue) []byte {
	t.Helper()
	readable(t, q)
	b := make([]byte, VnetHdrLen+MaxFrame)
	n, err := q.Read(b)
	must(t, err)
	return b[:n]
}

func TestFramesPassBothWays(t *testing.T) {
	netns.NeedTUN(t)
	both(t, func(t *testing.T, cfg Config) {
		d := newTAPUp(t, cfg)
		q, host := d.Queue(0), openPacket(t, d.Index(), false)
		frame := tcpFrame(4, 100)

		n, err := q.Write(plainly(d, frame))
		if err != nil || n != hdrLen(d)+len(frame) {
			t.Fatalf("Write: %d, %v", n, err)
		}
		if diff := cmp.Diff(frame, host.recv(t)); diff != "" {
			t.Errorf("written (-want +got):\n%s", diff)
		}
		host.send(t, frame)
		if diff := cmp.Diff(plainly(d, frame), readFrame(t, q)); diff != "" {
			t.Errorf("read (-want +got):\n%s", diff)
		}

		// The same in pieces.
		frame = tcpFrame(6, 1000)
		whole := plainly(d, frame)
		iov := func(b []byte, cuts ...int) (v []unix.Iovec) {
			for _, c := range append(cuts, len(b)) {
				v = append(v, unix.Iovec{Base: &b[0]})
				v[len(v)-1].SetLen(c)
				if b = b[c:]; len(b) == 0 {
					break
				}
			}
			return v
		}
		n, err = q.Writev(iov(whole, 14, 1, 500, len(whole)-515))
		if err != nil || n != len(whole) {
			t.Fatalf("Writev: %d, %v", n, err)
		}
		if diff := cmp.Diff(frame, host.recv(t)); diff != "" {
			t.Errorf("written in pieces (-want +got):\n%s", diff)
		}
		host.send(t, frame)
		readable(t, q)
		got := make([]byte, len(whole))
		n, err = q.Readv(iov(got, 12, 20, len(whole)-32))
		if err != nil || n != len(whole) {
			t.Fatalf("Readv: %d, %v", n, err)
		}
		if diff := cmp.Diff(whole, got); diff != "" {
			t.Errorf("read in pieces (-want +got):\n%s", diff)
		}

		s := info(t, d).Stats
		want := Stats{RxPackets: 2, TxPackets: 2, RxBytes: s.RxBytes, TxBytes: s.TxBytes}
		if diff := cmp.Diff(want, s); diff != "" || s.RxBytes == 0 || s.TxBytes == 0 {
			t.Errorf("stats (-want +got):\n%s", diff)
		}
	})
}

func TestErrorsOfAQueue(t *testing.T) {
	netns.NeedTUN(t)
	both(t, func(t *testing.T, cfg Config) {
		d := newTAP(t, cfg)
		q := d.Queue(0)
		frame := plainly(d, tcpFrame(4, 100))
		buf := make([]byte, VnetHdrLen+MaxFrame)
		check := func(what string, n int, err, want error) {
			t.Helper()
			if n != 0 || err != want {
				t.Errorf("%s: %d, %v; want %v", what, n, err, want)
			}
		}
		n, err := q.Write(frame)
		check("write while down", n, err, unix.EIO)
		if s := info(t, d).Stats; s.RxDropped != 1 {
			t.Errorf("dropped %d, want 1", s.RxDropped)
		}
		must(t, netns.Up(cfg.Name))
		n, err = q.Read(buf)
		check("read of nothing", n, err, ErrAgain)
		n, err = q.Readv([]unix.Iovec{{Base: &buf[0], Len: 100}})
		check("readv of nothing", n, err, ErrAgain)
		n, err = q.Read(nil)
		check("read into nothing", n, err, nil)
		n, err = q.Readv(nil)
		check("readv into nothing", n, err, nil)
		n, err = q.Write(nil)
		check("write of nothing", n, err, unix.EINVAL)
		n, err = q.Writev(nil)
		check("writev of nothing", n, err, unix.EINVAL)
		n, err = q.Write(frame[:hdrLen(d)+ethLen-1])
		check("write of less than an Ethernet header", n, err, unix.EINVAL)
		if _, err = q.Write(frame[:hdrLen(d)+ethLen]); err != nil {
			t.Errorf("write of an Ethernet header: %v", err)
		}
		n, err = q.Writev(make([]unix.Iovec, 1025))
		check("writev of 1025 pieces", n, err, unix.EINVAL)

		host := openPacket(t, d.Index(), false)
		host.send(t, tcpFrame(4, 100))
		readable(t, q)
		if n, err := q.Read(buf[:20]); n != 20 || err != nil {
			t.Errorf("read of a longer frame: %d, %v", n, err)
		}
		n, err = q.Read(buf)
		check("the rest", n, err, ErrAgain)
	})
	t.Run("bad vnet header", func(t *testing.T) {
		d := newTAPUp(t, Config{Name: "vif1.0", VnetHdr: true})
		bad := csumHdr(4)
		bad.CsumStart = 500
		if n, err := d.Queue(0).Write(withHdr(bad, tcpFrame(4, 100))); n != 0 || err != unix.EINVAL {
			t.Errorf("%d, %v", n, err)
		}
	})
}

func TestNoAllocation(t *testing.T) {
	netns.NeedTUN(t)
	both(t, func(t *testing.T, cfg Config) {
		d := newTAPUp(t, cfg)
		q := d.Queue(0)
		frame, short := plainly(d, tcpFrame(4, 100)), make([]byte, 5)
		buf := make([]byte, 2048)
		iov := []unix.Iovec{{Base: &frame[0], Len: uint64(len(frame))}}
		for what, f := range map[string]func() error{
			"write":       func() error { _, err := q.Write(frame); return err },
			"writev":      func() error { _, err := q.Writev(iov); return err },
			"write error": func() error { _, err := q.Write(short); return err },
			"read error":  func() error { _, err := q.Read(buf); return err },
			"readv error": func() error { _, err := q.Readv(iov); return err },
		} {
			var last error
			if n := testing.AllocsPerRun(100, func() { last = f() }); n != 0 {
				t.Errorf("%s: %v allocations (%v)", what, n, last)
			}
		}
		var h VnetHdr
		if n := testing.AllocsPerRun(100, func() {
			h.Decode(buf)
			h.GSOType = 77
			h.Encode(buf)
		}); n != 0 {
			t.Errorf("vnet header: %v allocations", n)
		}
	})
}

func TestQueuesKeepTheirNumbers(t *testing.T) {
	netns.NeedTUN(t)
	both(t, func(t *testing.T, cfg Config) {
		cfg.Queues = 4
		d := newTAPUp(t, cfg)
		host := openPacket(t, d.Index(), false)
		seq := 0
		check := func(when string) {
			t.Helper()
			for i := range d.active {
				steerTo(t, d, i)
				seq++
				frame := tcpFrame(4, seq)
				host.send(t, frame)
				if got := readFrame(t, d.Queue(i)); !bytes.Equal(got, plainly(d, frame)) {
					t.Errorf("%s: queue %d has something else", when, i)
				}
			}
		}
		check("at first")
		must(t, d.SetQueues(8))
		check("grown")
		must(t, d.SetQueues(3))
		check("shrunk")
		must(t, d.Use(1))
		check("one active")
		must(t, d.Use(3))
		check("all active again")
		must(t, d.Use(2))
		must(t, d.SetQueues(6))
		check("grown over detached ones")
		must(t, d.SetSteering(-1))
		wantErr(t, d.SetSteering(1<<20), unix.EBADF)
	})
}

func TestAnAdoptedDeviceForgetsItsSteering(t *testing.T) {
	netns.NeedTUN(t)
	cfg := Config{Name: "vif1.0", VnetHdr: true, Persist: true, Queues: 2}
	d := newTAPUp(t, cfg)
	steerTo(t, d, 1)
	must(t, d.CloseKeep())
	cfg.Queues = 1
	d = newTAP(t, cfg)
	must(t, d.SetQueues(2))
	// A flow that was last written on queue 0 comes back there.
	frame := tcpFrame(4, 10)
	if _, err := d.Queue(0).Write(withHdr(VnetHdr{}, frame)); err != nil {
		t.Fatal(err)
	}
	openPacket(t, d.Index(), false).send(t, frame)
	if got := readFrame(t, d.Queue(0)); !bytes.Equal(got[VnetHdrLen:], frame) {
		t.Errorf("got % x", got)
	}
}

// TestKeptQueuesKeepTheirSteering: packets that wait in kept queues and those that come later are
// in the same queue.
func TestKeptQueuesKeepTheirSteering(t *testing.T) {
	netns.NeedTUN(t)
	cfg := Config{Name: "vif1.0", VnetHdr: true, Persist: true, Queues: 2}
	d := newTAPUp(t, cfg)
	steerTo(t, d, 1)
	var fds []int
	for i := range 2 {
		fd, err := unix.Dup(d.Queue(i).FD())
		must(t, err)
		fds = append(fds, fd)
	}
	must(t, d.CloseKeep())
	frame := tcpFrame(4, 10)
	out := openPacket(t, d.Index(), false)
	out.send(t, frame)
	d, err := Adopt(cfg, fds)
	must(t, err)
	t.Cleanup(func() { must(t, d.Close()) })
	// A flow that was last written on queue 0 would be sent there without a program.
	if _, err := d.Queue(0).Write(withHdr(VnetHdr{}, frame)); err != nil {
		t.Fatal(err)
	}
	out.send(t, frame)
	for range 2 {
		if got := readFrame(t, d.Queue(1)); !bytes.Equal(got[VnetHdrLen:], frame) {
			t.Errorf("got % x", got)
		}
	}
}

// forwards tells whether a bridge port has become one that does.
func forwards(t *testing.T, name string) bool {
	t.Helper()
	state, err := os.ReadFile("/sys/class/net/" + name + "/brport/state")
	if err != nil {
		t.Skip(err) // /sys shows another network
	}
	const forwarding = "3\n" // BR_STATE_FORWARDING
	return string(state) == forwarding
}

func TestTheHostCompletesAChecksumLeftUndone(t *testing.T) {
	netns.NeedTUN(t)
	for _, ipv := range []int{4, 6} {
		t.Run(fmt.Sprintf("IPv%d", ipv), func(t *testing.T) {
			// Written to a, bridged, on its way out of b, which does
			// no checksums.
			a := newTAPUp(t, Config{Name: "a0", VnetHdr: true})
			b := newTAPUp(t, Config{Name: "b0", VnetHdr: true})
			newBridge(t, "br0")
			must(t, netns.Attach("a0", "br0"))
			must(t, netns.Attach("b0", "br0"))
			eventually(t, "both ports forward", func() bool { return forwards(t, "a0") && forwards(t, "b0") })
			out := openPacket(t, b.Index(), false)

			frame := tcpFrame(ipv, 333)
			if tcpSumOK(frame) {
				t.Fatal("the checksum is complete beforehand")
			}
			if _, err := a.Queue(0).Write(withHdr(csumHdr(ipv), frame)); err != nil {
				t.Fatal(err)
			}
			got := out.recv(t)
			if !tcpSumOK(got) {
				t.Errorf("checksum is not complete in % x", got)
			}
			read := readFrame(t, b.Queue(0))
			if diff := cmp.Diff(withHdr(VnetHdr{}, got), read); diff != "" {
				t.Errorf("read (-sent +read):\n%s", diff)
			}

			// And a large one arrives in segments.
			frame = tcpFrame(ipv, 3000)
			if _, err := a.Queue(0).Write(withHdr(gsoHdr(ipv, 1000), frame)); err != nil {
				t.Fatal(err)
			}
			payload := 0
			for range 3 {
				seg := readFrame(t, b.Queue(0))[VnetHdrLen:]
				if !tcpSumOK(seg) {
					t.Error("checksum of a segment is wrong")
				}
				payload += len(seg) - (len(frame) - 3000)
			}
			if payload != 3000 {
				t.Errorf("%d bytes arrived", payload)
			}
		})
	}
}

func TestWhatTheHostLeavesUndone(t *testing.T) {
	netns.NeedTUN(t)
	d := newTAPUp(t, Config{Name: "vif1.0", VnetHdr: true})
	q, host := d.Queue(0), openPacket(t, d.Index(), true)
	send := func(t *testing.T, h VnetHdr, frame []byte) {
		t.Helper()
		host.send(t, append(withHdr(h, nil)[:packetHdrLen], frame...))
	}
	for _, ipv := range []int{4, 6} {
		const size, payload = 1400, 3*1400 + 100
		hdrs := csumHdr(ipv).CsumStart + tcpLen
		tso := Offload{Csum: true, TSO4: ipv == 4, TSO6: ipv == 6}
		other := Offload{Csum: true, TSO4: ipv == 6, TSO6: ipv == 4}
		frame := tcpFrame(ipv, payload)

		t.Run(fmt.Sprintf("IPv%d, whole", ipv), func(t *testing.T) {
			must(t, d.SetOffload(tso))
			send(t, gsoHdr(ipv, size), frame)
			got := readFrame(t, q)
			var h VnetHdr
			h.Decode(got)
			h.HdrLen = 0 // a hint
			want := gsoHdr(ipv, size)
			want.HdrLen = 0
			if diff := cmp.Diff(want, h); diff != "" {
				t.Errorf("header (-want +got):\n%s", diff)
			}
			if !bytes.Equal(frame, got[VnetHdrLen:]) {
				t.Error("frame has changed")
			}
		})
		for _, o := range []Offload{{}, {Csum: true}, other} {
			t.Run(fmt.Sprintf("IPv%d, in segments, %+v", ipv, o), func(t *testing.T) {
				must(t, d.SetOffload(o))
				send(t, gsoHdr(ipv, size), frame)
				for i := range 4 {
					got := readFrame(t, q)
					var h VnetHdr
					h.Decode(got)
					want := VnetHdr{}
					if o.Csum {
						want = csumHdr(ipv)
					} else if !tcpSumOK(got[VnetHdrLen:]) {
						t.Error("checksum of a segment is wrong")
					}
					if diff := cmp.Diff(want, h); diff != "" {
						t.Errorf("header of segment %d (-want +got):\n%s", i, diff)
					}
					if got, want := len(got)-VnetHdrLen-int(hdrs), min(size, payload-i*size); got != want {
						t.Errorf("segment %d has %d bytes, want %d", i, got, want)
					}
				}
			})
		}
	}
	t.Run("CWR set: always in segments", func(t *testing.T) {
		must(t, d.SetOffload(Offload{Csum: true, TSO4: true, TSO6: true}))
		frame := tcpFrame(4, 2000)
		frame[tcp4At+13] |= 0x80
		h := gsoHdr(4, 1000)
		h.GSOType |= VnetGSOECN
		send(t, h, frame)
		for i, cwr := range []byte{0x80, 0} {
			got := readFrame(t, q)
			h.Decode(got)
			if diff := cmp.Diff(csumHdr(4), h); diff != "" || got[VnetHdrLen+tcp4At+13]&0x80 != cwr {
				t.Errorf("segment %d: flags %#x, header (-want +got):\n%s", i, got[VnetHdrLen+tcp4At+13], diff)
			}
		}
	})
	t.Run("the longest frame", func(t *testing.T) {
		// The host's gso_max_size counts the Ethernet header.
		const payload = 65535 - tcp4At - tcpLen
		frame := tcpFrame(4, payload)
		send(t, gsoHdr(4, 1400), frame)
		if got := readFrame(t, q); !bytes.Equal(got[VnetHdrLen:], frame) {
			t.Errorf("read %d bytes, want %d", len(got)-VnetHdrLen, len(frame))
		}
	})
}

func TestALongFrameInPieces(t *testing.T) {
	netns.NeedTUN(t)
	d := newTAPUp(t, Config{Name: "vif1.0", VnetHdr: true})
	host := openPacket(t, d.Index(), true)
	const payload = 65535 - ipv4Len - tcpLen
	whole := withHdr(gsoHdr(4, 1448), tcpFrame(4, payload))
	var iov []unix.Iovec
	for b := whole; len(b) > 0; {
		n := min(4096, len(b))
		iov = append(iov, unix.Iovec{Base: &b[0], Len: uint64(n)})
		b = b[n:]
	}
	if n, err := d.Queue(0).Writev(iov); err != nil || n != len(whole) {
		t.Fatalf("%d, %v", n, err)
	}
	got := host.recv(t)
	if !bytes.Equal(got[packetHdrLen:], whole[VnetHdrLen:]) {
		t.Error("frame has changed")
	}
	if size := binary.NativeEndian.Uint16(got[4:]); got[1] != VnetGSOTCPv4 || size != 1448 {
		t.Errorf("gso type %d, size %d", got[1], size)
	}
}

func BenchmarkWrite(b *testing.B) {
	netns.NeedTUN(b)
	d, err := Create(Config{Name: "vif1.0", VnetHdr: true})
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := d.Close(); err != nil {
			b.Error(err)
		}
	}()
	if err := netns.Up("vif1.0"); err != nil {
		b.Fatal(err)
	}
	for _, n := range []int{64, 1514} {
		b.Run(fmt.Sprintf("%d bytes", n), func(b *testing.B) {
			frame := withHdr(VnetHdr{}, tcpFrame(4, n-tcp4At-tcpLen))
			q := d.Queue(0)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := q.Write(frame); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
