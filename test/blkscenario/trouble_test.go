// SPDX-License-Identifier: Apache-2.0

package blkscenario

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/blkfront"
	"github.com/netbackd/netbackd/internal/lab/blkguest"
	"github.com/netbackd/netbackd/internal/lab/diskcheck"
	"github.com/netbackd/netbackd/internal/lab/xensim/simclient"
	"github.com/netbackd/netbackd/internal/lab/xensim/toolstack"
	"github.com/netbackd/netbackd/internal/vbd"
)

var smallDomain = simclient.DomainConfig{}

// loop makes a loop device of a file, or skips the test.
func (w *world) loop(image string, args ...string) string {
	w.t.Helper()
	said, err := exec.CommandContext(w.ctx, "losetup", append(args, "--find", "--show", image)...).CombinedOutput()
	if err != nil {
		w.t.Skipf("no loop devices: %v: %s", err, said)
	}
	dev := strings.TrimSpace(string(said))
	w.t.Cleanup(func() { _ = exec.Command("losetup", "--detach", dev).Run() })
	return dev
}

// TestSecondWriterIsRefused: one image, two guests. The second one does not get the disk
// until the first one lets go of it; readers may share.
func TestSecondWriterIsRefused(t *testing.T) {
	w := newWorld(t)
	first := w.guest(blkfront.Config{})
	v := toolstack.Vbd{Devid: xvda, Target: first.image, Script: "block-blkbackd"}
	second, err := w.StartGuest(w.ctx, "second", smallDomain, v)
	w.must(err)
	g := &guest{Guest: second, w: w, image: first.image}
	s := g.wait("the refusal", func(s *vbd.Status) bool { return s.Error != "" || strings.Contains(s.Waits, "lock") })
	t.Logf("waits for %q, error %q", s.Waits, s.Error)
	first.run(mixed)
	first.innocent()
	if s := g.status(); s.Disk.Open || s.Connection != nil {
		t.Errorf("the second writer has %+v", s)
	}
	_, err = w.DetachVbd(w.ctx, first.Domid, xvda)
	w.must(err)
	if err := w.Client().Reset(w.ctx, g.ID(xvda).String()); err != nil {
		t.Log(err) // it may have opened the disk already
	}
	g.wait("the disk to open", func(s *vbd.Status) bool { return s.Disk.Open })
	image := w.image()
	read := func(v *toolstack.Vbd) { v.ReadOnly, v.Target = true, image }
	w.guest(blkfront.Config{}, read).innocent()
	w.guest(blkfront.Config{}, read).innocent()
}

// TestNoSuchDisk: a missing file is an error that the toolstack and the administrator can
// read, and reset tries again.
func TestNoSuchDisk(t *testing.T) {
	w := newWorld(t)
	image := w.dir + "/later.img"
	second, err := w.StartGuest(w.ctx, "early", smallDomain, toolstack.Vbd{Devid: xvda, Target: image, Script: "block-blkbackd"})
	w.must(err)
	g := &guest{Guest: second, w: w, image: image}
	s := g.wait("the error", func(s *vbd.Status) bool { return s.Error != "" })
	if !strings.Contains(s.Error, "later.img") {
		t.Errorf("the error is %q", s.Error)
	}
	w.must(os.Rename(w.image(), image))
	w.must(w.Client().Reset(w.ctx, g.ID(xvda).String()))
	_, err = g.Attach(w.ctx, blkguest.DiskConfig{})
	w.must(err)
	g.run(mixed)
	g.innocent()
}

// TestFullDisk: a sparse file on a file system that fills up. Writes that do not fit fail,
// no other does, and all that was acknowledged is there.
func TestFullDisk(t *testing.T) {
	for _, args := range [][]string{{}, {"--io-uring=false"}} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			w := newWorld(t, args...)
			small := t.TempDir()
			if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=2m"); err != nil {
				t.Skipf("no file system of a limited size: %v", err)
			}
			t.Cleanup(func() { _ = unix.Unmount(small, unix.MNT_DETACH) })
			image := small + "/disk.img"
			f, err := os.Create(image)
			w.must(err)
			w.must(f.Truncate(sectors * 512))
			w.must(f.Close())
			g := w.guest(blkfront.Config{Indirect: 64}, func(v *toolstack.Vbd) { v.Target = image })
			neighbour := w.guest(blkfront.Config{})
			res := g.run(diskcheck.Load{Requests: 400, Depth: 16, MaxSegments: 40, Reads: 20, Flushes: 5, Refused: true})
			if res.Errors == 0 {
				t.Error("all writes fit")
			}
			g.innocent()
			if n := g.status().Counters["disk_error"]; n == 0 {
				t.Errorf("counters %v", g.status().Counters)
			}
			// A guest that makes room again can write.
			a, err := g.Request(w.ctx, blkguest.RequestArgs{Op: 5, Sector: 0, NrSectors: sectors})
			if err != nil || a.Status != 0 {
				t.Errorf("discard: %v, %v", a.Status, err)
			}
			neighbour.run(mixed)
			neighbour.innocent()
		})
	}
}

// TestFileIsCutOff: the image is truncated under the guest without a word. Requests beyond
// its end fail, and nothing else happens.
func TestFileIsCutOff(t *testing.T) {
	w := newWorld(t)
	g := w.guest(blkfront.Config{Indirect: 64})
	g.run(mixed)
	w.must(os.Truncate(g.image, sectors*256))
	read := blkguest.RequestArgs{Op: 0, Sector: sectors - 8, Segments: []blkguest.SegmentArgs{{Last: 7}}}
	if a, err := g.Request(w.ctx, read); err != nil || a.Status == 0 {
		t.Errorf("a read beyond the end of the file: %v, %v", a.Status, err)
	}
	read.Sector = 0
	if a, err := g.Request(w.ctx, read); err != nil || a.Status != 0 {
		t.Errorf("a read of what is left: %v, %v", a.Status, err)
	}
}
