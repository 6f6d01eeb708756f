// SPDX-License-Identifier: Apache-2.0

package iouring

import (
	"errors"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const tapName = "uring0"

// tap is a TAP that is up, in a network namespace of its own, with a packet socket on
// it. The test's thread stays in the namespace.
type tap struct {
	fd, packet, ctl int
}

func newTAP(t testing.TB) *tap {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for a network namespace and a TAP")
	}
	runtime.LockOSThread() // never unlocked: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	// IPv6 would send packets by itself.
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	d := &tap{fd: openTAP(t, tapName)}
	var err error
	if d.ctl, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		t.Fatal(err)
	}
	ifr, err := unix.NewIfreq(tapName)
	if err != nil {
		t.Fatal(err)
	}
	d.setFlags(t, unix.IFF_UP)
	if err := unix.IoctlIfreq(d.ctl, unix.SIOCGIFINDEX, ifr); err != nil {
		t.Fatal(err)
	}
	if d.packet, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
		t.Fatal(err)
	}
	all := uint16(unix.ETH_P_ALL)
	if err := unix.Bind(d.packet, &unix.SockaddrLinklayer{Ifindex: int(ifr.Uint32()), Protocol: all<<8 | all>>8}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		d.closePacketSocket(t)
		closeNow(t, d.ctl, d.fd)
	})
	return d
}

// closePacketSocket closes the socket, so that frames written to the TAP have no reader.
func (d *tap) closePacketSocket(t testing.TB) {
	if d.packet >= 0 {
		closeNow(t, d.packet)
		d.packet = -1
	}
}

func (d *tap) setFlags(t testing.TB, flags uint16) {
	t.Helper()
	ifr, err := unix.NewIfreq(tapName)
	if err != nil {
		t.Fatal(err)
	}
	ifr.SetUint16(flags)
	if err := unix.IoctlIfreq(d.ctl, unix.SIOCSIFFLAGS, ifr); err != nil {
		t.Fatal(err)
	}
}

func openTAP(t testing.TB, name string) int {
	t.Helper()
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		t.Fatal(err)
	}
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		closeNow(t, fd)
		t.Fatal(err)
	}
	return fd
}

// frame writes an Ethernet frame of n bytes for another host, numbered, to mem.
func frame(mem []byte, n int, number byte) {
	clear(mem[:n])
	copy(mem, []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5})
	mem[14] = number
}

// fill sends count frames of n bytes through the stack to the TAP.
func (d *tap) fill(t testing.TB, count, n int) {
	t.Helper()
	buf := make([]byte, n)
	for i := range count {
		frame(buf, n, byte(i))
		if _, err := unix.Write(d.packet, buf); err != nil {
			t.Fatal(err)
		}
	}
}

// drain takes all frames that the TAP has received.
func (d *tap) drain(t testing.TB) (numbers []byte) {
	t.Helper()
	buf := make([]byte, 2048)
	for {
		n, err := unix.Read(d.packet, buf)
		if err == unix.EAGAIN {
			return numbers
		}
		if err != nil || n < 60 {
			t.Fatal(n, err)
		}
		numbers = append(numbers, buf[14])
	}
}

func TestTAPBatches(t *testing.T) {
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			watchdog(t, 30*time.Second)
			d := newTAP(t)
			r := m.ring(t, 64)
			mem := memory(t, 64*2048)
			base := address(mem)
			if err := r.RegisterBuffers(mem); err != nil {
				t.Fatal(err)
			}
			vecs := iovecs(t, 2)
			m.set(t, r, 2, d.fd)

			for round := range 20 {
				var sent []byte
				for i := range 64 {
					frame(mem[i*2048:], 60+i, byte(round+i))
					sent = append(sent, byte(round+i))
					at, n := base+uintptr(i)*2048, uint32(60+i)
					switch {
					case i == 40:
						vecs.Set(0, at, 14)
						vecs.Set(1, at+14, n-14)
						r.Writev(2, vecs.At(0), 2, uint64(i))
					case i%2 == 0:
						r.WriteFixed(2, at, n, 0, uint64(i))
					default:
						r.Write(2, at, n, uint64(i))
					}
				}
				for user, res := range submit(t, r) {
					if res != int32(60+user) {
						t.Fatalf("write %d: %d, want %d", user, res, 60+user)
					}
				}
				if diff := cmp.Diff(sent, d.drain(t)); diff != "" {
					t.Fatalf("frames that arrived, in order (-want +got)\n%s", diff)
				}

				// 10 packets, 16 reads
				clear(mem)
				d.fill(t, 10, 100)
				for i := range 16 {
					at := base + uintptr(i)*2048
					switch {
					case i == 7:
						vecs.Set(0, at, 14)
						vecs.Set(1, at+14, 1000)
						r.Readv(2, vecs.At(0), 2, uint64(i))
					case i%2 == 0:
						r.ReadFixed(2, at, 2048, 0, uint64(i))
					default:
						r.Read(2, at, 2048, uint64(i))
					}
				}
				want := map[uint64]int32{}
				for i := range uint64(16) {
					want[i] = 100
					if i >= 10 {
						want[i] = again
					}
				}
				if diff := cmp.Diff(want, submit(t, r)); diff != "" {
					t.Fatalf("10 packets, 16 reads (-want +got)\n%s", diff)
				}
				for i := range 10 {
					if got := mem[i*2048+14]; got != byte(i) {
						t.Fatalf("read %d has packet %d", i, got)
					}
				}
			}
		})
	}
}

func TestEmptyTAPDoesNotHang(t *testing.T) {
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			watchdog(t, 10*time.Second)
			d := newTAP(t)
			r := m.ring(t, 64)
			mem := memory(t, 4096)
			m.set(t, r, 0, d.fd)
			for range 1000 {
				for i := range uint64(16) {
					r.Read(0, address(mem), 2048, i)
				}
				for user, res := range submit(t, r) {
					if res != again {
						t.Fatalf("read %d: %d, want -EAGAIN", user, res)
					}
				}
			}
			d.fill(t, 1, 100)
			r.Read(0, address(mem), 2048, 0)
			if diff := cmp.Diff(map[uint64]int32{0: 100}, submit(t, r)); diff != "" {
				t.Errorf("the packet after (-want +got)\n%s", diff)
			}
		})
	}
}

// TestSettingATAPTakesNoPacket: the probe for RWF_NOWAIT reads no packet.
func TestSettingATAPTakesNoPacket(t *testing.T) {
	watchdog(t, 10*time.Second)
	d := newTAP(t)
	r := modes[0].ring(t, 8)
	d.fill(t, 3, 100)
	for range 10 {
		if err := r.SetFile(0, d.fd); err != nil {
			t.Fatal(err)
		}
	}
	mem := memory(t, 4096)
	for i := range uint64(4) {
		r.Read(0, address(mem), 2048, i)
	}
	if diff := cmp.Diff(map[uint64]int32{0: 100, 1: 100, 2: 100, 3: again}, submit(t, r)); diff != "" {
		t.Errorf("3 packets waited (-want +got)\n%s", diff)
	}
}

func TestTAPThatIsDown(t *testing.T) {
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			watchdog(t, 10*time.Second)
			d := newTAP(t)
			r := m.ring(t, 8)
			mem := memory(t, 4096)
			frame(mem, 60, 0)
			m.set(t, r, 0, d.fd)
			d.setFlags(t, 0)
			r.Write(0, address(mem), 60, 0)
			r.Write(0, address(mem), 10, 1) // no Ethernet header
			r.Read(0, address(mem), 2048, 2)
			want := map[uint64]int32{0: -int32(unix.EIO), 1: -int32(unix.EINVAL), 2: again}
			if diff := cmp.Diff(want, submit(t, r)); diff != "" {
				t.Errorf("results (-want +got)\n%s", diff)
			}
		})
	}
}

// TestTAPWhoseSendBufferIsFull: frames that a slow bridge port holds count against
// the TAP they were written to.
func TestTAPWhoseSendBufferIsFull(t *testing.T) {
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			watchdog(t, 30*time.Second)
			d := newTAP(t)
			closeLater(t, openTAP(t, "uring1"))
			bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "uringbr"}}
			if err := netlink.LinkAdd(bridge); err != nil {
				t.Fatal(err)
			}
			var slow netlink.Link
			for _, name := range []string{tapName, "uring1", "uringbr"} {
				link, err := netlink.LinkByName(name)
				if err != nil {
					t.Fatal(err)
				}
				if name != "uringbr" {
					err = netlink.LinkSetMaster(link, bridge)
				}
				if err := errors.Join(err, netlink.LinkSetUp(link)); err != nil {
					t.Fatal(err)
				}
				if name == "uring1" {
					slow = link
				}
			}
			err := netlink.QdiscAdd(&netlink.Tbf{
				QdiscAttrs: netlink.QdiscAttrs{LinkIndex: slow.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
				Rate:       1000, // bytes a second
				Limit:      1 << 20,
				Buffer:     uint32(2*time.Second) >> 6, // the time that a burst of 2000 bytes takes, in units of 64 ns
			})
			if errors.Is(err, unix.ENOENT) {
				t.Skip("the kernel has no token bucket filter")
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := unix.IoctlSetPointerInt(d.fd, unix.TUNSETSNDBUF, 16384); err != nil {
				t.Fatal(err)
			}
			r := m.ring(t, 64)
			mem := memory(t, 2048)
			m.set(t, r, 0, d.fd)
			frame(mem, 1000, 0)
			for range 3 {
				for i := range uint64(64) {
					r.Write(0, address(mem), 1000, i)
				}
				var written, refused int
				for user, res := range submit(t, r) {
					switch res {
					case 1000:
						written++
					case again:
						refused++
					default:
						t.Fatalf("write %d: %d, want 1000 or -EAGAIN", user, res)
					}
				}
				t.Logf("%d written, %d refused", written, refused)
				if refused == 0 {
					t.Errorf("64 frames fit into a send buffer of 16384")
				}
			}
		})
	}
}

// TestTAPNameIsFreeAfterClose: the ring does not keep the TAP alive.
func TestTAPNameIsFreeAfterClose(t *testing.T) {
	for _, clearOnly := range []bool{true, false} {
		t.Run(map[bool]string{true: "file cleared", false: "ring closed"}[clearOnly], func(t *testing.T) {
			watchdog(t, 30*time.Second)
			d := newTAP(t)
			for range 20 {
				r := modes[0].ring(t, 8)
				if err := r.SetFile(0, d.fd); err != nil {
					t.Fatal(err)
				}
				mem := memory(t, 4096)
				frame(mem, 60, 0)
				r.Write(0, address(mem), 60, 0)
				submit(t, r)
				var err error
				if clearOnly {
					err = r.ClearFile(0)
				} else {
					err = r.Close()
				}
				if err != nil {
					t.Fatal(err)
				}
				closeNow(t, d.fd)
				d.fd = -1
				interfaces, err := os.ReadFile("/proc/thread-self/net/dev")
				if err != nil {
					t.Fatal(err)
				}
				if strings.Contains(string(interfaces), tapName) && noWaitKernel(t) {
					t.Fatal("the TAP lives on after its last file was closed")
				}
				d.fd = reopenTAP(t)
			}
		})
	}
}

// noWaitKernel reports whether the kernel is 6.4 or later, which drops files at once.
func noWaitKernel(t *testing.T) bool {
	r := modes[0].ring(t, 1)
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	closeLater(t, fd)
	if err := r.SetFile(0, fd); err != nil {
		t.Fatal(err)
	}
	return r.NoWait(0)
}

// reopenTAP waits for the TAP's name: older kernels free it later.
func reopenTAP(t *testing.T) int {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		interfaces, err := os.ReadFile("/proc/thread-self/net/dev")
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(interfaces), tapName) {
			return openTAP(t, tapName)
		}
		if time.Now().After(deadline) {
			t.Fatal("the TAP does not go away")
		}
		runtime.Gosched()
	}
}

// TestManyBatchesLeaveNothing runs 1e5 batches of writes and reads. No memory or file
// may remain.
func TestManyBatchesLeaveNothing(t *testing.T) {
	watchdog(t, 60*time.Second)
	d := newTAP(t)
	m := modes[0]
	r := m.ring(t, 64)
	mem := memory(t, 64*2048)
	if err := r.RegisterBuffers(mem); err != nil {
		t.Fatal(err)
	}
	m.set(t, r, 0, d.fd)
	frame(mem, 60, 0)
	done := make([]Completion, 64)
	batch := func() {
		for i := range uint64(6) {
			r.WriteFixed(0, address(mem), 60, 0, i)
		}
		for i := range uint64(2) {
			r.ReadFixed(0, address(mem)+2048, 2048, 0, 6+i)
		}
		if ready, err := r.Submit(); err != nil || ready != 8 {
			t.Fatal(ready, err)
		}
		if n := r.Completions(done); n != 8 {
			t.Fatal(n)
		}
		for _, c := range done[:6] {
			if c.Res != 60 {
				t.Fatalf("%+v", c)
			}
		}
	}
	d.closePacketSocket(t)
	batch()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	files, err := openFiles()
	if err != nil {
		t.Fatal(err)
	}
	maps := ringMappings(t)
	batches := 100_000
	if testing.Short() {
		batches = 1000
	}
	for range batches {
		batch()
	}
	runtime.ReadMemStats(&after)
	if now, err := openFiles(); err != nil || now != files {
		t.Errorf("%d open files, %d before (%v)", now, files, err)
	}
	if now := ringMappings(t); now != maps {
		t.Errorf("%d mappings, %d before", now, maps)
	}
	// The runtime and the test's own readings allocate a little.
	if n := after.Mallocs - before.Mallocs; n > 1000 {
		t.Errorf("%d allocations in %d batches", n, batches)
	}
	if r.owed != 0 || r.head != r.tail {
		t.Errorf("owed %d, head %d, tail %d", r.owed, r.head, r.tail)
	}
}

// TestRingsLeaveNothing makes and closes rings with registered files and buffers. No
// memory or file may remain.
func TestRingsLeaveNothing(t *testing.T) {
	watchdog(t, 60*time.Second)
	d := newTAP(t)
	mem := memory(t, 1<<20)
	files, err := openFiles()
	if err != nil {
		t.Fatal(err)
	}
	maps := ringMappings(t)
	for range 200 {
		r, err := New(64)
		if err != nil {
			t.Fatal(err)
		}
		if err := errorsOf(r.RegisterBuffers(mem), r.RegisterFiles(64), r.SetFile(63, d.fd), r.Close()); err != nil {
			t.Fatal(err)
		}
	}
	if now, err := openFiles(); err != nil || now != files {
		t.Errorf("%d open files, %d before (%v)", now, files, err)
	}
	if now := ringMappings(t); now != maps {
		t.Errorf("%d mappings, %d before", now, maps)
	}
}

func errorsOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func TestBatchAllocatesNothing(t *testing.T) {
	d := newTAP(t)
	for _, m := range modes {
		r := m.ring(t, 64)
		mem := memory(t, 4096)
		if err := r.RegisterBuffers(mem); err != nil {
			t.Fatal(err)
		}
		m.set(t, r, 0, d.fd)
		frame(mem, 60, 0)
		done := make([]Completion, 64)
		allocs := testing.AllocsPerRun(200, func() {
			for i := range uint64(32) {
				r.WriteFixed(0, address(mem), 60, 0, i)
			}
			for i := range uint64(16) {
				r.ReadFixed(0, address(mem)+2048, 2048, 0, i)
			}
			if ready, err := r.Submit(); err != nil || r.Completions(done) != ready {
				t.Fatal(ready, err)
			}
		})
		if allocs != 0 {
			t.Errorf("%s: %v allocations in a batch", m.name, allocs)
		}
		if err := r.ClearFile(0); err != nil {
			t.Fatal(err)
		}
	}
}
