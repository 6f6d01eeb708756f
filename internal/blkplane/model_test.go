// SPDX-License-Identifier: Apache-2.0

package blkplane

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/netbackd/netbackd/internal/lab/powercut"
	"github.com/netbackd/netbackd/pkg/blkif"
)

// The model: a guest stamps each sector that it writes with a generation. Of each sector it
// knows which generation it wrote last, which it was told is written, and which it was told
// is durable. Daemons are killed and the power is cut at any time.

const modelSectors = 512

// model holds the guest's knowledge of its disk, by sector.
type model struct {
	issued  [modelSectors]uint64 // the newest generation
	written [modelSectors]uint64 // the newest with the answer OKAY
	durable [modelSectors]uint64 // that a flush or barrier has acknowledged
	busy    [modelSectors]bool   // an unanswered request has it
}

// wish is an unanswered request.
type wish struct {
	op         blkif.Op
	first, n   int
	page       int
	generation uint64
	flushed    [modelSectors]uint64 // what its OKAY makes durable
}

// modelGuest is a guest with its model.
type modelGuest struct {
	*bed
	random     *rand.Rand
	model      model
	wishes     map[uint64]*wish
	freePages  []int // first of modelPages pages
	generation uint64
	kills      int
	cuts       int
	answered   int
}

const modelPages = 16

func newModelGuest(t *testing.T, seed uint64) *modelGuest {
	g := &modelGuest{
		bed:    newBed(t, bedConfig{store: powercut.New(modelSectors*512, seed)}),
		random: rand.New(rand.NewPCG(seed, 3)),
	}
	g.boot()
	return g
}

// boot starts the guest anew, on the disk as it is.
func (g *modelGuest) boot() {
	g.newRing(blkif.X8664)
	g.cfg.Disk = g.store.Open()
	g.wishes = map[uint64]*wish{}
	g.freePages = nil
	for i := range 16 {
		g.freePages = append(g.freePages, i*modelPages)
	}
	g.model.busy = [modelSectors]bool{}
	image := g.store.Bytes()
	for s := range modelSectors {
		found := binary.LittleEndian.Uint64(image[s*512:])
		if !whole(image[s*512:][:512], s, found) {
			g.Fatalf("sector %d is torn", s)
		}
		if found < g.model.durable[s] || found > g.model.issued[s] {
			g.Fatalf("after the power was cut sector %d has generation %d: %d was durable, and %d written last",
				s, found, g.model.durable[s], g.model.issued[s])
		}
		g.model.issued[s], g.model.written[s], g.model.durable[s] = found, found, found
	}
}

// stamp fills a sector.
func stamp(b []byte, sector int, generation uint64) {
	for i := 0; i < 512; i += 16 {
		binary.LittleEndian.PutUint64(b[i:], generation)
		binary.LittleEndian.PutUint64(b[i+8:], uint64(sector)*generation)
	}
}

// whole reports whether a sector is all of one generation and in its place.
func whole(b []byte, sector int, generation uint64) bool {
	want := make([]byte, 512)
	stamp(want, sector, generation)
	return slices.Equal(b, want)
}

// ask puts a random request into the ring, if there is room.
func (g *modelGuest) ask() {
	if g.front.Free() == 0 {
		return
	}
	w := &wish{op: []blkif.Op{blkif.OpRead, blkif.OpWrite, blkif.OpWrite, blkif.OpWrite, blkif.OpFlush, blkif.OpBarrier}[g.random.IntN(6)]}
	if w.op == blkif.OpFlush {
		w.flushed = g.model.written
		g.wishes[g.put(blkif.Request{Op: w.op})] = w
		return
	}
	if len(g.freePages) == 0 {
		return
	}
	pages := 1 + g.random.IntN(modelPages)
	if w.op == blkif.OpBarrier {
		pages = min(pages, blkif.MaxDirect)
	}
	w.n = pages * 8
	w.first = g.random.IntN(modelSectors-w.n+1) &^ 7
	for s := w.first; s < w.first+w.n; s++ {
		if g.model.busy[s] {
			return
		}
	}
	w.page = g.freePages[len(g.freePages)-1]
	g.freePages = g.freePages[:len(g.freePages)-1]
	if w.op == blkif.OpBarrier {
		w.flushed = g.model.issued // requests before it in the ring are done before it
	}
	for s := w.first; s < w.first+w.n; s++ {
		g.model.busy[s] = true
	}
	if w.op != blkif.OpRead {
		g.generation++
		w.generation = g.generation
		for i := range w.n {
			g.model.issued[w.first+i] = w.generation
			stamp(g.page(w.page, pages)[i*512:][:512], w.first+i, w.generation)
		}
	}
	g.wishes[g.put(g.request(w.op, uint64(w.first), w.page, pages, w.page/modelPages))] = w
}

// listen takes the responses that are there.
func (g *modelGuest) listen() (n uint32) {
	n, err := g.front.Responses()
	if err != nil {
		g.Fatal(err)
	}
	for i := range n {
		r := g.front.Response(g.front.RspCons().Add(i))
		w := g.wishes[r.ID]
		if w == nil || r.Op != w.op && w.op != blkif.OpRead || r.Status != blkif.StatusOkay {
			g.Fatalf("response %+v to %+v", r, w)
		}
		delete(g.wishes, r.ID)
		g.learn(w)
		g.answered++
	}
	g.front.Take(n)
	return n
}

// learn changes the model by the answer OKAY.
func (g *modelGuest) learn(w *wish) {
	m := &g.model
	if w.op == blkif.OpFlush || w.op == blkif.OpBarrier {
		for s := range modelSectors {
			m.durable[s] = max(m.durable[s], w.flushed[s])
		}
	}
	if w.op == blkif.OpFlush {
		return
	}
	g.freePages = append(g.freePages, w.page)
	for i := range w.n {
		s := w.first + i
		m.busy[s] = false
		switch w.op {
		case blkif.OpRead:
			if !whole(g.page(w.page, modelPages)[i*512:][:512], s, m.written[s]) {
				g.Fatalf("sector %d: read generation %d, want %d", s, binary.LittleEndian.Uint64(g.page(w.page, modelPages)[i*512:]), m.written[s])
			}
		case blkif.OpBarrier:
			m.durable[s] = w.generation
			m.written[s] = w.generation
		default:
			m.written[s] = w.generation
		}
	}
}

// live is the life of one daemon. It ends with a kill, a cut of the power, or in order.
func (g *modelGuest) live() {
	k := &killer{at: 1 + g.random.Int64N(150)}
	if g.random.IntN(4) == 0 {
		k.at = 0
	}
	g.connectTo(k)
	_, _ = g.front.Arm()
	_ = g.guest.Send(g.port)
	for turns := 1 + g.random.IntN(30); turns > 0 && !k.happened(); turns-- {
		for range g.random.IntN(12) {
			g.ask()
		}
		g.push()
		g.listen()
		g.await(k)
	}
	cut := g.random.IntN(3) == 0
	if cut && g.random.IntN(2) == 0 {
		g.store = g.store.Cut() // with operations under way; the guest sees no more answers
	} else if !k.happened() && g.random.IntN(2) == 0 {
		g.drain()
	}
	g.disconnect()
	if k.happened() {
		g.kills++
	}
	if cut {
		g.cuts++
		g.store = g.store.Cut()
		g.boot()
	}
}

// await waits for a response while some are due.
func (g *modelGuest) await(k *killer) {
	for len(g.wishes) > 0 && !k.happened() && g.listen() == 0 {
		if more, _ := g.front.Arm(); more {
			continue
		}
		select {
		case <-g.guest.Wake(g.port):
		case <-g.notices: // perhaps of the kill
		}
	}
}

// TestModel: with kills and power cuts at any time, each request has one answer,
// reads have the data that was written last, and nothing that a flush acknowledged is lost.
func TestModel(t *testing.T) {
	lives := 40
	if testing.Short() {
		lives = 10
	}
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			g := newModelGuest(t, seed)
			for range lives {
				g.live()
			}
			t.Logf("%d requests answered, %d kills, %d power cuts", g.answered, g.kills, g.cuts)
			if g.kills == 0 || g.cuts == 0 || g.answered < 100 {
				t.Error("the test has not tested")
			}
		})
	}
}
