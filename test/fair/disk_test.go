// SPDX-License-Identifier: Apache-2.0

package fair

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/netbackd/netbackd/internal/lab"
	"github.com/netbackd/netbackd/internal/lab/blkfront"
	"github.com/netbackd/netbackd/internal/lab/blkguest"
	"github.com/netbackd/netbackd/internal/lab/blklab"
	"github.com/netbackd/netbackd/internal/lab/crowd"
	"github.com/netbackd/netbackd/internal/lab/diskcheck"
	"github.com/netbackd/netbackd/internal/lab/hostile"
	"github.com/netbackd/netbackd/internal/lab/xensim/simclient"
	"github.com/netbackd/netbackd/internal/lab/xensim/toolstack"
)

// envDiskExe names the program blkbackd-lab that is measured. Empty: that of this tree.
const envDiskExe = "FAIR_DISK_EXE"

// diskLoad is a hostile load on a disk.
type diskLoad struct {
	name       string
	kind       hostile.Kind
	persistent bool
}

// diskLoads are all loads on disks, each on 8 queues.
var diskLoads = []diskLoad{
	{name: "disk-writes", kind: hostile.DiskWrites},
	{name: "disk-random", kind: hostile.DiskRandom},
	{name: "disk-bad", kind: hostile.DiskBad},
	{name: "disk-flush", kind: hostile.DiskFlush},
	{name: "disk-discard", kind: hostile.DiskDiscard},
	{name: "disk-churn", kind: hostile.DiskChurn, persistent: true},
}

// diskHost is a host with blkbackd. Its disks are files on a tmpfs, so that the loads meet no
// limit of a disk, and disturb no other program.
type diskHost struct {
	*blklab.Lab
	*host
	dir    string
	images int
}

const diskSize = 64 << 20

// newDiskHost starts blkbackd on an embedded Xen.
func newDiskHost(tb testing.TB) *diskHost {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	tb.Cleanup(cancel)
	dir, err := os.MkdirTemp("/dev/shm", "nbd")
	if err != nil {
		tb.Skip("no tmpfs for the disks")
	}
	tb.Cleanup(func() { _ = os.RemoveAll(dir) })
	exe := program(tb, "blkbackd-lab", envDiskExe)
	h := &diskHost{host: &host{tb: tb, ctx: ctx, exe: exe}, dir: dir}
	if t, ok := tb.(*testing.T); ok {
		t.Setenv(lab.SessionEnv, "1") // see doc.go
	}
	h.Lab, err = blklab.New(ctx, blklab.Options{Exe: exe, Dir: dir, Daemon: []string{"--max-queues=8"}})
	h.must(err)
	tb.Cleanup(func() {
		if err := h.Lab.Close(); err != nil {
			tb.Error(err)
		}
	})
	// A hypervisor does not wait for a processor as the process does that plays it.
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/autogroup", h.Lab.Xen().PID()), []byte("-20"), 0); err != nil {
		tb.Logf("the embedded Xen waits for processors like a guest: %v", err)
	}
	return h
}

// image makes a file for a disk. Its content is there, so that reads do not meet holes.
func (h *diskHost) image() string {
	h.tb.Helper()
	h.images++
	path := filepath.Join(h.dir, fmt.Sprintf("disk%d.img", h.images))
	h.must(os.WriteFile(path, make([]byte, diskSize), 0o600))
	return path
}

// diskGuest starts an innocent guest with a disk.
func (h *diskHost) diskGuest(name string) *blklab.Guest {
	h.tb.Helper()
	g, err := h.Lab.StartGuest(h.ctx, name, simclient.DomainConfig{}, toolstack.Vbd{Devid: toolstack.XVDA, Target: h.image()})
	h.must(err)
	_, err = g.Attach(h.ctx, blkguest.DiskConfig{Front: blkfront.Config{Queues: 1}})
	h.must(err)
	return g
}

// diskCrew makes a hostile guest with a disk.
func (h *diskHost) diskCrew(queues int, persistent bool) *crew {
	h.tb.Helper()
	c := h.recruit()
	domid, err := h.CreateGuest(h.ctx, "bad", simclient.DomainConfig{})
	h.must(err)
	_, err = h.AttachVbd(h.ctx, domid, toolstack.Vbd{Devid: toolstack.XVDA, Target: h.image(), Script: blklab.Script})
	h.must(err)
	c.join(hostile.JoinArgs{
		Xen: h.Lab.XenDir(), Disks: []hostile.Vif{{Domid: domid, Devid: toolstack.XVDA}}, Queues: queues, Persistent: persistent,
	})
	return c
}

// diskField is a host for one load.
type diskField struct {
	*diskHost
	load         diskLoad
	quiet, other *blklab.Guest
	bad, peer    *crew
}

// newDiskField sets up the guests of a load.
func newDiskField(tb testing.TB, l diskLoad) *diskField {
	tb.Helper()
	h := newDiskHost(tb)
	f := &diskField{diskHost: h, load: l, quiet: h.diskGuest("quiet"), other: h.diskGuest("other")}
	f.bad, f.peer = h.diskCrew(8, l.persistent), h.diskCrew(1, false)
	return f
}

// reads has the quiet guest read 4 KiB at random places for a time, eight at once, and adds the
// latencies to h. rate bounds the reads per second; 0: no bound.
func (f *diskField) reads(d time.Duration, rate float64, h *diskcheck.Histogram) (perSecond float64) {
	f.tb.Helper()
	r, err := f.quiet.Run(f.ctx, blkguest.LoadArgs{Load: diskcheck.Load{Duration: d, Depth: 8, Rate: rate, Reads: 100, Unchecked: true}})
	f.must(err)
	h.Add(r.Latency)
	return r.Rate()
}

// round measures everything once.
func (f *diskField) round() (r round) {
	f.tb.Helper()
	var alone, beside, other diskcheck.Histogram
	for range turns {
		var t turn
		t.alone = f.reads(span, 0, &alone)
		f.beside(f.honest, func() { t.peer = f.reads(span, 0, &other) })
		f.beside(f.attack(0), func() { t.beside = f.reads(span, 0, &beside) })
		r.turns = append(r.turns, t)
	}
	r.ping, r.pingBeside = alone.Quantile(0.99), beside.Quantile(0.99)
	r.reconnect, r.show, r.detach = f.life()
	r.strength = f.beside(f.attack(0), func() {
		bad, daemon, began := f.used(f.bad.PID), f.used(f.Lab.Daemon().PID()), time.Now()
		r.reconnectB, r.showB, r.detachB = f.life()
		took := time.Since(began).Seconds()
		r.cpu, r.daemon = (f.used(f.bad.PID)-bad).Seconds()/took, (f.used(f.Lab.Daemon().PID())-daemon).Seconds()/took
	})
	for i := range r.turns {
		t := &r.turns[i]
		quarter := t.alone / 4
		t.paced = f.reads(span, quarter, &other)
		f.beside(f.attack(r.strength.PerSecond()/4), func() { t.left = f.reads(span, quarter, &other) })
	}
	return r
}

// attack returns what begins the load, at a rate or as strong as it can be.
func (f *diskField) attack(rate float64) func() (end func() hostile.Strength) {
	return func() func() hostile.Strength {
		f.tb.Helper()
		return f.bad.load(hostile.LoadArgs{Load: f.load.kind, Rate: rate})
	}
}

// honest begins the load of the honest peer.
func (f *diskField) honest() (end func() hostile.Strength) {
	f.tb.Helper()
	return f.peer.load(hostile.LoadArgs{Load: hostile.DiskReads})
}

// life measures how long it takes the other guest to reconnect, blkbackd to show a disk, and
// the other guest's disk to be detached. It has another one afterwards.
func (f *diskField) life() (reconnect, show, detach time.Duration) {
	f.tb.Helper()
	begun := time.Now()
	_, err := f.other.Reconnect(f.ctx, blkguest.ConnectArgs{})
	f.must(err)
	reconnect = time.Since(begun)
	begun = time.Now()
	cmd := exec.CommandContext(f.ctx, f.exe, "show", f.quiet.ID(toolstack.XVDA).String(), "--run-dir", f.Lab.RunDir())
	if out, err := cmd.CombinedOutput(); err != nil {
		f.tb.Fatalf("blkbackd show: %v\n%s", err, out)
	}
	show = time.Since(begun)
	w, err := f.DetachVbd(f.ctx, f.other.Domid, toolstack.XVDA)
	f.must(err)
	detach = w.State + w.Forced
	f.must(f.other.Client.Detach(f.ctx, ""))
	_, err = f.AttachVbd(f.ctx, f.other.Domid, toolstack.Vbd{Devid: toolstack.XVDA, Target: f.image(), Script: blklab.Script})
	f.must(err)
	_, err = f.other.Attach(f.ctx, blkguest.DiskConfig{Front: blkfront.Config{Queues: 1}})
	f.must(err)
	return reconnect, show, detach
}

// used returns the processor time of a process.
func (h *host) used(pid int) time.Duration {
	h.tb.Helper()
	u, err := crowd.Read(pid)
	h.must(err)
	return u.CPU
}

// TestDisks is the long run of disks.
func TestDisks(t *testing.T) {
	long(t)
	tab := newTable(t, diskHeading)
	missed := 0
	for _, l := range diskLoads {
		if !wanted(l.name) {
			continue
		}
		t.Run(l.name, func(t *testing.T) {
			f := newDiskField(t, l)
			var rounds []round
			for range roundsWanted(t) {
				rounds = append(rounds, f.round())
			}
			missed += row(tab, l.name, "requests", 1, rounds)
		})
	}
	tab.end()
	if missed > 0 {
		t.Errorf("%d bars missed", missed)
	}
}
