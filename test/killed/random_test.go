// SPDX-License-Identifier: Apache-2.0

package killed

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/ledger"
	"github.com/netbackd/netbackd/internal/lab/numbered"
)

// batch bounds the packets of a queue that a death may repeat: the largest batch of the data plane.
const batch = 128

// settled waits until every flow of every vif has brought some packets that were sent after this
// moment.
func (b *bed) settled(what string) {
	b.t.Helper()
	marks := make([]numbered.Mark, len(b.vifs))
	for i, v := range b.vifs {
		marks[i] = v.traffic.Mark()
	}
	for i, v := range b.vifs {
		if v.away.Load() {
			continue
		}
		b.wait(what+": "+v.name+" to go on", func() bool { return v.traffic.Beyond(marks[i], 2) })
	}
}

// rest checks that nothing was lost or repeated since the last balance, when no daemon died.
func (b *bed) rest() {
	b.t.Helper()
	for _, v := range b.vifs {
		repeated, toGuest := v.traffic.Rest()
		for q, n := range repeated {
			if n > 0 {
				b.faults.Add("%s, queue %d: %d packets repeated without a death", v.name, q, n)
			}
		}
		if toGuest != (ledger.Tally{}) && !v.cfg.control { // a new mapping moves flows, which may be late
			b.faults.Add("%s, to the guest, without a death: %+v", v.name, toGuest)
		}
	}
}

// balance enters what a death has cost into the score, and judges it.
func (b *bed) balance() {
	b.t.Helper()
	for _, v := range b.vifs {
		repeated, toGuest := v.traffic.Rest()
		for q, n := range repeated {
			if n > batch*uint64(b.fresh) {
				b.faults.Add("%s, queue %d: %d deaths repeated %d packets, at most %d each", v.name, q, b.fresh, n, batch)
			}
		}
		// Kept queues keep what waits in them, in order, unless the guest moves its flows.
		if b.manager != nil && !b.moves && !v.cfg.control && toGuest.Late > 0 {
			b.faults.Add("%s: after a death %d packets came to the guest late", v.name, toGuest.Late)
		}
		b.score.repeated = append(b.score.repeated, repeated...)
		if v.young {
			v.young = false // the host drops packets until it has noticed the carrier
			continue
		}
		b.score.toGuest = append(b.score.toGuest, toGuest)
	}
	b.fresh = 0
}

// mayDie tells all books that the victim may die.
func (b *bed) mayDie() {
	b.fresh++
	for _, v := range b.vifs {
		v.traffic.Died()
	}
}

// died is mayDie for a victim that is killed for certain.
func (b *bed) died() {
	b.score.deaths++
	b.mayDie()
}

// kill kills the victim, starts a successor of the daemon at once, and waits until all vifs are
// back.
func (b *bed) kill() {
	b.t.Helper()
	pids := b.victims()
	b.died()
	killed := time.Now()
	for _, pid := range pids {
		b.must(unix.Kill(pid, unix.SIGKILL))
	}
	for _, pid := range pids {
		b.wait("the end of the victim", func() bool { return ended(pid) })
	}
	for _, v := range b.vifs {
		v.wire.Look(time.Now())
	}
	b.replace(pids...)
	for _, v := range b.vifs {
		if v.away.Load() {
			continue
		}
		b.wait(v.name+" to be served again", func() bool { _, ok := v.since(killed); return ok })
		d, _ := v.since(killed)
		b.score.away = append(b.score.away, d)
	}
	b.score.peer = append(b.score.peer, b.peer())
	b.settled("after a kill")
	b.balance()
}

// peer returns the time that the start of a program takes that does nothing. The machine may be
// busy; then the start of a daemon takes longer, too.
func (b *bed) peer() time.Duration {
	b.t.Helper()
	begin := time.Now()
	b.must(exec.Command(filepath.Join(*programs, "netbackd-lab"), "version").Run())
	return time.Since(begin)
}

// TestRandom kills the daemon at random instants under load in both directions.
func TestRandom(t *testing.T) {
	for i, tt := range []struct {
		name   string
		victim string // empty: by the flag
		store  bool
		args   []string
		vifs   []vifConfig
	}{
		{"fd store, static grants, hashing", "", true, nil, []vifConfig{{queues: 4, hash: true, static: 200}, {queues: 4, plain: true}}},
		{"control messages without end", "", true, nil, []vifConfig{{queues: 4, hash: true, static: 100, control: true}, {queues: 1}}},
		{"no fd store, copies", "", false, nil, []vifConfig{{queues: 4}, {queues: 2, hash: true}}},
		{"fd store, system calls, no own pages", "", true, []string{"--io-uring=false", "--own-pages=none"}, []vifConfig{{queues: 4}}},
		{"the packet process", "packet", true, nil, []vifConfig{{queues: 4, hash: true, static: 200}}},
		{"the daemon and its packet process", "both", false, nil, []vifConfig{{queues: 4, hash: true}, {queues: 2}}},
		{"one process", "", true, []string{"--isolate=none"}, []vifConfig{{queues: 4, hash: true, static: 200}, {queues: 2}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if i > 0 && !*long {
				t.Skip("only with -long")
			}
			b := newBed(t, tt.store, tt.args...)
			b.victim = cmp.Or(tt.victim, *victim)
			for _, c := range tt.vifs {
				b.addVif(c)
			}
			stop := b.streams()
			b.settled("at first")
			for range *kills {
				b.settled("before a kill")
				b.rest()
				life := time.Duration(rand.Int64N(int64(20 * time.Millisecond)))
				if b.victim == "packet" {
					life += packetLife
				}
				time.Sleep(life)
				b.kill()
			}
			for _, v := range b.vifs {
				v.quiet()
			}
			b.print(fmt.Sprintf("random, %s, %d TCP streams whole", tt.name, stop()))
		})
	}
}
