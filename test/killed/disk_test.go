// SPDX-License-Identifier: Apache-2.0

package killed

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/blkfront"
	"github.com/netbackd/netbackd/internal/lab/blkguest"
	"github.com/netbackd/netbackd/internal/lab/blklab"
	"github.com/netbackd/netbackd/internal/lab/diskcheck"
	"github.com/netbackd/netbackd/internal/lab/tracekill"
	"github.com/netbackd/netbackd/internal/lab/xensim/simclient"
	"github.com/netbackd/netbackd/internal/lab/xensim/toolstack"
	"github.com/netbackd/netbackd/internal/vbd"
)

// diskLoad has requests of all kinds and sizes, and no end. The guest knows the generation of each
// sector.
var diskLoad = diskcheck.Load{Depth: 16, MinSegments: 1, MaxSegments: 64, Reads: 40, Flushes: 10, Barriers: 5, Discards: 5, Seed: 1}

// disks is a host with blkbackd and a guest with a disk under load.
type disks struct {
	*blklab.Lab
	t      *testing.T
	ctx    context.Context
	g      *blklab.Guest
	ended  chan error
	res    diskcheck.Result
	deaths int
	away   []time.Duration
	again  []uint64 // requests started again, as far as the counters were saved
}

func newDisks(t *testing.T, front blkfront.Config, daemon ...string) *disks {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	dir, err := os.MkdirTemp("", "bkk")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	d := &disks{t: t, ctx: ctx, ended: make(chan error, 1)}
	d.Lab, err = blklab.New(ctx, blklab.Options{
		Exe: filepath.Join(*programs, "blkbackd-lab"), Dir: dir, Daemon: append([]string{"--max-queues=4"}, daemon...),
	})
	d.must(err)
	t.Cleanup(d.close)
	image := filepath.Join(dir, "disk.img")
	d.must(os.WriteFile(image, nil, 0o600))
	d.must(os.Truncate(image, 8<<20))
	v := toolstack.Vbd{Devid: toolstack.XVDA, Target: image, Script: blklab.Script}
	d.g, err = d.StartGuest(ctx, "guest1", simclient.DomainConfig{}, v)
	d.must(err)
	front.Strict = true
	_, err = d.g.Attach(ctx, blkguest.DiskConfig{Seed: 1, Front: front})
	d.must(err)
	go func() {
		res, err := d.g.Run(ctx, blkguest.LoadArgs{Load: diskLoad})
		d.res = res
		d.ended <- err
	}()
	return d
}

func (d *disks) must(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatal(err)
	}
}

func (d *disks) close() {
	log := d.Daemon()
	if err := d.Lab.Close(); err != nil {
		d.t.Error(err)
	}
	if said := log.Log(); strings.Contains(said, "internal error") || strings.Contains(said, "panic") || d.t.Failed() {
		d.t.Errorf("blkbackd said:\n%s", said)
	}
}

// status waits until the daemon's status of the disk satisfies a condition.
func (d *disks) status(what string, ok func(*vbd.Status) bool) vbd.Status {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.ctx, patience)
	defer cancel()
	for {
		select {
		case err := <-d.ended:
			d.t.Fatalf("the load ended while waiting for %s: %v", what, err)
		default:
		}
		s, err := d.Vbd(ctx, d.g.ID(toolstack.XVDA))
		if err == nil && ok(&s) {
			return s
		}
		if ctx.Err() != nil {
			d.t.Fatalf("waited in vain for %s: %+v, %v", what, s, err)
		}
		time.Sleep(time.Millisecond)
	}
}

// goesOn waits until some more requests were answered.
func (d *disks) goesOn(n uint64) {
	d.t.Helper()
	served := d.status("the disk to be served", func(s *vbd.Status) bool { return s.Waits == "" && s.Connection != nil })
	from := served.Counters["okay"]
	d.status("requests to be answered", func(s *vbd.Status) bool { return s.Counters["okay"] >= from+n })
}

// replaced starts a successor of a daemon that was killed, and waits until it answers requests.
func (d *disks) replaced(killed time.Time) {
	d.t.Helper()
	d.deaths++
	<-d.Daemon().Done()
	d.must(d.StartDaemon(d.ctx))
	s := d.status("the disk to be served", func(s *vbd.Status) bool { return s.Waits == "" && s.Connection != nil && s.Counters["okay"] > 0 })
	d.away = append(d.away, time.Since(killed))
	if !s.Connection.Adopted {
		d.t.Errorf("the connection is another one: %+v", s.Connection)
	}
	d.again = append(d.again, s.Counters["readopted"])
}

// TestDisks kills blkbackd under a load that knows every sector: at random instants, and at its
// system calls.
func TestDisks(t *testing.T) {
	for i, tt := range []struct {
		name  string
		front blkfront.Config
		args  []string
	}{
		{"four queues, persistent grants", blkfront.Config{Queues: 4, Order: 2, Indirect: 64, Persistent: true}, nil},
		{"copies, direct", blkfront.Config{Queues: 2, Indirect: 64}, []string{"--persistent=false", "--cache=direct"}},
		{"pool of threads", blkfront.Config{Queues: 2, Indirect: 64}, []string{"--io-uring=false"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if i > 0 && !*long {
				t.Skip("only with -long")
			}
			d := newDisks(t, tt.front, tt.args...)
			for range *kills {
				d.goesOn(10)
				time.Sleep(time.Duration(rand.Int64N(int64(10 * time.Millisecond))))
				killed := time.Now()
				d.must(unix.Kill(d.Daemon().PID(), unix.SIGKILL))
				d.replaced(killed)
			}
			table := newCallTable()
			d.calls(table)
			d.goesOn(10)
			d.must(d.g.Stop(d.ctx, ""))
			d.must(<-d.ended)
			d.must(d.g.Scan(d.ctx, ""))
			s, err := d.g.Stats(d.ctx, "")
			d.must(err)
			for _, v := range s.Violations {
				t.Errorf("the guest accuses the back end: %s", v)
			}
			write(t, fmt.Sprintf("disks, %s: deaths %d; until requests were answered median %d ms, p99 %d ms, worst %d ms; %d requests, at least %d of them started again",
				tt.name, d.deaths, percentile(d.away, 50).Milliseconds(), percentile(d.away, 99).Milliseconds(), percentile(d.away, 100).Milliseconds(),
				d.res.Requests, percentile(d.again, 100)))
			write(t, table.String())
		})
	}
}

// calls kills the daemon at each of its system calls under load.
func (d *disks) calls(table *callTable) {
	d.t.Helper()
	d.goesOn(10)
	k, err := tracekill.Start(tracekill.Order{PIDs: []int{d.Daemon().PID()}, Call: endless})
	d.must(err)
	r, err := k.Wait(200 * time.Millisecond)
	d.must(err)
	table.add("disks", r)
	for _, o := range points(r.Seen, underLoad) {
		o.PIDs = []int{d.Daemon().PID()}
		k, err := tracekill.Start(o)
		d.must(err)
		r, err := k.Wait(500 * time.Millisecond)
		d.must(err)
		table.add("disks", r)
		if r.Died {
			d.replaced(time.Unix(0, r.At))
		}
	}
}
