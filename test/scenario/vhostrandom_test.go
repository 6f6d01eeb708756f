// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/vhostuser"
)

// envMessages is the number of random messages, by default few, so that the test is short.
const envMessages = "NETBACKD_VHOST_MESSAGES"

// randomFront sends messages of which most make sense, in any order.
type randomFront struct {
	*rawVirt
	rnd    *rand.Rand
	files  []int
	stream []byte // answers that were read in part
	asked  int    // answers of GET_FEATURES to come
}

// pick returns one of several.
func pick[T any](rnd *rand.Rand, list ...T) T { return list[rnd.IntN(len(list))] }

// begin opens a connection.
func (f *randomFront) begin() {
	f.w.t.Helper()
	f.connect()
	f.stream, f.asked = nil, 0
}

// handled asks for the features and waits for the answer, so that all messages before were
// handled. It throws other answers away, with their descriptors, and reports whether the
// connection is still there. If no answer comes, the last message had a longer payload than was sent.
func (f *randomFront) handled() bool {
	if _, err := f.c.Write(vheader(vhostuser.GetFeatures, 1, 0)); err != nil {
		return false
	}
	f.asked++
	_ = f.c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	b, oob := make([]byte, 4096), make([]byte, 256)
	for f.asked > 0 {
		n, m, _, _, err := f.c.ReadMsgUnix(b, oob)
		if err != nil || n == 0 {
			return false
		}
		closeRights(oob[:m])
		f.stream = append(f.stream, b[:n]...)
		for len(f.stream) >= 12 && len(f.stream) >= 12+int(binary.NativeEndian.Uint32(f.stream[8:])) {
			if vhostuser.Request(binary.NativeEndian.Uint32(f.stream)) == vhostuser.GetFeatures {
				f.asked--
			}
			f.stream = f.stream[12+binary.NativeEndian.Uint32(f.stream[8:]):]
		}
	}
	return true
}

// closeRights closes descriptors that came with an answer.
func closeRights(oob []byte) {
	msgs, _ := unix.ParseSocketControlMessage(oob)
	for i := range msgs {
		fds, _ := unix.ParseUnixRights(&msgs[i])
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	}
}

// request returns a request, mostly with a body that makes sense.
func (f *randomFront) request() *vhostuser.Message {
	r := f.rnd
	requests := []vhostuser.Request{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 24, 31, 32, 34, 36, 37, 38, 39, 40}
	m := vmessage(pick(r, requests...))
	m.Flags = pick[uint32](r, 0, 0, 1<<3)
	m.U64 = pick(r, 0, 1, uint64(r.IntN(6)), uint64(r.IntN(6))|1<<8, rawFeatures|1<<30, rawFeatures|1<<30|virtPacked, 0xb, r.Uint64())
	m.State = vhostuser.VringState{Index: uint32(r.IntN(5)), Num: pick[uint32](r, 0, 1, 1, rawRing, rawRing, 0x80008000, r.Uint32())}
	m.Addr = f.addr(uint32(r.IntN(5)))
	m.Addr.Flags = pick[uint32](r, 0, 0, 0, 1, 2)
	if r.IntN(8) == 0 {
		m.Addr.Used = r.Uint64()
	}
	for range 1 + r.IntN(2) {
		reg := rawRegion
		switch r.IntN(8) {
		case 0:
			reg.Guest += rawSize
			reg.User += rawSize
		case 1:
			reg.Size = r.Uint64() >> r.IntN(64)
		case 2:
			reg.Flags = uint32(r.IntN(4))
		}
		m.Regions = append(m.Regions, reg)
	}
	m.Log = vhostuser.Area{Size: pick[uint64](r, 0, rawSize, r.Uint64()), Offset: pick[uint64](r, 0, 0, r.Uint64())}
	m.Inflight = vhostuser.Inflight{Area: m.Log, Queues: uint16(r.IntN(6)), QueueSize: pick[uint16](r, rawRing, rawRing, uint16(r.IntN(65536)))}
	f.attach(&m)
	return &m
}

// attach gives a message descriptors, mostly those that it needs.
func (f *randomFront) attach(m *vhostuser.Message) {
	n := 0
	switch m.Request {
	case vhostuser.SetMemTable:
		n = len(m.Regions)
	case vhostuser.AddMemReg:
		m.Regions, n = m.Regions[:1], 1
	case vhostuser.RemMemReg:
		m.Regions = m.Regions[:1]
	case vhostuser.SetVringKick, vhostuser.SetVringCall, vhostuser.SetVringErr:
		if m.U64 &= 0x1ff; m.U64&0x100 == 0 {
			m.Files = []int{f.kick[f.rnd.IntN(4)]}
		}
	case vhostuser.SetLogBase, vhostuser.SetLogFD, vhostuser.SetInflightFD:
		n = 1
	}
	for range n {
		m.Files = append(m.Files, f.fd)
	}
	if f.rnd.IntN(20) == 0 {
		m.Files = nil
		for range f.rnd.IntN(4) {
			m.Files = append(m.Files, pick(f.rnd, f.files...))
		}
	}
}

// send sends a message, and reports whether the connection is still there when it was
// handled.
func (f *randomFront) send(m *vhostuser.Message) bool {
	b := m.Append(nil)
	cut := false
	switch f.rnd.IntN(150) {
	case 0:
		b, cut = b[:1+f.rnd.IntN(len(b)-1)], true
	case 1:
		b[f.rnd.IntN(len(b))] ^= byte(1 << f.rnd.IntN(8))
	case 2:
		binary.NativeEndian.PutUint32(b, f.rnd.Uint32N(64))
	}
	var oob []byte
	if len(m.Files) > 0 {
		oob = unix.UnixRights(m.Files...)
	}
	_ = f.c.SetWriteDeadline(time.Now().Add(patience))
	_, _, err := f.c.WriteMsgUnix(b, oob, nil)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		f.w.t.Fatal("the back end takes no messages")
	}
	if err != nil || cut {
		return false
	}
	if vhostuser.Request(binary.NativeEndian.Uint32(b)) == vhostuser.GetFeatures {
		f.asked++
	}
	return f.handled()
}

// TestVhostRandomMessages: random messages harm only their device, and leave nothing behind.
func TestVhostRandomMessages(t *testing.T) {
	total := 20_000
	if v := os.Getenv(envMessages); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil {
			t.Fatal(err)
		}
		total = n
	}
	w := newWorld(t)
	w.ctx = t.Context() // -timeout is the limit
	d := w.vhost("web", "--queues", "2")
	raw := d.raw()
	raw.served()
	_, files := d.held()
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	w.must(err)
	defer unix.Close(null)
	f := &randomFront{rawVirt: raw, rnd: rand.New(rand.NewPCG(7, uint64(total))), files: []int{null, raw.fd, raw.kick[0], raw.call[0]}}
	pid, sessions, began := d.PID(), 0, time.Now()
	w.beside(func() {
		for sent := 0; sent < total; {
			f.begin()
			sessions++
			if f.rnd.IntN(2) == 0 { // a good beginning
				for _, m := range f.opening() {
					if !f.send(&m) {
						break
					}
					sent++
				}
			}
			for ok := true; ok && sent < total && f.rnd.IntN(300) != 0; sent++ {
				ok = f.send(f.request())
				if f.rnd.IntN(4) == 0 {
					f.poke(f.rnd.IntN(4))
				}
			}
			f.close()
		}
	})
	t.Logf("%d messages in %d sessions took %v", total, sessions, time.Since(began).Round(time.Millisecond))
	if d.PID() != pid || strings.Contains(d.Log(), "internal error") {
		t.Error("the process has failed inside")
	}
	raw.renew()
	raw.served()
	d.released(files)
}

// opening returns the messages of a good front end, without waiting for answers.
func (f *randomFront) opening() (list []vhostuser.Message) {
	add := func(r vhostuser.Request, change func(m *vhostuser.Message)) {
		m := vmessage(r)
		change(&m)
		list = append(list, m)
	}
	add(vhostuser.SetProtocolFeatures, func(m *vhostuser.Message) { m.U64 = vhostuser.ProtocolNet })
	add(vhostuser.SetFeatures, func(m *vhostuser.Message) { m.U64 = rawFeatures | 1<<30 })
	add(vhostuser.SetMemTable, func(m *vhostuser.Message) {
		m.Regions, m.Files = []vhostuser.Region{rawRegion}, []int{f.fd}
	})
	for i := range uint32(4) {
		add(vhostuser.SetVringNum, func(m *vhostuser.Message) { m.State = vhostuser.VringState{Index: i, Num: rawRing} })
		add(vhostuser.SetVringAddr, func(m *vhostuser.Message) { m.Addr = f.addr(i) })
		add(vhostuser.SetVringKick, func(m *vhostuser.Message) { m.U64, m.Files = uint64(i), []int{f.kick[i]} })
		add(vhostuser.SetVringEnable, func(m *vhostuser.Message) { m.State = vhostuser.VringState{Index: i, Num: 1} })
	}
	return list
}

// TestVhostRingsFullOfNonsense: rings full of random data harm only their device. Most are
// nearly valid.
func TestVhostRingsFullOfNonsense(t *testing.T) {
	w := newWorld(t)
	d := w.vhost("web", "--queues", "2")
	f := d.raw()
	f.served()
	_, files := d.held()
	rnd := rand.New(rand.NewPCG(3, 4))
	c := w.cable(d.status().Interface, func(f func() error) error { return f() })
	ended := 0
	w.beside(func() {
		for begin := time.Now(); time.Since(begin) < 2*time.Second; {
			f.renew()
			f.running(rawFeatures)
			for k := range 200 {
				for range 20 {
					f.scribble(rnd)
				}
				f.showAvail(0, f.used(0)+uint16(rnd.IntN(rawRing+1)))
				f.showAvail(1, f.used(1)+uint16(rnd.IntN(rawRing+1)))
				if k%8 == 0 {
					if f.gone() {
						ended++
						break
					}
					_ = c.try(tap.VnetHdr{}, plainFrame(60+rnd.IntN(1000)))
				}
			}
			f.close()
		}
	})
	t.Logf("%d sessions were ended", ended)
	if ended == 0 {
		t.Error("none of it was noticed")
	}
	f.renew()
	f.served()
	d.released(files)
	if strings.Contains(d.Log(), "internal error") {
		t.Error("the process has failed inside")
	}
}

// gone reports whether the back end has closed the connection.
func (f *rawVirt) gone() bool {
	_ = f.c.SetReadDeadline(time.Now().Add(time.Millisecond))
	_, err := f.c.Read(make([]byte, 64))
	return err != nil && !errors.Is(err, os.ErrDeadlineExceeded)
}

// scribble writes a descriptor or another word of the first pair of rings.
func (f *rawVirt) scribble(rnd *rand.Rand) {
	ring := rnd.IntN(2)
	if rnd.IntN(10) == 0 {
		binary.LittleEndian.PutUint32(f.mem[ring*rawPage+4*rnd.IntN(150):], rnd.Uint32())
		return
	}
	addr := uint64(rawGuest + rawData + rnd.IntN(0x20000))
	if rnd.IntN(50) == 0 {
		addr = rnd.Uint64()
	}
	flags := pick(rnd, 0, descWrite, descNext, descNext|descWrite, descIndirect, rnd.IntN(8))
	if ring == 0 && rnd.IntN(10) > 0 {
		flags |= descWrite
	}
	n := pick(rnd, 16*rnd.IntN(20), 12+rnd.IntN(2000), rnd.IntN(70000))
	if rnd.IntN(3) == 0 {
		f.table(rawData+16*rnd.IntN(0x2000), 0, addr, n, flags, rnd.IntN(rawRing))
		return
	}
	f.desc(ring, rnd.IntN(rawRing), addr, n, flags, rnd.IntN(rawRing+1))
}
