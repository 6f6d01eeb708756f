// SPDX-License-Identifier: Apache-2.0

package vbd

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/netbackd/netbackd/internal/disk"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// TestRandomLife plays a random guest and a random toolstack, with restarts in between. After
// any such events, a frontend that follows the protocol gets its disk, and a toolstack that
// detaches gets Closed and a disk that is free.
func TestRandomLife(t *testing.T) {
	seeds := 60
	if testing.Short() {
		seeds = 10
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			w := newWorld(t)
			w.t = t
			p := &player{world: w, r: rand.New(rand.NewPCG(uint64(seed), 2))}
			w.attach()
			w.settle()
			for range 4 + p.r.IntN(12) {
				name := p.move()
				p.moves = append(p.moves, name)
				w.settle()
				if t.Failed() {
					t.Fatalf("after %s", strings.Join(p.moves, ", "))
				}
			}
			p.end()
			if t.Failed() {
				t.Logf("after %s", strings.Join(p.moves, ", "))
			}
		})
	}
}

// player makes moves of the guest, the toolstack and the host.
type player struct {
	*world
	r     *rand.Rand
	moves []string
}

// move makes a random move and returns its name.
func (p *player) move() string {
	moves := []struct {
		name string
		make func()
	}{
		{"plug in", p.plugIn},
		{"script fails", func() { p.write(p.tool, backDir, "hotplug-status", "error", "hotplug-error", "no such file") }},
		{"rings", func() { p.publish(1+p.r.IntN(4), p.r.IntN(3)) }},
		{"bad rings", func() { p.publish(1, 0, "ring-ref", "77777") }},
		{"bad protocol", func() { p.publish(1, 0, "protocol", "x") }},
		{"restart", p.restart},
		{"reset", func() { p.v.block = block{}; p.v.disk.retryNow() }},
		{"grow", func() { p.must(os.Truncate(p.image, int64(256+8*p.r.IntN(9))*disk.SectorSize)); p.v.resize() }},
		{"breach", func() {
			c := p.v.conn.now
			if c != nil && len(p.rings) > 0 && c.frontend.queues[0].port == p.rings[0].keys.port {
				p.breach()
			}
		}},
		{"made again", func() {
			p.must(p.tool.Remove(p.t.Context(), backDir))
			p.must(p.tool.Remove(p.t.Context(), frontDir))
			p.attach()
		}},
		{"state nonsense", func() { p.write(p.guest, frontDir, "state", "banana") }},
		{"connects well", func() {
			p.publish(1+p.r.IntN(2), p.r.IntN(2))
			p.frontState(xenbus.Initialised)
		}},
	}
	states := []xenbus.State{
		xenbus.Initialising, xenbus.InitWait, xenbus.Initialised, xenbus.Connected, xenbus.Closing, xenbus.Closed,
		xenbus.Initialised, xenbus.Connected, xenbus.Reconfiguring,
	}
	n := p.r.IntN(len(moves) + len(states))
	if n < len(moves) {
		moves[n].make()
		return moves[n].name
	}
	s := states[n-len(moves)]
	p.frontState(s)
	return s.String()
}

// end connects the guest or detaches the device, and checks what comes of it.
func (p *player) end() {
	p.t.Helper()
	p.plugIn()
	for _, s := range []xenbus.State{xenbus.Closing, xenbus.Closed, xenbus.Initialising} {
		p.frontState(s)
		p.settle()
	}
	p.wantState("2")
	p.publish(2, 1)
	p.frontState(xenbus.Initialised)
	p.settle()
	p.frontState(xenbus.Connected)
	p.settle()
	p.wantState("4")
	if p.t.Failed() {
		return
	}
	p.works(0)
	p.works(1)
	p.detach()
	p.settle()
	if p.r.IntN(2) == 0 {
		p.frontState(xenbus.Closed)
	} else {
		p.v.detachAt = time.Now()
	}
	p.settle()
	p.wantState("6")
	p.wantHeld(nothing)
	if p.locked() || p.files() != "" {
		p.t.Errorf("left: locked %t, files %s", p.locked(), p.files())
	}
}
