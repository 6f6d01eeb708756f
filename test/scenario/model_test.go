// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"encoding/binary"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/netbackd/netbackd/internal/lab/guest"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xen"
)

// grantModel models the static grants of a guest's queues.
type grantModel struct {
	rng    *rand.Rand
	tables []map[xen.Gref]bool
	pools  [][]netif.GrefEntry // the entries of each queue
}

func (m *grantModel) learn(g *testGuest, queues int) {
	m.tables, m.pools = nil, nil
	for q := range queues {
		b, err := g.Buffers(g.w.ctx, "", q)
		g.w.must(err)
		var pool []netif.GrefEntry
		for _, r := range b.Tx {
			pool = append(pool, netif.GrefEntry{Ref: r, Flags: netif.GrefReadOnly})
		}
		for _, r := range b.Rx {
			pool = append(pool, netif.GrefEntry{Ref: r})
		}
		m.tables, m.pools = append(m.tables, map[xen.Gref]bool{}), append(m.pools, pool)
	}
}

// list draws grants of the queue, with a chance of a foreign one and of a duplicate.
func (m *grantModel) list(q int, wanted func(xen.Gref) bool) (list []netif.GrefEntry) {
	n := 1 + m.rng.IntN(60)
	for _, i := range m.rng.Perm(len(m.pools[q])) {
		if e := m.pools[q][i]; len(list) < n && (wanted(e.Ref) || m.rng.IntN(200) == 0) {
			list = append(list, e)
		}
	}
	if m.rng.IntN(6) == 0 {
		list = append(list, netif.GrefEntry{Ref: 4000000000})
	}
	if len(list) > 0 && m.rng.IntN(6) == 0 {
		list = append(list, list[0])
	}
	m.rng.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	return list
}

// add models ADD_GREF_MAPPING.
func (m *grantModel) add(q int, list []netif.GrefEntry) netif.CtrlStatus {
	next := maps.Clone(m.tables[q])
	for _, e := range list {
		if next[e.Ref] || e.Ref == 4000000000 {
			return invalid
		}
		next[e.Ref] = true
	}
	m.tables[q] = next
	return done
}

// del models DEL_GREF_MAPPING.
func (m *grantModel) del(q int, list []netif.GrefEntry) (status []netif.CtrlStatus, n uint32) {
	for _, e := range list {
		if m.tables[q][e.Ref] {
			delete(m.tables[q], e.Ref)
			status = append(status, done)
			n++
		} else {
			status = append(status, invalid)
		}
	}
	return status, n
}

// TestStaticGrantsAgainstAModel: while streams run both ways, static grants are added and
// removed at random, the guest reconnects, and the daemon is killed between and during
// messages. Every answer and every table agrees with a model, and every byte arrives.
func TestStaticGrantsAgainstAModel(t *testing.T) {
	const queueCount = 2
	w := newWorld(t)
	g := w.guest(queues(queueCount), withControl())
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	m := &grantModel{rng: rand.New(rand.NewPCG(seed, 1))}
	m.learn(g, queueCount)
	restart := func() {
		w.Daemon().Kill()
		w.must(w.StartDaemon(w.ctx))
		g.serving()
	}
	// send sends a message. Sometimes it kills the daemon meanwhile.
	kills := 0
	send := func(msg guest.ControlArgs) guest.ControlResult {
		if m.rng.IntN(6) != 0 {
			r, err := g.Control(w.ctx, msg)
			w.must(err)
			return r
		}
		kills++
		type outcome struct {
			r   guest.ControlResult
			err error
		}
		answer := make(chan outcome, 1)
		go func() {
			r, err := g.Control(w.ctx, msg)
			answer <- outcome{r, err}
		}()
		time.Sleep(time.Duration(m.rng.IntN(4000)) * time.Microsecond)
		restart()
		o := <-answer
		w.must(o.err)
		return o.r
	}
	for range 2 {
		there, back := g.streaming(12<<20), g.streamed(12<<20)
		for range 24 {
			q := m.rng.IntN(queueCount)
			switch k := m.rng.IntN(20); {
			case k < 10:
				list := m.list(q, func(r xen.Gref) bool { return !m.tables[q][r] })
				r := send(listOf(netif.CtrlAddGrefMapping, uint32(q), uint32(len(list)), list...))
				if want := m.add(q, list); r.Status != want {
					t.Fatalf("add of %d: %v, want %v", len(list), r.Status, want)
				}
			case k < 18:
				list := m.list(q, func(r xen.Gref) bool { return m.tables[q][r] })
				if len(list) == 0 {
					continue
				}
				r := send(listOf(netif.CtrlDelGrefMapping, uint32(q), uint32(len(list)), list...))
				want, n := m.del(q, list)
				if r.Status != done || r.Data != n {
					t.Fatalf("delete of %d: %v, %d, want %d", len(list), r.Status, r.Data, n)
				}
				for i := range want {
					if got := netif.CtrlStatus(binary.LittleEndian.Uint16(r.Page[8*i+6:])); got != want[i] {
						t.Fatalf("delete of %d: entry %d: %v, want %v", len(list), i, got, want[i])
					}
				}
			case k < 19:
				restart()
			default:
				g.reconnect()
				m.learn(g, queueCount)
			}
			var want []int
			for _, t := range m.tables {
				want = append(want, len(t))
			}
			var got []int
			for _, q := range g.status().Queues {
				got = append(got, q.Static)
			}
			if !slices.Equal(got, want) {
				t.Fatalf("tables hold %v, want %v", got, want)
			}
		}
		there()
		back()
	}
	t.Logf("%d kills under a message", kills)
	g.innocentAfterKill()
	_, err := w.Detach(w.ctx, g.Domid, g.Devid)
	w.must(err)
	w.vifGone(g.Domid, g.Devid)
	w.unpinned(g.Domid)
}
