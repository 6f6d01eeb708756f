// SPDX-License-Identifier: Apache-2.0

package killed

import (
	"flag"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// other is another build of netbackd-lab, to which a daemon is upgraded and from which it comes
// back; empty: the same build.
var other = flag.String("other", "", "another `build` of netbackd-lab")

// change ends the daemon in order and starts another, of a program.
func (b *bed) change(exe string) {
	b.t.Helper()
	b.died() // for the guest a stop is like a kill
	begin := time.Now()
	b.must(b.Daemon().Stop())
	for _, v := range b.vifs {
		v.wire.Look(time.Now())
	}
	b.Use(exe)
	b.must(b.start())
	for _, v := range b.vifs {
		b.wait(v.name+" to be served again", func() bool { _, ok := v.since(begin); return ok })
		d, _ := v.since(begin)
		b.score.away = append(b.score.away, d)
	}
	b.settled("after a change")
	b.balance()
}

// TestStopped stops the daemon in order and starts it again, and upgrades it to another build and
// back.
func TestStopped(t *testing.T) {
	this := filepath.Join(*programs, "netbackd-lab")
	builds := map[string]string{"stop and start": this}
	if *other != "" {
		builds["upgrade and back"] = *other
	}
	for name, exe := range builds {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, true)
			b.addVif(vifConfig{queues: 4, hash: true, static: 100})
			b.addVif(vifConfig{queues: 2, plain: true})
			// A daemon of before kept no steering program, so flows moved.
			b.moves = exe != this
			for range max(*kills/2, 1) {
				b.settled("before a stop")
				b.rest()
				b.change(exe)
				b.rest()
				b.change(this)
			}
			for _, v := range b.vifs {
				v.quiet()
			}
			b.print(name)
		})
	}
}

// TestTwoStarts kills the daemon and starts two at once: one of them serves, and the other says
// that there is another, and ends.
func TestTwoStarts(t *testing.T) {
	b := newBed(t, false)
	b.addVif(vifConfig{queues: 2})
	for range *kills {
		b.settled("before a kill")
		b.rest()
		b.died()
		b.Daemon().Kill()
		exe := filepath.Join(*programs, "netbackd-lab")
		type outcome struct {
			said string
			err  error
		}
		outcomes := make(chan outcome, 2)
		var cmds []*exec.Cmd
		var started sync.WaitGroup
		for range 2 {
			cmd := exec.Command(exe, "run", "--xen", b.XenDir(), "--run-dir", b.RunDir(), "--max-queues=4")
			cmds = append(cmds, cmd)
			started.Add(1)
			go func() {
				var said strings.Builder
				cmd.Stderr = &said
				err := cmd.Start()
				started.Done()
				if err == nil {
					err = cmd.Wait()
				}
				outcomes <- outcome{said.String(), err}
			}()
		}
		started.Wait()
		loser := <-outcomes
		if loser.err == nil || !strings.Contains(loser.said, "another netbackd") {
			b.faults.Add("the second of two daemons: %v, it said %q", loser.err, loser.said)
		}
		b.settled("the first of two daemons")
		b.balance()
		for _, cmd := range cmds {
			_ = cmd.Process.Kill() // the loser has ended
		}
		<-outcomes
		b.died()
		b.must(b.start())
		b.settled("a daemon alone")
		b.balance()
	}
	for _, v := range b.vifs {
		v.quiet()
	}
	b.print("two starts at once")
}
