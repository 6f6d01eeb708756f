// SPDX-License-Identifier: Apache-2.0

package killed

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab"
	"github.com/netbackd/netbackd/internal/lab/guest"
	"github.com/netbackd/netbackd/internal/lab/ledger"
	"github.com/netbackd/netbackd/internal/lab/numbered"
	"github.com/netbackd/netbackd/internal/lab/tracekill"
	"github.com/netbackd/netbackd/internal/lab/vhostfront"
	"github.com/netbackd/netbackd/internal/vhostnet"
)

// device is a vhost-user device with a guest, whose card is an interface of the guest's network.
type device struct {
	*bed
	d       *lab.Vhost
	g       *lab.VirtGuest
	traffic *numbered.Traffic
	wires   [2]*numbered.Wire // host, guest
	stop    func()
}

// newDevice starts a device and a guest with traffic both ways.
func newDevice(t *testing.T, front vhostfront.Config) *device {
	b := newBed(t, false)
	b.must(b.Bridge("xenbr0"))
	d := &device{bed: b}
	var err error
	d.d, err = b.StartVhost(b.ctx, "tap0", "--bridge", "xenbr0", "--queues", "1")
	b.must(err)
	front.Socket, front.Strict = d.d.Socket, true
	d.g, err = b.StartVirt(b.ctx, "v0", guest.VirtConfig{MAC: "00:16:3e:00:00:01", Addrs: []string{"10.98.0.10/24"}, Front: front})
	b.must(err)
	b.wait("the device to be connected", func() bool {
		s, err := d.d.Status(b.ctx)
		return err == nil && s.State == vhostnet.Connected && running(s.Interface) && running("xenbr0")
	})
	s, err := d.d.Status(b.ctx)
	b.must(err)
	d.wires[0], err = numbered.OpenWire(s.Interface, 1, b.faults)
	b.must(err)
	b.must(d.g.Do(func() (err error) {
		d.wires[1], err = numbered.OpenGuestWire("eth0", 1, b.faults)
		return err
	}))
	d.traffic = numbered.New(numbered.Options{Vif: 1, Run: 1, Queues: 1, Partial: true}, b.faults)
	ctx, cancel := context.WithCancel(b.ctx)
	var wg sync.WaitGroup
	for _, w := range d.wires {
		w.Use(d.traffic)
		for _, f := range []func(context.Context) error{w.Receive, func(ctx context.Context) error { return w.Send(ctx, d.traffic) }} {
			wg.Go(func() {
				if err := f(ctx); err != nil {
					b.faults.Add("%v", err)
				}
			})
		}
	}
	d.stop = func() {
		cancel()
		wg.Wait()
		for _, w := range d.wires {
			b.must(w.Close())
		}
	}
	return d
}

// running reports whether the kernel has acted on the carrier of an interface.
func running(name string) bool {
	l, err := netlink.LinkByName(name)
	return err == nil && l.Attrs().OperState == netlink.OperUp
}

// goesOn waits until all flows have brought packets that were sent after this moment.
func (d *device) goesOn() {
	d.t.Helper()
	m := d.traffic.Mark()
	d.wait("packets to move", func() bool { return d.traffic.Beyond(m, 2) })
}

// replaced starts a successor of the process that was killed, and enters what the death has cost.
func (d *device) replaced(killed time.Time) {
	d.t.Helper()
	d.score.deaths++
	<-d.d.Done()
	d.wires[0].Look(time.Now())
	d.must(d.d.Restart(d.ctx))
	d.wait("the first packet", func() bool { _, ok := d.wires[0].First(); return ok })
	at, _ := d.wires[0].First()
	d.score.away = append(d.score.away, at.Sub(killed))
	d.goesOn()
	repeated, toGuest := d.traffic.Rest()
	if repeated[0] > batch {
		d.faults.Add("a death repeated %d packets, at most %d", repeated[0], batch)
	}
	if toGuest.Repeated > 0 {
		d.faults.Add("%d packets came to the guest twice", toGuest.Repeated)
	}
	d.score.repeated = append(d.score.repeated, repeated...)
	d.score.toGuest = append(d.score.toGuest, toGuest)
}

// TestVhost kills a vhost-user device under load: at random instants, and at system calls.
func TestVhost(t *testing.T) {
	for i, tt := range []struct {
		name  string
		front vhostfront.Config
	}{
		{"split, inflight region", vhostfront.Config{Inflight: true}},
		{"packed, inflight region", vhostfront.Config{Packed: true, Inflight: true}},
		{"split", vhostfront.Config{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if i > 0 && !*long {
				t.Skip("only with -long")
			}
			d := newDevice(t, tt.front)
			d.goesOn()
			if _, lost := d.traffic.Rest(); lost != (ledger.Tally{}) {
				t.Logf("at first: %+v", lost)
			}
			for range *kills {
				d.goesOn()
				time.Sleep(time.Duration(rand.Int64N(int64(20 * time.Millisecond))))
				d.traffic.Died()
				killed := time.Now()
				d.must(unix.Kill(d.d.PID(), unix.SIGKILL))
				d.replaced(killed)
			}
			table := newCallTable()
			d.calls(table)
			d.traffic.Pause(true)
			d.wait("all packets of the guest to arrive", func() bool {
				missing, _ := d.traffic.Missing()
				return missing == 0
			})
			d.score.toHost, d.score.received = d.traffic.Arrived()
			d.stop()
			d.report(fmt.Sprintf("vhost-user, %s: %v", tt.name, &d.score))
			d.table(table)
			st, err := d.g.VirtStats(d.ctx, "")
			d.must(err)
			if v := strings.Join(st.Violations, "\n"); v != "" {
				t.Error(v)
			}
		})
	}
}

// calls kills the device at each of its system calls under load.
func (d *device) calls(table *callTable) {
	d.t.Helper()
	k, err := tracekill.Start(tracekill.Order{PIDs: []int{d.d.PID()}, Call: endless})
	d.must(err)
	r, err := k.Wait(200 * time.Millisecond)
	d.must(err)
	table.add("vhost-user", r)
	for _, o := range points(r.Seen, underLoad) {
		o.PIDs = []int{d.d.PID()}
		d.traffic.Died()
		k, err := tracekill.Start(o)
		d.must(err)
		r, err := k.Wait(500 * time.Millisecond)
		d.must(err)
		table.add("vhost-user", r)
		if r.Died {
			d.replaced(time.Unix(0, r.At))
		}
	}
}
