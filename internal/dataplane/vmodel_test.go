// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bytes"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/fuzzloop"
	"github.com/netbackd/netbackd/internal/lab/netns"
)

// envSteps is the number of steps of TestVirtModel and TestVirtRandomRings, for longer runs.
const envSteps = "DATAPLANE_VIRT_STEPS"

// vmodel does random things to a device, and expects each packet once, in order.
type vmodel struct {
	*vbed
	rnd   *rand.Rand
	toTap [][]byte // sent by the guest
	toVM  [][]byte // sent by the host, not received yet
	chain int      // chains of the tx ring that have not come back
	id    uint16
}

func (m *vmodel) frame() []byte {
	n := 18 + m.rnd.IntN(1500)
	switch m.rnd.IntN(8) {
	case 0:
		n = 2000 + m.rnd.IntN(63000)
	case 1:
		n = 1900 + m.rnd.IntN(400)
	}
	m.id++
	return udp(n, m.id)
}

// parts spreads n bytes over a few pieces.
func (m *vmodel) parts(n int) (parts []int) {
	for range m.rnd.IntN(4) {
		if n < 2 {
			break
		}
		k := 1 + m.rnd.IntN(n-1)
		parts = append(parts, k)
		n -= k
	}
	return append(parts, n)
}

// step does one random thing.
func (m *vmodel) step(t *testing.T, step int) {
	g, q := m.guest(), m.queue()
	switch k := m.rnd.IntN(100); {
	case k < 40:
		f := m.frame()
		if m.chain < 60 && g.put(vsent{frame: f, parts: m.parts(len(f)), alone: m.rnd.IntN(2) == 0}) {
			m.toTap = append(m.toTap, f)
			m.chain++
		}
	case k < 55:
		g.tx.push()
	case k < 75:
		if len(m.toVM) < 60 {
			f := m.frame()
			m.host.sendPlain(f)
			m.toVM = append(m.toVM, f)
		}
	case k < 85:
		g.post(m.rnd.IntN(30))
	case k < 97:
		must(m.tb, m.w.poll(0))
		m.w.expire()
		m.w.round()
	case k == 97:
		g.move(m.vbed)
	case k == 98:
		r := &g.tx
		if m.rnd.IntN(2) == 0 {
			r = &g.rx
			m.check(t, step)
			m.toVM = m.toVM[q.waiting():] // they are lost
		}
		r.set.Base = m.stop(r)
		m.startRing(0, r)
		r.wake()
	default:
		g.rx.wake()
		g.tx.wake()
	}
}

// check compares what arrived.
func (m *vmodel) check(t *testing.T, step int) {
	g := m.guest()
	m.chain -= g.sent()
	for _, f := range m.host.frames() {
		if len(m.toTap) == 0 || !bytes.Equal(f, m.toTap[0]) {
			t.Fatalf("step %d: a packet of %d bytes at the host was not the next one", step, len(f))
		}
		m.toTap = m.toTap[1:]
	}
	for _, p := range g.received() {
		if len(m.toVM) == 0 || !bytes.Equal(p.Frame, m.toVM[0]) {
			t.Fatalf("step %d: a packet of %d bytes to the guest was not the next one of %d", step, len(p.Frame), len(m.toVM))
		}
		m.toVM = m.toVM[1:]
	}
	if err := m.breach(); err != nil {
		t.Fatalf("step %d: %v", step, err)
	}
}

// TestVirtModel does random things to a device. With envSteps it makes that many steps in
// each format.
func TestVirtModel(t *testing.T) {
	steps := 1000
	if s, err := strconv.Atoi(os.Getenv(envSteps)); err == nil {
		steps = s
	}
	inFormats(t, vnetModes, vFormats, func(t *testing.T, mo mode, o vOptions) {
		seed := uint64(time.Now().UnixNano())
		t.Logf("seed %d", seed)
		modelRun(t, mo, o, seed, steps)
	})
}

func modelRun(t *testing.T, mo mode, o vOptions, seed uint64, steps int) {
	rnd := rand.New(rand.NewPCG(seed, 0))
	o.buffer = [][]int{{2048}, {1536}, {4096}, {65600}, {12, 700, 3000}}[rnd.IntN(5)]
	m := &vmodel{vbed: newVbed(t, mo, o), rnd: rnd}
	for i := range steps {
		m.step(t, i)
		if i%10 == 9 {
			m.check(t, i)
		}
	}
	m.guest().tx.push()
	for range 100 {
		m.guest().post(30)
		m.settle()
		m.check(t, steps)
	}
	if len(m.toTap)+len(m.toVM)+m.chain > 0 || len(m.stats(Drop)) > 0 && m.stats(Drop)[DropRxStalled.String()] == 0 {
		t.Errorf("%d packets did not reach the host, %d the guest, %d chains did not come back: %v", len(m.toTap), len(m.toVM), m.chain, m.stats(Drop))
	}
}

// FuzzVirt makes random runs that the fuzzer chooses.
func FuzzVirt(f *testing.F) {
	netns.NeedTUN(f)
	for i := range uint8(4) {
		f.Add(uint64(i), i)
	}
	fuzzloop.Fuzz(f, func(t *testing.T, seed uint64, format uint8) {
		modelRun(t, vnetModes[1], vFormats[int(format)%len(vFormats)], seed, 300)
	})
}

// move gives the device another mapping of the guest's memory, and takes the old one away.
func (g *vguest) move(b *vbed) {
	old := g.back
	g.back = mapFile(g.tb, g.fd)
	q := b.queue()
	g.memory = g.regions(g.back)
	q.virt.memory = g.memory
	for _, r := range []*vring{&g.rx, &g.tx} {
		for _, p := range []*[]byte{&r.set.Desc.Mem, &r.set.Avail.Mem, &r.set.Used.Mem} {
			off := address(*p) - address(old)
			*p = g.back[off:][:len(*p)]
		}
		b.w.moveRing(q, r.set)
	}
	must(g.tb, unix.Munmap(old))
	b.w.sched.schedule(q)
}
