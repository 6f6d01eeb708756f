// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/iouring"
	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/vhostuser"
	"github.com/netbackd/netbackd/pkg/virtqueue"
)

// vdriver is the driver of a ring of either format.
type vdriver interface {
	Add(bufs ...virtqueue.Buffer) (id uint16, ok bool)
	AddIndirect(table []byte, addr uint64, bufs ...virtqueue.Buffer) (id uint16, ok bool)
	Publish() (kick bool)
	Poll() (id uint16, written uint32, ok bool)
	Arm() (more bool)
	Disarm()
}

// Guest memory of a pair. Addresses of tests with grants have the bit of grants.
const (
	vBase   = 0x100000
	vRings  = 0       // the rings of a pair: rx, tx
	vTables = 0x20000 // indirect tables, one of vTable bytes for each chain
	vTable  = 2048
	vData   = 0xa0000  // buffers of packets from the guest
	vPosted = 0x800000 // buffers of packets to the guest
	vMemory = 0x1000000
	vRingAt = 0x10000 // of the second ring
)

// vOptions describe a guest with virtqueues.
type vOptions struct {
	packed, indirect bool
	features         uint64 // beyond the formats
	size             int    // descriptors; 0: 256
	buffer           []int  // bytes of the pieces of each chain to the guest; nil: 2048
	grants           bool   // memory that is copied
	queues           int
	offload          *tap.Offload
	noKick           bool
	cfg              VirtConfig
}

// vModern are the features of a modern guest that takes everything.
const vModern = virtVersion1 | virtMrgRxbuf | virtEventIdx | virtIndirect | virtCsum | virtHostTSO4 | virtHostTSO6 | virtHostECN |
	virtGuestCsum | virtGuestTSO4 | virtGuestTSO6 | virtGuestECN

// vguest is the guest's side of a pair.
type vguest struct {
	tb      testing.TB
	o       vOptions
	fd      int // memfd
	mem     []byte
	back    []byte // the same as the device sees it
	memory  *virtMemory
	base    uint64
	ringsAt int
	rx, tx  vring
	nextTx  int
	last    uint64 // address of the last chain that was delivered
}

// vring is the guest's side of a ring.
type vring struct {
	d               vdriver
	set             vhostuser.Ring
	kick, call, err int
	bufs            map[uint16][]virtqueue.Buffer // of chains that the device has
	next            int                           // buffer
	kicks           int
}

func newVguest(tb testing.TB, o vOptions) *vguest {
	tb.Helper()
	if o.size == 0 {
		o.size = 256
	}
	if o.buffer == nil {
		o.buffer = []int{2048}
	}
	if o.packed {
		o.features |= virtRingPacked
	}
	g := &vguest{tb: tb, o: o, base: vBase, ringsAt: vRings}
	if o.grants {
		g.base = 1<<63 | uint64(firstRef)<<12
	}
	fd, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC)
	must(tb, err)
	tb.Cleanup(func() { unix.Close(fd) })
	must(tb, unix.Ftruncate(fd, vMemory))
	g.fd = fd
	g.mem, g.back = mapFile(tb, fd), mapFile(tb, fd)
	g.memory = g.regions(g.back)
	g.rx = g.newRing(0)
	g.tx = g.newRing(1)
	return g
}

func mapFile(tb testing.TB, fd int) []byte {
	tb.Helper()
	mem, err := unix.Mmap(fd, 0, vMemory, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(tb, err)
	tb.Cleanup(func() { _ = unix.Munmap(mem) })
	return mem
}

// regions makes a table of two regions whose border is within the buffers.
func (g *vguest) regions(back []byte) *virtMemory {
	const border = vPosted + 0x1234
	m := &virtMemory{copies: g.o.grants, regions: make([]virtRegion, 2)}
	first := virtqueue.Region{Addr: g.base, Size: border, Mem: back[:border]}
	second := virtqueue.Region{Addr: g.base + border, Size: vMemory - border, Mem: back[border:], Tag: 1}
	m.regions[0].mem, m.regions[1].mem = first.Mem, second.Mem
	if g.o.grants {
		first.Mem, second.Mem = nil, nil
		for i := range m.regions {
			m.regions[i] = virtRegion{grants: newStandIn(g.tb, back), domid: testDomid}
		}
	}
	var err error
	m.memory, err = virtqueue.NewMemory(first, second)
	must(g.tb, err)
	return m
}

// newStandIn copies grants from firstRef on, which are the pages of mem.
func newStandIn(tb testing.TB, mem []byte) *standIn {
	local, err := iouring.NewIovecs(virtSegs)
	must(tb, err)
	remote, err := iouring.NewIovecs(virtSegs)
	must(tb, err)
	tb.Cleanup(func() { _, _ = local.Close(), remote.Close() })
	return &standIn{pages: address(mem), local: local, remote: remote, pid: uintptr(os.Getpid())}
}

func eventfd(tb testing.TB) int {
	tb.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	must(tb, err)
	tb.Cleanup(func() { unix.Close(fd) })
	return fd
}

// part is a part of a ring in the device's mapping.
func (g *vguest) part(mem []byte) vhostuser.Part {
	off := address(mem) - address(g.mem)
	return vhostuser.Part{Mem: g.back[off : off+uintptr(len(mem))], Guest: g.base + uint64(off)}
}

func (g *vguest) newRing(index int) vring {
	return g.ring(index, eventfd(g.tb), eventfd(g.tb), eventfd(g.tb))
}

// renew begins a ring again, with the same descriptors.
func (g *vguest) renew(r *vring) { *r = g.ring(r.set.Index, r.kick, r.call, r.err) }

func (g *vguest) ring(index, kick, call, errFD int) vring {
	tb, o := g.tb, g.o
	r := vring{kick: kick, call: call, err: errFD, bufs: map[uint16][]virtqueue.Buffer{}}
	r.set = vhostuser.Ring{
		Index: index, Size: o.size, Packed: o.packed, Features: o.features,
		Enabled: true, Kick: r.kick, Call: r.call, Err: r.err,
	}
	if o.noKick {
		r.set.Kick = -1
	}
	c := virtqueue.DriverConfig{Size: o.size, EventIdx: o.features&virtEventIdx != 0, InOrder: o.features&virtInOrder != 0}
	mem := g.mem[g.ringsAt+index*vRingAt:][:vRingAt]
	if o.packed {
		p := virtqueue.PackedRingsIn(mem, o.size)
		d, err := virtqueue.NewPackedDriver(c, p)
		must(tb, err)
		r.d = d
		r.set.Base = 0x80008000
		r.set.Desc, r.set.Avail, r.set.Used = g.part(p.Desc), g.part(p.Driver), g.part(p.Device)
		return r
	}
	p := virtqueue.SplitRingsIn(mem, o.size)
	d, err := virtqueue.NewSplitDriver(c, p)
	must(tb, err)
	r.d = d
	r.set.Desc, r.set.Avail, r.set.Used = g.part(p.Desc), g.part(p.Avail), g.part(p.Used)
	return r
}

// hdrLen is the length of the guest's vnet header.
func (g *vguest) hdrLen() int {
	if g.o.features&(virtVersion1|virtMrgRxbuf) == 0 {
		return 10
	}
	return 12
}

// at is the memory at a guest address.
func (g *vguest) at(addr uint64) []byte { return g.mem[addr-g.base:] }

// add adds a chain, as an indirect table if the guest has these.
func (g *vguest) add(r *vring, bufs []virtqueue.Buffer) bool {
	var id uint16
	var ok bool
	if g.o.indirect && len(bufs) > 1 {
		t := vTables + (r.set.Index%2*128+r.next%128)*vTable
		id, ok = r.d.AddIndirect(g.mem[t:t+vTable], g.base+uint64(t), bufs...)
	} else {
		id, ok = r.d.Add(bufs...)
	}
	if ok {
		r.next++
		r.bufs[id] = bufs
	}
	return ok
}

// push publishes what was added and kicks the device if it wants that.
func (r *vring) push() {
	if r.d.Publish() {
		r.kicks++
		_ = vhostuser.Signal(r.kick)
	}
}

// wake kicks the device in any case: the first kick starts a ring.
func (r *vring) wake() { _ = vhostuser.Signal(r.kick) }

// called returns how often the device has notified the guest since the last call.
func eventCount(fd int) uint64 {
	var n [8]byte
	if _, err := unix.Read(fd, n[:]); err != nil {
		return 0
	}
	return binary.NativeEndian.Uint64(n[:])
}

// vsent is a packet from the guest.
type vsent struct {
	vnet  tap.VnetHdr
	frame []byte
	parts []int // bytes of the pieces behind the header; nil: one
	alone bool  // the header has a piece of its own
}

// send adds packets to the tx ring and publishes them together.
func (g *vguest) send(packets ...vsent) {
	g.tb.Helper()
	for _, p := range packets {
		if !g.put(p) {
			g.tb.Fatal("the tx ring is full")
		}
	}
	g.tx.push()
}

// put adds a packet to the tx ring.
func (g *vguest) put(p vsent) bool {
	var hdr [tap.VnetHdrLen]byte
	p.vnet.Encode(hdr[:])
	data := append(hdr[:g.hdrLen():g.hdrLen()], p.frame...)
	parts := p.parts
	if parts == nil {
		parts = []int{len(p.frame)}
	}
	first := g.hdrLen()
	if !p.alone && len(parts) > 0 {
		first += parts[0]
		parts = parts[1:]
	}
	var bufs []virtqueue.Buffer
	at := vData + g.nextTx%90*0x12000 + g.nextTx%7*36
	g.nextTx++
	for _, n := range append([]int{first}, parts...) {
		copy(g.mem[at:at+n], data)
		data = data[n:]
		bufs = append(bufs, virtqueue.Buffer{Addr: g.base + uint64(at), Len: uint32(n)})
		at += n + 64
	}
	return g.add(&g.tx, bufs)
}

// sent takes back chains of the tx ring and returns how many.
func (g *vguest) sent() (n int) {
	for {
		id, _, ok := g.tx.d.Poll()
		if !ok {
			return n
		}
		if g.tx.bufs[id] == nil {
			g.tb.Fatalf("chain %d was not sent", id)
		}
		delete(g.tx.bufs, id)
		n++
	}
}

// post adds n chains to the rx ring, or as many as there is room for if n is -1 or more.
func (g *vguest) post(n int) (posted int) {
	size, most, stride := 0, 600, 0x3000
	for _, b := range g.o.buffer {
		size += b
	}
	if size > stride {
		most, stride = 60, 0x20000
	}
	if g.o.indirect && len(g.o.buffer) > 1 {
		most = min(most, 128) // tables
	}
	for ; posted != n && len(g.rx.bufs) < most; posted++ {
		at := vPosted + g.rx.next%most*stride
		var bufs []virtqueue.Buffer
		for _, b := range g.o.buffer {
			clear(g.mem[at : at+min(b, 64)])
			bufs = append(bufs, virtqueue.Buffer{Addr: g.base + uint64(at), Len: uint32(b), Write: true})
			at += b
		}
		if !g.add(&g.rx, bufs) {
			break
		}
	}
	g.rx.push()
	return posted
}

// vgot is a packet as the guest got it.
type vgot struct {
	Vnet   tap.VnetHdr
	Frame  []byte
	Chains int
}

// received takes all packets that were delivered.
func (g *vguest) received() (got []vgot) {
	g.tb.Helper()
	for {
		data, ok := g.chain()
		if !ok {
			return got
		}
		p := vgot{Chains: 1}
		if len(data) < g.hdrLen() {
			got = append(got, vgot{}) // nothing was written: a driver drops it
			continue
		}
		var hdr [tap.VnetHdrLen]byte
		copy(hdr[:], data[:g.hdrLen()])
		p.Vnet.Decode(hdr[:])
		want := 1
		if g.hdrLen() == 12 {
			want = int(binary.LittleEndian.Uint16(data[virtqueue.NumBuffersOffset:]))
		}
		if want == 0 || want > 1 && g.o.features&virtMrgRxbuf == 0 {
			g.tb.Fatalf("num_buffers is %d", want)
		}
		p.Frame = bytes.Clone(data[g.hdrLen():])
		for ; p.Chains < want; p.Chains++ {
			data, ok := g.chain()
			if !ok {
				g.tb.Fatalf("%d of %d buffers of a packet", p.Chains, want)
			}
			p.Frame = append(p.Frame, data...)
		}
		got = append(got, p)
	}
}

// chain takes one chain of the rx ring and returns what was written to it.
func (g *vguest) chain() (data []byte, ok bool) {
	g.tb.Helper()
	id, n, ok := g.rx.d.Poll()
	if !ok {
		return nil, false
	}
	bufs := g.rx.bufs[id]
	if bufs == nil {
		g.tb.Fatalf("chain %d was not posted", id)
	}
	delete(g.rx.bufs, id)
	g.last = bufs[0].Addr
	for _, b := range bufs {
		part := min(n, b.Len)
		data = append(data, g.at(b.Addr)[:part]...)
		n -= part
	}
	if n != 0 {
		g.tb.Fatalf("%d bytes more than the chain has", n)
	}
	return data, true
}

// vbed is a worker without a goroutine and a device that it serves; see bed.
type vbed struct {
	bed
	guests []*vguest
}

func (b *vbed) guest() *vguest { return b.guests[0] }

func newVbed(tb testing.TB, m mode, o vOptions) *vbed {
	tb.Helper()
	b := &vbed{bed: bed{tb: tb}}
	b.now = time.Unix(1e9, 0)
	b.newWorker(m.uring)
	s := setup{queues: o.queues, offload: o.offload}
	b.newTAP(m.vnet, &s)
	cfg := o.cfg
	cfg.VnetHdr = m.vnet
	cfg.Coalesce = CoalesceAll
	cfg.Notice = func(n Notice) { b.notices = append(b.notices, n) }
	for i := range max(o.queues, 1) {
		b.guests = append(b.guests, newVguest(tb, o))
		cfg.Pairs = append(cfg.Pairs, VirtPair{b.tap.Queue(i)})
	}
	b.conn = newVirtConn(cfg)
	for _, q := range b.conn.queues {
		q.worker.Store(b.w)
		must(tb, b.w.attach(q))
	}
	tb.Cleanup(b.disconnect)
	for i := range b.guests {
		b.start(i)
	}
	return b
}

// start starts both rings of a pair and kicks them.
func (b *vbed) start(i int) {
	b.tb.Helper()
	g := b.guests[i]
	for _, r := range []*vring{&g.rx, &g.tx} {
		b.startRing(i, r)
		r.wake()
	}
	b.settle()
}

func (b *vbed) startRing(i int, r *vring) {
	b.tb.Helper()
	q := b.conn.queues[i]
	must(b.tb, b.w.startRing(q, r.set, b.guests[i].memory, nil))
	b.w.sched.schedule(q)
}

// vFormats are guests with rings of all formats.
var vFormats = []vOptions{
	{features: vModern},
	{features: vModern &^ virtEventIdx},
	{features: vModern, indirect: true},
	{features: vModern | virtInOrder, indirect: true},
	{features: vModern, packed: true},
	{features: vModern &^ virtEventIdx, packed: true},
	{features: vModern | virtInOrder, packed: true, indirect: true},
	{features: vModern, grants: true},
	{features: vModern, grants: true, packed: true},
}

func (o vOptions) String() string {
	s := "split"
	if o.packed {
		s = "packed"
	}
	for _, f := range []struct {
		on   bool
		name string
	}{
		{o.features&virtEventIdx != 0, "eventidx"}, {o.features&virtInOrder != 0, "inorder"}, {o.indirect, "indirect"},
		{o.features&virtMrgRxbuf != 0, "merge"}, {o.grants, "grants"},
	} {
		if f.on {
			s += "+" + f.name
		}
	}
	return s
}

// inFormats runs a test with each format in each mode.
func inFormats(t *testing.T, modes []mode, formats []vOptions, test func(t *testing.T, m mode, o vOptions)) {
	netns.NeedTUN(t)
	for _, o := range formats {
		for _, m := range modes {
			t.Run(fmt.Sprintf("%v,%v", o, m), func(t *testing.T) {
				if err := iouring.Supported(); m.uring && err != nil {
					t.Skip(err)
				}
				test(t, m, o)
			})
		}
	}
}

// reasonOf returns the rule that a ring broke.
func reasonOf(err error) virtqueue.Reason {
	var e *virtqueue.Error
	if errors.As(err, &e) {
		return e.Reason
	}
	return virtqueue.ReasonNone
}
