// SPDX-License-Identifier: Apache-2.0

package blkscenario

import (
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/blkfront"
	"github.com/netbackd/netbackd/internal/lab/blkguest"
	"github.com/netbackd/netbackd/internal/lab/diskcheck"
	"github.com/netbackd/netbackd/internal/lab/xensim/toolstack"
	"github.com/netbackd/netbackd/internal/vbd"
	"github.com/netbackd/netbackd/pkg/blkif"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// mixed is a load of everything that a guest may do.
var mixed = diskcheck.Load{Requests: 300, Depth: 16, MaxSegments: 40, Reads: 40, Flushes: 5, Barriers: 3, Discards: 3, Parts: true, Seed: 1}

// TestOneGuest is the whole way: attach, connect, write, read, compare, detach. The file has
// what the guest wrote, and nothing of the guest stays mapped.
func TestOneGuest(t *testing.T) {
	w := newWorld(t)
	g := w.guest(blkfront.Config{Queues: 2, Indirect: 256})
	o := g.info.Offers
	if o.Sectors != sectors || o.SectorSize != 512 || o.Info != 0 || !o.Flush || !o.Barrier || !o.Discard || o.MaxOrder != 4 || o.MaxQueues != 4 || o.MaxIndirect < 32 {
		t.Errorf("the backend offers %+v", o)
	}
	res := g.run(mixed)
	t.Logf("%.0f requests/s, %.1f MiB/s", res.Rate(), res.MiB())
	g.innocent()
	begin := time.Now()
	waits, err := w.DetachVbd(w.ctx, g.Domid, xvda)
	w.must(err)
	if waits.Forced > 0 || time.Since(begin) > 3*time.Second {
		t.Errorf("the detach took %v, %+v", time.Since(begin), waits)
	}
	w.nothingLeft(g)
	w.free(g.image)
}

// nothingLeft waits until nothing of a guest is mapped or bound, and the daemon forgot the
// disk.
func (w *world) nothingLeft(g *guest) {
	w.t.Helper()
	for {
		names, err := w.Client().Names(w.ctx)
		w.must(err)
		dom0, err := w.Control().Domain(0)
		w.must(err)
		if len(names) == 0 && dom0.Maps == 0 && dom0.Ports == 0 {
			return
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-w.ctx.Done():
			w.t.Fatalf("the daemon has %v, %d pages mapped, %d ports", names, dom0.Maps, dom0.Ports)
		}
	}
}

// free checks that no one has the lock of an image.
func (w *world) free(image string) {
	w.t.Helper()
	f, err := os.Open(image)
	w.must(err)
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		w.t.Errorf("the image is still locked: %v", err)
	}
}

// TestEndsUnderLoad ends the disk of a guest in every way while requests are in flight.
// Another guest on the same daemon is not disturbed.
func TestEndsUnderLoad(t *testing.T) {
	w := newWorld(t)
	neighbour := w.guest(blkfront.Config{Indirect: 64, Persistent: true})
	quiet := neighbour.running(endless(mixed))
	for name, end := range map[string]func(w *world, g *guest){
		"detach": func(w *world, g *guest) {
			waits, err := w.DetachVbd(w.ctx, g.Domid, xvda)
			w.must(err)
			if waits.Forced > 0 {
				t.Errorf("the detach was forced: %+v", waits)
			}
		},
		"destroy": func(w *world, g *guest) {
			_, err := w.Destroy(w.ctx, g.Domid)
			w.must(err)
		},
		"the guest dies": func(w *world, g *guest) {
			w.must(g.Kill())
			_, err := w.Destroy(w.ctx, g.Domid)
			w.must(err)
		},
		"the domain is gone at once": func(w *world, g *guest) {
			w.must(w.Control().Destroy(g.Domid))
			_, err := w.DetachVbd(w.ctx, g.Domid, xvda)
			w.must(err)
		},
		"the driver is unloaded": func(w *world, g *guest) {
			w.must(g.Disconnect(w.ctx, ""))
			_, err := w.DetachVbd(w.ctx, g.Domid, xvda)
			w.must(err)
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := w.in(t)
			g := w.guest(blkfront.Config{Queues: 2, Indirect: 256})
			ended := make(chan error, 1)
			go func() {
				_, err := g.Run(w.ctx, blkguest.LoadArgs{Load: endless(mixed)})
				ended <- err
			}()
			g.waitCounter("okay", 30)
			end(w, g)
			<-ended // with an error or without: the disk is gone
			g.forgotten()
			w.free(g.image)
		})
	}
	quiet()
	neighbour.innocent()
}

// forgotten waits until the daemon does not know the disk any more.
func (g *guest) forgotten() {
	g.w.t.Helper()
	for {
		names, err := g.w.Client().Names(g.w.ctx)
		g.w.must(err)
		known := false
		for _, n := range names {
			known = known || n == g.ID(xvda).String()
		}
		if !known {
			return
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-g.w.ctx.Done():
			g.w.t.Fatalf("the daemon still has %v", names)
		}
	}
}

// TestConnectsAgainUnderLoad: each way in which a frontend begins anew while requests are in
// flight. Requests of the old connection may have happened, but never after one of the new.
func TestConnectsAgainUnderLoad(t *testing.T) {
	w := newWorld(t)
	g := w.guest(blkfront.Config{Queues: 2, Indirect: 256})
	front := blkfront.Config{Queues: 3, Order: 1, Indirect: 64, Persistent: true, Strict: true}
	for name, again := range map[string]func(*guest, blkguest.ConnectArgs) (blkguest.Info, error){
		"closed and opened": func(g *guest, a blkguest.ConnectArgs) (blkguest.Info, error) { return g.Reconnect(w.ctx, a) },
		"kexec":             func(g *guest, a blkguest.ConnectArgs) (blkguest.Info, error) { return g.Suspend(w.ctx, a) },
		"resume":            func(g *guest, a blkguest.ConnectArgs) (blkguest.Info, error) { return g.Replace(w.ctx, a) },
	} {
		t.Run(name, func(t *testing.T) {
			w, g := w.in(t), g.in(t)
			for i := range 3 {
				ended := make(chan diskcheck.Result, 1)
				go func() {
					res, err := g.Run(w.ctx, blkguest.LoadArgs{Load: endless(mixed)})
					if err != nil {
						t.Error(err)
					}
					ended <- res
				}()
				g.waitCounter("okay", 30)
				args := blkguest.ConnectArgs{}
				if i == 1 {
					args.Front = &front
				}
				_, err := again(g, args)
				w.must(err)
				res := <-ended
				t.Logf("%d requests were without an answer", res.Unanswered)
				g.innocent()
			}
		})
	}
}

// TestResize makes the file larger and smaller under load. The guest sees the new size and
// uses all of it.
func TestResize(t *testing.T) {
	w := newWorld(t)
	g := w.guest(blkfront.Config{Indirect: 64})
	for _, n := range []int64{2 * sectors, sectors / 2, sectors} {
		stop := g.running(endless(diskcheck.Load{Depth: 8, MaxSegments: 20, Reads: 50, Refused: n < sectors}))
		g.waitCounter("okay", 30)
		if n < sectors {
			stop() // requests beyond the new end fail
		}
		w.must(os.Truncate(g.image, n*512))
		w.must(w.Client().Resize(w.ctx, g.ID(xvda).String()))
		g.wait("the new size", func(s *vbd.Status) bool { return s.Disk.Sectors == uint64(n) })
		if n >= sectors {
			stop()
		}
		w.must(g.AwaitSize(w.ctx, "", uint64(n)))
		g.run(mixed)
		g.innocent()
		last := blkguest.RequestArgs{Op: blkif.OpRead, Sector: uint64(n) - 8, Segments: []blkguest.SegmentArgs{{Last: 7}}}
		for beyond, want := range []blkif.Status{blkif.StatusOkay, blkif.StatusError} {
			last.Sector += uint64(beyond)
			if r, err := g.Request(w.ctx, last); err != nil || r.Status != want {
				t.Errorf("a read that ends %d sectors beyond the end: %v, %v", beyond, r.Status, err)
			}
		}
	}
}

// TestReadOnly: mode r, and a CD. Reads are served and all else is refused.
func TestReadOnly(t *testing.T) {
	w := newWorld(t)
	for name, tt := range map[string]struct {
		change func(*toolstack.Vbd)
		info   int
	}{
		"mode r":    {func(v *toolstack.Vbd) { v.ReadOnly = true }, blkif.InfoReadOnly},
		"cdrom":     {func(v *toolstack.Vbd) { v.ReadOnly, v.CDROM = true, true }, blkif.InfoReadOnly | blkif.InfoCDROM},
		"removable": {func(v *toolstack.Vbd) { v.ReadOnly, v.Removable = true, true }, blkif.InfoReadOnly | blkif.InfoRemovable},
	} {
		t.Run(name, func(t *testing.T) {
			w := w.in(t)
			g := w.guest(blkfront.Config{Indirect: 64}, tt.change)
			if o := g.info.Offers; o.Info != tt.info || o.Flush || o.Barrier || o.Discard {
				t.Errorf("the backend offers %+v, want info %d", o, tt.info)
			}
			g.innocent() // it reads all
			page := []blkguest.SegmentArgs{{Last: 7, Data: []byte("no")}}
			for _, r := range []blkguest.RequestArgs{
				{Op: blkif.OpWrite, Segments: page}, {Op: blkif.OpWrite, Indirect: true, Segments: page}, {Op: blkif.OpBarrier, Segments: page},
				{Op: blkif.OpDiscard, NrSectors: 8},
			} {
				if a, err := g.Request(w.ctx, r); err != nil || a.Status == blkif.StatusOkay {
					t.Errorf("%v: %v, %v", r.Op, a.Status, err)
				}
			}
			g.innocent()
		})
	}
}

// TestKindsOfDisk: a directory of libxl 4.20's backendtype=tap, the null store, and a block
// device if there are loop devices.
func TestKindsOfDisk(t *testing.T) {
	w := newWorld(t)
	t.Run("null", func(t *testing.T) {
		w := w.in(t)
		g := w.guest(blkfront.Config{Indirect: 64}, func(v *toolstack.Vbd) { v.Target = "null:8M" })
		g.run(diskcheck.Load{Requests: 100, Depth: 8, MaxSegments: 40, Unchecked: true, Reads: 50, Flushes: 5})
	})
	t.Run("no discard", func(t *testing.T) {
		w := w.in(t)
		g := w.guest(blkfront.Config{}, func(v *toolstack.Vbd) { v.NoDiscard = true })
		if g.info.Offers.Discard {
			t.Error("discard is offered")
		}
		if a, err := g.Request(w.ctx, blkguest.RequestArgs{Op: blkif.OpDiscard, NrSectors: 8}); err != nil || a.Status == blkif.StatusOkay {
			t.Errorf("a discard: %v, %v", a.Status, err)
		}
	})
	t.Run("vbd3", func(t *testing.T) {
		w := w.in(t)
		v := toolstack.Vbd{Devid: xvda, Target: w.image(), Script: "block-blkbackd", Tap: true}
		g, err := w.StartGuest(w.ctx, "tap", smallDomain, v)
		w.must(err)
		_, err = g.Attach(w.ctx, blkguest.DiskConfig{Front: blkfront.Config{Indirect: 64}})
		w.must(err)
		_, err = g.Run(w.ctx, blkguest.LoadArgs{Load: mixed})
		w.must(err)
		w.must(g.Scan(w.ctx, ""))
		_, err = w.DetachVbd(w.ctx, g.Domid, xvda)
		w.must(err)
	})
	t.Run("loop device", func(t *testing.T) {
		w := w.in(t)
		dev := w.loop(w.image())
		g := w.guest(blkfront.Config{Queues: 2, Indirect: 64}, func(v *toolstack.Vbd) { v.Target = dev })
		g.run(mixed)
		g.innocent()
		if s := g.status(); s.Disk.Kind.String() != "block" || !s.Disk.Direct {
			t.Errorf("the disk is %+v", s.Disk)
		}
	})
}

// TestOthersDisks: a vbd with another script is not served, and one that blkbackd serves
// does not mind.
func TestOthersDisks(t *testing.T) {
	w := newWorld(t)
	g := w.guest(blkfront.Config{})
	other := toolstack.Vbd{Devid: xvda + toolstack.XVDAStep, Target: w.image(), Script: "block"}
	ended := make(chan error, 1)
	go func() {
		_, err := w.AttachVbd(w.ctx, g.Domid, other)
		ended <- err
	}()
	id := g.ID(other.Devid)
	for {
		s, err := w.Client().Vbd(w.ctx, id.String(), 0)
		if err == nil && s.ServedBy == "other" {
			break
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-w.ctx.Done():
			t.Fatalf("the daemon says %+v, %v", s, err)
		}
	}
	if v, err := w.Store().Read(w.ctx, g.BackPath(other.Devid)+"/state"); err != nil || v != "1" {
		t.Errorf("its state is %q, %v", v, err)
	}
	w.must(w.Store().Write(w.ctx, g.BackPath(other.Devid)+"/state", "2"))
	w.must(<-ended)
	g.run(mixed)
	g.innocent()
}

// TestDaemonFindsWhatHappenedWithoutIt: while no daemon runs a guest closes, another one is
// destroyed, a third begins anew, and a disk is attached.
func TestDaemonFindsWhatHappenedWithoutIt(t *testing.T) {
	w := newWorld(t)
	same, closed, destroyed, anew := w.guest(blkfront.Config{}), w.guest(blkfront.Config{}), w.guest(blkfront.Config{}), w.guest(blkfront.Config{})
	for _, g := range []*guest{same, closed, destroyed, anew} {
		g.run(diskcheck.Load{Requests: 50, MaxSegments: 8})
	}
	w.Daemon().Kill()
	w.must(closed.SetState(w.ctx, "", xenbus.Closed))
	w.must(w.Control().Destroy(destroyed.Domid))
	reconnected := make(chan error, 1)
	go func() {
		_, err := anew.Suspend(w.ctx, blkguest.ConnectArgs{})
		reconnected <- err
	}()
	attached := make(chan error, 1)
	late := toolstack.Vbd{Devid: xvda + toolstack.XVDAStep, Target: w.image(), Script: "block-blkbackd"}
	go func() {
		_, err := w.AttachVbd(w.ctx, same.Domid, late)
		attached <- err
	}()
	w.must(w.StartDaemon(w.ctx))
	w.must(<-attached)
	w.must(<-reconnected)
	same.serving()
	_, err := same.Attach(w.ctx, blkguest.DiskConfig{Name: "xvdb", Front: blkfront.Config{Dir: "device/vbd/51728"}})
	w.must(err)
	_, err = same.Run(w.ctx, blkguest.LoadArgs{DiskArgs: blkguest.DiskArgs{Disk: "xvdb"}, Load: mixed})
	w.must(err)
	same.run(mixed)
	same.innocent()
	anew.run(mixed)
	anew.innocent()
	closed.wait("the closed disk", func(s *vbd.Status) bool { return s.State == xenbus.Closed && s.Connection == nil })
	_, err = w.DetachVbd(w.ctx, destroyed.Domid, xvda)
	w.must(err)
	destroyed.forgotten()
}
