// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"encoding/binary"
	"errors"
	"math"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/vhostnet"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/vhostuser"
)

// breach is a front end that breaks one rule in its session. The log has the reason in one
// line, and the connection is closed.
type breach struct {
	name   string
	do     func(f *rawVirt)
	reason string
}

// breaches runs each front end on a device, while a guest on another one has traffic.
func breaches(t *testing.T, list []breach) {
	w := newWorld(t)
	d := w.vhost("web", "--queues", "2")
	f := d.raw()
	f.served()
	_, files := d.held()
	pid := d.PID()
	w.beside(func() {
		for _, b := range list {
			w.situation(b.name, func() {
				f.w = w
				f.renew()
				from := len(d.Log())
				b.do(f)
				f.hungUp()
				d.logged(from, "connection closed", b.reason)
				f.close()
				if l := d.warnings(from); len(l) != 1 {
					w.t.Errorf("the log has %d lines about it: %q", len(l), l)
				}
				d.waitStatus("the reason in the status", func(s *vhostnet.Status) bool { return s.Error != "" && s.State == vhostnet.Waiting })
				d.released(files)
			})
		}
	})
	if d.PID() != pid {
		t.Error("it is another process")
	}
	f.w = w
	f.served()
	d.released(files)
}

// asks sends requests, of which the last is refused or answered by the end of the connection.
func (f *rawVirt) asks(list ...vhostuser.Message) {
	f.w.t.Helper()
	for i, m := range list {
		_, err := f.f.Do(m)
		if last := i == len(list)-1; last != (err != nil) {
			f.w.t.Errorf("message %d, %v: %v", i, m.Request, err)
		}
	}
}

func vmessage(r vhostuser.Request) vhostuser.Message {
	return vhostuser.Message{Header: vhostuser.Header{Request: r}}
}

// memory sends regions, all of the front end's memory.
func (f *rawVirt) memory(regions ...vhostuser.Region) {
	f.w.t.Helper()
	f.open(rawFeatures)
	m := vmessage(vhostuser.SetMemTable)
	m.Regions = regions
	for range regions {
		m.Files = append(m.Files, f.fd)
	}
	f.asks(m)
}

// region returns the usual region, changed.
func region(change func(r *vhostuser.Region)) vhostuser.Region {
	r := rawRegion
	change(&r)
	return r
}

func TestVhostHostileMemory(t *testing.T) {
	memory := func(regions ...vhostuser.Region) func(f *rawVirt) {
		return func(f *rawVirt) { f.memory(regions...) }
	}
	breaches(t, []breach{
		{"guest ranges overlap", memory(rawRegion, region(func(r *vhostuser.Region) { r.User = 0; r.Guest += rawSize - 1 })), "overlap"},
		{"user ranges overlap", memory(rawRegion, region(func(r *vhostuser.Region) { r.Guest = 0; r.User-- })), "overlap"},
		{"no bytes", memory(region(func(r *vhostuser.Region) { r.Size = 0 })), "has no bytes"},
		{"guest range wraps", memory(region(func(r *vhostuser.Region) { r.Guest = math.MaxUint64 - rawPage })), "wraps"},
		{"user range wraps", memory(region(func(r *vhostuser.Region) { r.User = math.MaxUint64 - rawPage })), "wraps"},
		{"offset wraps", memory(region(func(r *vhostuser.Region) { r.Offset = math.MaxUint64 - rawPage + 1 })), "wraps"},
		{"file is shorter", memory(region(func(r *vhostuser.Region) { r.Size += rawPage })), "shorter"},
		{"terabytes of a short file", memory(region(func(r *vhostuser.Region) { r.Size = 1 << 40 })), "shorter"},
		{"flags 3", memory(region(func(r *vhostuser.Region) { r.Flags = 3 })), "flags"},
		{"foreign memory in a memfd", memory(region(func(r *vhostuser.Region) { r.Flags = vhostuser.RegionForeign })), "not what its flags say"},
		{"directory", func(f *rawVirt) {
			dir, err := os.Open(f.w.t.TempDir())
			f.w.must(err)
			defer dir.Close()
			f.open(rawFeatures)
			m := vmessage(vhostuser.SetMemTable)
			m.Regions, m.Files = []vhostuser.Region{rawRegion}, []int{int(dir.Fd())}
			f.asks(m)
		}, "not what its flags say"},
		{"33 regions, one by one", func(f *rawVirt) {
			f.open(rawFeatures)
			var list []vhostuser.Message
			for i := range 33 {
				m := vmessage(vhostuser.AddMemReg)
				m.Regions = []vhostuser.Region{{Guest: uint64(i) << 20, User: uint64(i) << 20, Size: rawPage}}
				m.Files = []int{f.fd}
				list = append(list, m)
			}
			f.asks(list...)
		}, "more regions"},
		{"region to remove does not exist", func(f *rawVirt) {
			f.open(rawFeatures)
			f.share()
			m := vmessage(vhostuser.RemMemReg)
			m.Regions = []vhostuser.Region{region(func(r *vhostuser.Region) { r.Guest++ })}
			f.asks(m)
		}, "does not exist"},
		{"ring at the end of a region", func(f *rawVirt) {
			f.open(rawFeatures)
			f.share()
			a := f.addr(0)
			a.Used = rawUser + rawSize - 64
			if f.f.StartRing(a, rawRing, 0, f.kick[0], f.call[0]) == nil {
				f.w.t.Error("the ring is started")
			}
		}, "in no region"},
		{"ring by its guest address", func(f *rawVirt) {
			f.open(rawFeatures)
			f.share()
			a := f.addr(0)
			a.Descriptor = rawGuest
			if f.f.StartRing(a, rawRing, 0, f.kick[0], f.call[0]) == nil {
				f.w.t.Error("the ring is started")
			}
		}, "in no region"},
	})
}

// TestVhostMemoryTakenAway: memory that a session uses is replaced by memory without its rings,
// or the files behind it are made shorter.
func TestVhostMemoryTakenAway(t *testing.T) {
	breaches(t, []breach{
		{"memory that is taken from under rings", func(f *rawVirt) {
			f.running(rawFeatures)
			f.memoryOf(region(func(r *vhostuser.Region) { r.User += 16 << 20 }))
		}, "in no region"},
		{"memory that is made shorter", func(f *rawVirt) {
			f.running(rawFeatures)
			f.sends()
			f.w.must(unix.Ftruncate(f.fd, 0))
			f.poke(1)
		}, "cannot be accessed"},
		{"buffers that are made shorter", func(f *rawVirt) {
			f.running(rawFeatures)
			f.sends()
			f.w.must(unix.Ftruncate(f.fd, rawData))
			f.desc(1, 0, rawGuest+rawData+8*rawPage, 100, 0, 0)
			f.offer(1, 0)
		}, "cannot be accessed"},
		{"log that is made shorter", func(f *rawVirt) {
			f.running(rawFeatures)
			log, mem := f.log(rawFeatures)
			defer func() { f.w.must(errors.Join(unix.Munmap(mem), unix.Close(log))) }()
			f.w.must(unix.Ftruncate(log, 0))
			f.desc(0, 0, rawGuest+rawData, 2000, descWrite, 0)
			f.offer(0, 0)
			f.frames()
		}, "cannot be accessed"},
		{"inflight region that is made shorter", func(f *rawVirt) {
			f.open(rawFeatures)
			f.share()
			m := vmessage(vhostuser.GetInflightFD)
			m.Inflight = vhostuser.Inflight{Queues: 4, QueueSize: rawRing}
			r, err := f.f.Do(m)
			f.w.must(err)
			defer unix.Close(r.Files[0])
			m = vmessage(vhostuser.SetInflightFD)
			m.Inflight, m.Files = r.Inflight, r.Files
			_, err = f.f.Do(m)
			f.w.must(err)
			f.start(1)
			if err := unix.Ftruncate(r.Files[0], 0); errors.Is(err, unix.EPERM) {
				f.showAvail(1, 100) // it is sealed, which is as good
			} else {
				f.w.must(err)
				f.desc(1, 0, rawGuest+rawData, 100, 0, 0)
				f.offer(1, 0)
			}
		}, ""},
	})
}

// log begins to log dirty pages while the rings run.
func (f *rawVirt) log(features uint64) (fd int, mem []byte) {
	f.w.t.Helper()
	const logAll, size = 1 << 26, rawGuest / rawPage
	fd, err := unix.MemfdCreate("raw-log", unix.MFD_CLOEXEC)
	f.w.must(err)
	f.w.must(unix.Ftruncate(fd, size))
	mem, err = unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	f.w.must(err)
	m := vmessage(vhostuser.SetLogBase)
	m.Log, m.Files = vhostuser.Area{Size: size}, []int{fd}
	_, err = f.f.Do(m)
	f.w.must(err)
	f.w.must(f.f.U64(vhostuser.SetFeatures, features|logAll|1<<30))
	return fd, mem
}

// memoryOf sends another table in a session.
func (f *rawVirt) memoryOf(r vhostuser.Region) {
	f.w.t.Helper()
	m := vmessage(vhostuser.SetMemTable)
	m.Regions, m.Files = []vhostuser.Region{r}, []int{f.fd}
	f.asks(m)
}

func TestVhostHostileMessages(t *testing.T) {
	state := func(r vhostuser.Request, index, num uint32) func(f *rawVirt) {
		return func(f *rawVirt) {
			f.open(rawFeatures)
			m := vmessage(r)
			m.State = vhostuser.VringState{Index: index, Num: num}
			f.asks(m)
		}
	}
	word := func(r vhostuser.Request, v uint64, files ...func(f *rawVirt) int) func(f *rawVirt) {
		return func(f *rawVirt) {
			f.open(rawFeatures)
			m := vmessage(r)
			m.U64 = v
			for _, open := range files {
				m.Files = append(m.Files, open(f))
			}
			f.asks(m)
		}
	}
	memfd := func(f *rawVirt) int { return f.fd }
	null := func(f *rawVirt) int {
		fd, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
		f.w.must(err)
		f.w.t.Cleanup(func() { _ = unix.Close(fd) })
		return fd
	}
	running := func(m vhostuser.Message) func(f *rawVirt) {
		return func(f *rawVirt) { f.running(rawFeatures); f.asks(m) }
	}
	raw := func(b []byte) func(f *rawVirt) {
		return func(f *rawVirt) {
			f.open(rawFeatures)
			_, err := f.c.Write(b)
			f.w.must(err)
		}
	}
	size := vmessage(vhostuser.SetVringNum)
	size.State = vhostuser.VringState{Index: 0, Num: 8}
	breaches(t, []breach{
		{"ring of 0", state(vhostuser.SetVringNum, 0, 0), "size of a ring"},
		{"ring of 6", state(vhostuser.SetVringNum, 0, 6), "size of a ring"},
		{"ring of 65536", state(vhostuser.SetVringNum, 0, 65536), "size of a ring"},
		{"ring 4 of 4", state(vhostuser.SetVringNum, 4, 16), "does not exist"},
		{"base of ring 2^32-1", state(vhostuser.SetVringBase, math.MaxUint32, 16), "does not exist"},
		{"stop ring 4", state(vhostuser.GetVringBase, 4, 0), "does not exist"},
		{"enable ring 4", state(vhostuser.SetVringEnable, 4, 1), "does not exist"},
		{"enable 2", state(vhostuser.SetVringEnable, 0, 2), "flags"},
		{"size of a ring that runs", running(size), "that runs"},
		{"features while rings run", running(vmessage(vhostuser.SetFeatures)), "that runs"},
		{"features that were not offered", word(vhostuser.SetFeatures, 1<<57), "not offered"},
		{"protocol features that were not offered", word(vhostuser.SetProtocolFeatures, 1<<21), "not offered"},
		{"kick is a regular file", word(vhostuser.SetVringKick, 0, memfd), "no eventfd"},
		{"call is /dev/null", word(vhostuser.SetVringCall, 0, null), "no eventfd"},
		{"kick of ring 200", word(vhostuser.SetVringKick, 200|1<<8), "does not exist"},
		{"descriptor of a message without any", word(vhostuser.SetFeatures, rawFeatures, memfd), "number of descriptors"},
		{"no descriptor of a message with one", word(vhostuser.SetVringKick, 0), "number of descriptors"},
		{"33 descriptors", func(f *rawVirt) {
			f.open(rawFeatures)
			m := vmessage(vhostuser.SetMemTable)
			for range 33 {
				m.Files = append(m.Files, f.fd)
			}
			f.asks(m)
		}, "number of descriptors"},
		{"payload of 4097 bytes", raw(vheader(vhostuser.SetMemTable, 1, 4097)), "size"},
		{"payload of 4 GiB", raw(vheader(vhostuser.SetMemTable, 1, math.MaxUint32)), "size"},
		{"payload of a message without any", raw(append(vheader(vhostuser.SetOwner, 1, 8), make([]byte, 8)...)), "size"},
		{"version 2", raw(vheader(vhostuser.SetOwner, 2, 0)), "version"},
		{"message 41", raw(append(vheader(41, 1, 8), make([]byte, 8)...)), "not known"},
		{"message 2^32-1", raw(vheader(math.MaxUint32, 1, 0)), "not known"},
		{"death in the middle of a message", func(f *rawVirt) {
			f.open(rawFeatures)
			_, err := f.c.Write(append(vheader(vhostuser.SetFeatures, 1, 8), 1, 2, 3))
			f.w.must(errors.Join(err, f.c.CloseWrite()))
		}, "EOF"},
		{"inflight region of too many queues", func(f *rawVirt) {
			f.open(rawFeatures)
			m := vmessage(vhostuser.GetInflightFD)
			m.Inflight = vhostuser.Inflight{Queues: 100, QueueSize: 1024}
			f.asks(m)
		}, "inflight"},
		{"log of no bytes", func(f *rawVirt) {
			f.open(rawFeatures)
			m := vmessage(vhostuser.SetLogBase)
			m.Files = []int{f.fd}
			f.asks(m)
		}, "SET_LOG_BASE"},
	})
}

// vheader returns the header of a message.
func vheader(r vhostuser.Request, flags, size uint32) []byte {
	b := binary.NativeEndian.AppendUint32(nil, uint32(r))
	return binary.NativeEndian.AppendUint32(binary.NativeEndian.AppendUint32(b, flags), size)
}

func TestVhostHostileRings(t *testing.T) {
	const table = rawData + 0x8000 // of indirect descriptors
	tx := func(do func(f *rawVirt)) func(f *rawVirt) {
		return func(f *rawVirt) {
			f.running(rawFeatures)
			f.sends()
			do(f)
		}
	}
	one := func(addr uint64, n, flags, next int) func(f *rawVirt) {
		return tx(func(f *rawVirt) { f.desc(1, 0, addr, n, flags, next); f.offer(1, 0) })
	}
	indirect := func(n int, write func(f *rawVirt)) func(f *rawVirt) {
		return tx(func(f *rawVirt) {
			write(f)
			f.desc(1, 0, rawGuest+table, n, descIndirect, 0)
			f.offer(1, 0)
		})
	}
	breaches(t, append([]breach{
		{"more available than the ring has", tx(func(f *rawVirt) { f.showAvail(1, f.idx[1]+rawRing+1) }), "the available index is out of bounds"},
		{"available index goes back", tx(func(f *rawVirt) { f.showAvail(1, f.idx[1]-1) }), "the available index is out of bounds"},
		{"head 16 of 16", tx(func(f *rawVirt) { f.offer(1, rawRing) }), "the head of a chain"},
		{"head 65535", tx(func(f *rawVirt) { f.offer(1, 65535) }), "the head of a chain"},
		{"next 16 of 16", one(rawGuest+rawData, 72, descNext, rawRing), "the next descriptor"},
		{"loop", one(rawGuest+rawData, 72, descNext, 0), "a loop"},
		{"descriptor of no bytes", one(rawGuest+rawData, 0, 0, 0), "has no bytes"},
		{"descriptor behind the memory", one(rawGuest+rawSize-60, 72, 0, 0), "outside of guest memory"},
		{"descriptor at 2^64", one(math.MaxUint64-20, 72, 0, 0), "outside of guest memory"},
		{"descriptor of 4 GiB", one(rawGuest+rawData, math.MaxUint32, 0, 0), "outside of guest memory"},
		{"user address in a descriptor", one(rawUser+rawData, 72, 0, 0), "outside of guest memory"},
		{"writable before readable", tx(func(f *rawVirt) {
			f.desc(1, 0, rawGuest+rawData, 12, descNext|descWrite, 1)
			f.desc(1, 1, rawGuest+rawData, 60, 0, 0)
			f.offer(1, 0)
		}), "a readable descriptor follows a writable one"},
		{"indirect table of 17 bytes", indirect(17, func(*rawVirt) {}), "bad length"},
		{"indirect table of no bytes", indirect(0, func(*rawVirt) {}), "length"},
		{"indirect in indirect", indirect(16, func(f *rawVirt) { f.table(table, 0, rawGuest+table, 16, descIndirect, 0) }), "indirect descriptor in an indirect table"},
		{"loop in an indirect table", indirect(32, func(f *rawVirt) {
			f.table(table, 0, rawGuest+rawData, 72, descNext, 1)
			f.table(table, 1, rawGuest+rawData, 72, descNext, 0)
		}), "a loop"},
		{"next of an indirect table", indirect(16, func(f *rawVirt) { f.table(table, 0, rawGuest+rawData, 72, descNext, 1) }), "the next descriptor"},
		{"indirect table of 2^28 descriptors", indirect(0xfffffff0, func(*rawVirt) {}), "virtqueue"},
		{"indirect table behind the memory", tx(func(f *rawVirt) {
			f.desc(1, 0, rawGuest+rawSize-16, 32, descIndirect, 0)
			f.offer(1, 0)
		}), "outside of guest memory"},
		{"indirect without the feature", func(f *rawVirt) {
			f.running(rawFeatures &^ virtIndirect)
			f.desc(1, 0, rawGuest+table, 16, descIndirect, 0)
			f.offer(1, 0)
		}, "without the feature"},
		{"nothing to write to", func(f *rawVirt) {
			f.running(rawFeatures)
			f.desc(0, 0, rawGuest+rawData, 2000, 0, 0)
			f.offer(0, 0)
			f.frames()
		}, "nothing to write to"},
		{"rx buffer outside", func(f *rawVirt) {
			f.running(rawFeatures)
			f.desc(0, 0, 0, 2000, descWrite, 0)
			f.offer(0, 0)
			f.frames()
		}, "outside of guest memory"},
	}, packedBreaches()...))
}

// packedBreaches are those of a packed tx ring.
func packedBreaches() []breach {
	const table = rawData + 0x8000
	return []breach{
		{"packed: loop", func(f *rawVirt) {
			f.packed(func(d []byte) {
				for i := range rawRing {
					packedDesc(d, i, rawGuest+rawData, 72, descNext)
				}
			})
		}, "a loop"},
		{"packed: descriptor outside", func(f *rawVirt) {
			f.packed(func(d []byte) { packedDesc(d, 0, 0, 72, 0) })
		}, "outside of guest memory"},
		{"packed: indirect table of 17 bytes", func(f *rawVirt) {
			f.packed(func(d []byte) { packedDesc(d, 0, rawGuest+table, 17, descIndirect) })
		}, "bad length"},
	}
}

// frames sends packets from the host to the guest until the back end closes the connection.
func (f *rawVirt) frames() {
	f.w.t.Helper()
	c := f.w.cable(f.d.status().Interface, func(f func() error) error { return f() })
	b := make([]byte, 64)
	f.w.wait("the end of the connection", func() bool {
		_ = c.try(tap.VnetHdr{}, plainFrame(1000)) // there is no carrier at first
		_ = f.c.SetReadDeadline(time.Now().Add(time.Millisecond))
		_, err := f.c.Read(b)
		return err != nil && !errors.Is(err, os.ErrDeadlineExceeded)
	})
}

// packed begins a session with a packed tx ring whose descriptors write has written.
func (f *rawVirt) packed(write func(desc []byte)) {
	f.w.t.Helper()
	f.open(rawFeatures | virtPacked)
	f.share()
	at := uint64(rawUser + rawPage)
	a := vhostuser.VringAddr{Index: 1, Descriptor: at, Available: at + 16*rawRing, Used: at + 16*rawRing + 4}
	f.w.must(f.f.StartRing(a, rawRing, 0x80008000, f.kick[1], f.call[1]))
	write(f.mem[rawPage:])
	f.poke(1)
}

// packedDesc writes an available descriptor of the first round of a packed ring.
func packedDesc(desc []byte, i int, addr uint64, n, flags int) {
	const available = 1 << 7
	binary.LittleEndian.PutUint64(desc[16*i:], addr)
	binary.LittleEndian.PutUint64(desc[16*i+8:], uint64(n)|uint64(i)<<32|uint64(flags|available)<<48)
}

// TestVhostSilentFrontEnds: a front end that stops in the middle of a message, or that does
// not read answers, costs its own device ten seconds.
func TestVhostSilentFrontEnds(t *testing.T) {
	w := newWorld(t)
	var all []*rawVirt
	for name, do := range map[string]func(f *rawVirt) error{
		"half-header": func(f *rawVirt) error { _, err := f.c.Write(vheader(vhostuser.SetFeatures, 1, 8)[:5]); return err },
		"half-message": func(f *rawVirt) error {
			_, err := f.c.Write(append(vheader(vhostuser.SetFeatures, 1, 8), 1, 2, 3))
			return err
		},
		"unread-answers": func(f *rawVirt) error {
			ask := vheader(vhostuser.GetFeatures, 1|1<<3, 0)
			for {
				_ = f.c.SetWriteDeadline(time.Now().Add(time.Second))
				if _, err := f.c.Write(ask); errors.Is(err, os.ErrDeadlineExceeded) {
					return nil
				} else if err != nil {
					return err
				}
			}
		},
	} {
		f := w.vhost(name).raw()
		f.open(rawFeatures)
		w.must(do(f))
		all = append(all, f)
	}
	w.beside(func() {
		for _, f := range all {
			f.d.logged(0, "connection closed", "timeout")
			f.served()
		}
	})
}
