// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/lab/guest"
	"github.com/netbackd/netbackd/internal/lab/netfront"
	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/internal/lab/packettest"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// situation runs a subtest in this world.
func (w *world) situation(name string, f func()) {
	w.t.Run(name, func(t *testing.T) {
		outer := w.t
		w.t = t
		defer func() { w.t = outer }()
		f()
	})
}

// testSrc is the Ethernet source address of the frames of packettest. No machine in a world
// has it.
var testSrc = [6]byte{2, 0, 0, 0, 0, 1}

// plainFrame returns a frame of n bytes that no kernel answers.
func plainFrame(n int) []byte {
	return packettest.Frame{EtherType: typeTest, Payload: packettest.Pattern(max(n-14, 0))}.Bytes()[:n]
}

// typeTest is an EtherType for experiments (IEEE 802).
const typeTest = 0x88b5

// seen is a frame in the host's kernel, with its pending offloads.
type seen struct {
	vnet  tap.VnetHdr
	frame []byte
}

// cable is an AF_PACKET socket on one end of a vif. At the host's end it receives the
// guest's frames and sends frames to the guest. At the guest's end it does the same for
// the guest's kernel.
type cable struct {
	w     *world
	fd    int
	marks byte
}

// cable opens the host's end of the guest's vif.
func (g *testGuest) cable() *cable {
	g.w.t.Helper()
	return g.w.cable(g.status().Interface, func(f func() error) error { return f() })
}

// inside opens the guest's end.
func (g *testGuest) inside() *cable {
	g.w.t.Helper()
	return g.w.cable("eth0", g.Do)
}

func (w *world) cable(ifname string, in func(func() error) error) *cable {
	w.t.Helper()
	c := &cable{w: w}
	w.must(in(func() (err error) {
		c.fd, err = openPacket(ifname)
		return err
	}))
	w.t.Cleanup(func() { _ = unix.Close(c.fd) })
	return c
}

// openPacket opens an AF_PACKET socket with vnet headers.
func openPacket(ifname string) (fd int, err error) {
	ifi, err := net.InterfaceByName(ifname)
	if err != nil {
		return -1, err
	}
	// With protocol 0 the socket receives nothing before it is bound.
	if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
		return -1, err
	}
	all := binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL})
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1),
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: ifi.Index}),
	)
	if err != nil {
		_ = unix.Close(fd)
	}
	return fd, err
}

// vnetLen is the size in bytes of the header that an AF_PACKET socket puts before a frame:
// struct virtio_net_hdr, without the 16-bit word that a TAP's header has at its end.
const vnetLen = tap.VnetHdrLen - 2

// next returns the next test frame that comes in.
func (c *cable) next() seen {
	c.w.t.Helper()
	b := make([]byte, vnetLen+1<<17)
	oob := make([]byte, 64)
	for {
		n, m, _, from, err := unix.Recvmsg(c.fd, b, oob, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			c.w.t.Fatalf("no frame comes: %v", err)
		}
		out := from.(*unix.SockaddrLinklayer).Pkttype == unix.PACKET_OUTGOING
		if frame := b[vnetLen:n]; out || len(frame) < 14 || [6]byte(frame[6:]) != testSrc {
			continue
		}
		var s seen
		s.vnet.Decode(b)
		s.frame = bytes.Clone(b[vnetLen:n])
		s.restoreTag(oob[:m])
		return s
	}
}

// restoreTag inserts the VLAN tag, which the kernel removes from a received frame.
func (s *seen) restoreTag(oob []byte) {
	const (
		valid     = 1 << 4 // TP_STATUS_VLAN_VALID
		tpidValid = 1 << 6 // TP_STATUS_VLAN_TPID_VALID
	)
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(msgs) == 0 || len(msgs[0].Data) < 20 {
		return
	}
	aux := msgs[0].Data // struct tpacket_auxdata
	status := binary.NativeEndian.Uint32(aux)
	if status&valid == 0 {
		return
	}
	tpid := uint16(packettest.TypeVLAN)
	if status&tpidValid != 0 {
		tpid = binary.NativeEndian.Uint16(aux[18:])
	}
	tag := binary.BigEndian.AppendUint16(nil, tpid)
	tag = binary.BigEndian.AppendUint16(tag, binary.NativeEndian.Uint16(aux[16:]))
	s.frame = slices.Insert(s.frame, 12, tag...)
	if s.vnet.Flags&tap.VnetNeedsCsum != 0 {
		s.vnet.CsumStart += 4
	}
	if s.vnet.HdrLen != 0 {
		s.vnet.HdrLen += 4
	}
}

// until returns all frames that arrive before the frame mark.
func (c *cable) until(mark []byte) (before []seen) {
	c.w.t.Helper()
	for {
		s := c.next()
		if bytes.Equal(s.frame, mark) {
			return before
		}
		before = append(before, s)
	}
}

// mark sends a frame, and returns the frames that arrived at the other end before it.
func (c *cable) mark(at *cable) (before []seen) {
	c.w.t.Helper()
	c.marks++
	mark := packettest.Frame{EtherType: typeTest, Payload: append([]byte("mark of the host"), c.marks)}.Bytes()
	c.send(tap.VnetHdr{}, mark)
	return at.until(mark)
}

// send sends a frame out of this end. Without a queueing discipline the kernel returns
// ENOBUFS if the other end drops the frame.
func (c *cable) send(h tap.VnetHdr, frame []byte) {
	c.w.t.Helper()
	if err := c.try(h, frame); !errors.Is(err, unix.ENOBUFS) {
		c.w.must(err)
	}
}

// try is like send, to an interface that may be gone.
func (c *cable) try(h tap.VnetHdr, frame []byte) error {
	b := make([]byte, tap.VnetHdrLen)
	h.Encode(b)
	_, err := unix.Write(c.fd, append(b[:vnetLen], frame...))
	return err
}

const moreData = netif.TxMoreData

// data returns a slot with data in a page of its own.
func data(flags netif.TxFlags, b []byte) guest.RawOp {
	return guest.RawOp{Op: "tx", Ref: "page", Page: b, Size: uint16(len(b)), Flags: flags}
}

// head returns the first slot of a packet of size bytes, of which b are the first.
func head(flags netif.TxFlags, size int, b []byte) guest.RawOp {
	o := data(flags, b)
	o.Size = uint16(size)
	return o
}

// slot returns a slot with the page of the slot before it.
func slot(flags netif.TxFlags, offset, size int) guest.RawOp {
	return guest.RawOp{Op: "tx", Ref: "last", Flags: flags, Offset: uint16(offset), Size: uint16(size)}
}

// ref returns a slot with another grant reference.
func ref(name string, flags netif.TxFlags, offset, size int) guest.RawOp {
	o := slot(flags, offset, size)
	o.Ref = name
	return o
}

func extra(e netif.ExtraInfo) guest.RawOp { return guest.RawOp{Op: "extra", Extra: e} }

func gso(t netif.GSOType, size uint16) netif.ExtraInfo {
	return netif.NewGSO(netif.GSOInfo{Type: t, Size: size})
}

// inSlots spreads a frame over slots of the given sizes, the rest in the last.
func inSlots(flags netif.TxFlags, frame []byte, sizes ...int) (ops []guest.RawOp) {
	rest := frame
	for i := 0; len(rest) > 0; i++ {
		n := len(rest)
		if i < len(sizes) {
			n = sizes[i]
		}
		o := data(0, rest[:n])
		if rest = rest[n:]; len(rest) > 0 {
			o.Flags |= netif.TxMoreData
		}
		if i == 0 {
			o.Size = uint16(len(frame))
			o.Flags |= flags
		}
		ops = append(ops, o)
	}
	return ops
}

// withExtras puts extras behind the first slot of a packet.
func withExtras(packet []guest.RawOp, extras ...netif.ExtraInfo) []guest.RawOp {
	packet = slices.Clone(packet)
	packet[0].Flags |= netif.TxExtraInfo
	for i, e := range extras {
		if i < len(extras)-1 {
			e.Flags |= netif.ExtraMore
		}
		packet = slices.Insert(packet, 1+i, extra(e))
	}
	return packet
}

// rawIDs is the first id of raw requests without an id. It differs from the ids of the
// guest's own packets.
const rawIDs = 0x100

// prober puts raw requests in a guest's tx ring and checks their effects.
type prober struct {
	g     *testGuest
	c     *cable
	queue int
	marks byte
	pages int // used up
}

// prober keeps the guest's kernel from sending packets, so that only the requests are in
// the ring.
func (g *testGuest) prober() *prober {
	g.w.t.Helper()
	g.w.must(g.Do(func() error { return netns.Sysctl("net/ipv6/conf/all/disable_ipv6", "1") }))
	return &prober{g: g, c: g.cable()}
}

// raw runs operations on the rings of the prober's queue.
func (p *prober) raw(ops ...guest.RawOp) guest.RawResult {
	p.g.w.t.Helper()
	r, err := p.g.Raw(p.g.w.ctx, guest.RawArgs{QueueArgs: guest.QueueArgs{Queue: p.queue}, Ops: ops})
	p.g.w.must(err)
	return r
}

// renew reconnects the guest if it has too few pages for n requests and a packet behind
// them: raw requests use up pages.
func (p *prober) renew(n int) {
	p.g.w.t.Helper()
	if p.pages += n + 1; p.pages > 200 {
		p.g.reconnect()
		p.pages = n + 1
	}
}

// number gives requests ids, and returns those of all.
func number(ops []guest.RawOp) (ids []uint16) {
	for i := range ops {
		if ops[i].Op != "tx" {
			continue
		}
		if ops[i].RingID == 0 {
			ops[i].RingID = uint16(rawIDs + len(ids))
		}
		ids = append(ids, ops[i].RingID)
	}
	return ids
}

// expect sends requests, and checks their responses, the drops and the frames that come
// out.
func (p *prober) expect(ops []guest.RawOp, want []netif.Status, dropped drops, frames ...[]byte) {
	p.g.w.t.Helper()
	before := p.g.drops()
	answers, out := p.send(ops...)
	p.g.w.answered(want, answers)
	p.g.w.cameOut(out, frames...)
	p.g.dropped(before, dropped)
}

// send puts requests in the ring, and a packet behind them. It returns the responses to
// the requests and the frames that came out before that packet.
func (p *prober) send(ops ...guest.RawOp) (answers []netif.Status, out []seen) {
	p.g.w.t.Helper()
	p.renew(len(ops))
	p.marks++
	mark := packettest.Frame{EtherType: typeTest, Payload: append([]byte("mark"), p.marks)}.Bytes()
	ops = append(slices.Clone(ops), data(0, mark))
	ids := number(ops)
	answers = p.answers(ids, p.raw(append(ops, guest.RawOp{Op: "flush"})...))
	last := len(answers) - 1
	if answers[last] != netif.StatusOkay {
		p.g.w.t.Errorf("the packet behind was answered %v", answers[last])
	}
	return answers[:last], p.c.until(mark)
}

// answers waits for the responses to requests with these ids, which have to arrive in this
// order.
func (p *prober) answers(ids []uint16, r guest.RawResult) (answers []netif.Status) {
	p.g.w.t.Helper()
	got := r.Tx
	p.g.w.wait(fmt.Sprintf("%d answers", len(ids)), func() bool {
		if len(got) < len(ids) {
			got = append(got, p.raw().Tx...)
		}
		return len(got) >= len(ids)
	})
	var order []uint16
	for _, a := range got {
		order = append(order, a.ID)
		answers = append(answers, a.Status)
	}
	if diff := cmp.Diff(ids, order); diff != "" {
		p.g.w.t.Errorf("order of the answers (-want +got):\n%s", diff)
	}
	return answers
}

// answered checks answers.
func (w *world) answered(want, got []netif.Status) {
	w.t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		w.t.Errorf("answers (-want +got):\n%s", diff)
	}
}

// cameOut checks that exactly these frames came out of a vif, without pending offloads.
func (w *world) cameOut(got []seen, want ...[]byte) {
	w.t.Helper()
	if len(got) != len(want) {
		w.t.Errorf("%d frames came out, want %d", len(got), len(want))
		return
	}
	for i := range want {
		if !bytes.Equal(got[i].frame, want[i]) || got[i].vnet != (tap.VnetHdr{}) {
			w.t.Errorf("frame %d came out as %d bytes, %+v, want %d bytes:\n% x\n% x", i,
				len(got[i].frame), got[i].vnet, len(want[i]), clip(got[i].frame), clip(want[i]))
		}
	}
}

// clip returns the part of a frame that a message shows.
func clip(b []byte) []byte { return b[:min(len(b), 128)] }

const (
	okay   = netif.StatusOkay
	failed = netif.StatusError
)

func each(n int, s netif.Status) []netif.Status { return slices.Repeat([]netif.Status{s}, n) }

// okays returns the responses to requests that are all well-formed.
func okays(ops []guest.RawOp) []netif.Status { return each(len(number(slices.Clone(ops))), okay) }

// drops are the counters of packets that were not delivered.
type drops map[dataplane.Counter]uint64

// drops returns the drop counters of the guest's vif that are not 0.
func (g *testGuest) drops() drops {
	g.w.t.Helper()
	d := drops{}
	s := g.status()
	for c := range dataplane.NumCounters {
		if info := dataplane.Counters[c]; info.Kind == dataplane.Drop && s.Counters[info.Name] > 0 {
			d[c] = s.Counters[info.Name]
		}
	}
	return d
}

func (d drops) all() (n uint64) {
	for _, x := range d {
		n += x
	}
	return n
}

// dropped checks that exactly these packets were dropped since before. The daemon updates
// the counters a little later.
func (g *testGuest) dropped(before, want drops) {
	g.w.t.Helper()
	got := drops{}
	g.w.wait(fmt.Sprintf("%d packets to be counted as dropped", want.all()), func() bool {
		now := g.drops()
		clear(got)
		for c, n := range now {
			if n != before[c] {
				got[c] = n - before[c]
			}
		}
		return got.all() >= want.all()
	})
	if diff := cmp.Diff(want, got); diff != "" {
		g.w.t.Errorf("packets dropped, by reason (-want +got):\n%s", diff)
	}
}

// errorNode returns the value of the vif's error node.
func (g *testGuest) errorNode() string {
	g.w.t.Helper()
	return g.w.read(errNode(g.Domid, g.Devid))
}

// lines counts the lines of the daemon's log about the guest's vif that contain all texts.
func (g *testGuest) lines(texts ...string) int {
	return g.w.logged(append(texts, strconv.Quote(g.VifName()))...)
}

// reconnect reconnects the guest, and checks that it works then.
func (g *testGuest) reconnect() {
	g.w.t.Helper()
	_, err := g.Reconnect(g.w.ctx, guest.ConnectArgs{})
	g.w.must(err)
	g.well()
}

// reconnectWith reconnects with another configuration of the frontend.
func (g *testGuest) reconnectWith(f func(*netfront.Config)) {
	g.w.t.Helper()
	c := config(0).Front.Front
	f(&c)
	_, err := g.Reconnect(g.w.ctx, guest.ConnectArgs{Front: &c})
	g.w.must(err)
	g.well()
}

// well checks that the vif is in service.
func (g *testGuest) well() {
	g.w.t.Helper()
	g.waitState(xenbus.Connected)
	g.waitLink()
	if s := g.status(); s.Quarantine != "" || s.Error != "" {
		g.w.t.Errorf("quarantine %q, error %q", s.Quarantine, s.Error)
	}
	g.w.wait("the error node to go", func() bool { return g.errorNode() == absent })
	g.pings(3)
}

// cpuTime returns the CPU time that a process has used.
func (w *world) cpuTime(pid int) time.Duration {
	w.t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	w.must(err)
	// The name in parentheses may contain any characters; the third field follows it.
	_, rest, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest)
	const user, system, tick = 14 - 3, 15 - 3, 10 * time.Millisecond
	var sum time.Duration
	for _, f := range []string{fields[user], fields[system]} {
		n, err := strconv.Atoi(f)
		w.must(err)
		sum += time.Duration(n) * tick
	}
	return sum
}
