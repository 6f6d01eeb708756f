// SPDX-License-Identifier: Apache-2.0

package blkscenario

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/netbackd/netbackd/internal/lab/blkfront"
	"github.com/netbackd/netbackd/internal/lab/blkguest"
	"github.com/netbackd/netbackd/internal/lab/blklab"
	"github.com/netbackd/netbackd/internal/lab/diskcheck"
	"github.com/netbackd/netbackd/internal/lab/xensim/simclient"
	"github.com/netbackd/netbackd/internal/lab/xensim/toolstack"
	"github.com/netbackd/netbackd/internal/vbd"
)

const (
	patience = 60 * time.Second // for all waits of a test, on a busy machine
	sectors  = 16 << 10         // of a disk: 8 MiB
	xvda     = toolstack.XVDA
)

// world is a host with blkbackd.
type world struct {
	*blklab.Lab
	t      *testing.T
	ctx    context.Context
	dir    string
	guests *int
	images *int
}

// newWorld makes a host. daemon are more arguments for `blkbackd run`.
func newWorld(t *testing.T, daemon ...string) *world {
	t.Helper()
	return newWorldWith(t, blklab.Options{Daemon: daemon})
}

func newWorldWith(t *testing.T, o blklab.Options) *world {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	dir, err := os.MkdirTemp("", "blw") // a short path: socket addresses are short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	o.Exe, o.Dir = exe, dir
	o.Daemon = append([]string{"--max-queues=4", "--log-level=debug"}, o.Daemon...)
	l, err := blklab.New(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{Lab: l, t: t, ctx: ctx, dir: dir, images: new(int), guests: new(int)}
	t.Cleanup(w.close)
	return w
}

// close ends the world. It checks that the daemon ends without an error.
func (w *world) close() {
	log := w.Daemon()
	if err := w.Lab.Close(); err != nil {
		w.t.Error(err)
	}
	said := log.Log()
	if strings.Contains(said, "internal error") || strings.Contains(said, "DATA RACE") || strings.Contains(said, "panic") {
		w.t.Errorf("the daemon failed inside")
	}
	if w.t.Failed() {
		w.t.Logf("blkbackd said:\n%s", said)
		w.t.Logf("the embedded Xen said:\n%s", w.Xen().Log())
	}
}

// in returns the world for a subtest, whose failures are the subtest's.
func (w *world) in(t *testing.T) *world {
	c := *w
	c.t = t
	return &c
}

// in returns the guest for a subtest.
func (g *guest) in(t *testing.T) *guest {
	c := *g
	c.w = g.w.in(t)
	return &c
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// image makes a sparse file for a disk.
func (w *world) image() string {
	w.t.Helper()
	*w.images++
	path := filepath.Join(w.dir, fmt.Sprintf("disk%d.img", *w.images))
	f, err := os.Create(path)
	w.must(err)
	w.must(f.Truncate(sectors * 512))
	w.must(f.Close())
	return path
}

// guest is a guest with one disk, xvda.
type guest struct {
	*blklab.Guest
	w     *world
	image string
	info  blkguest.Info
}

// guest makes a guest with a disk and connects it. Settings of the toolstack and of the
// frontend can be changed before.
func (w *world) guest(front blkfront.Config, change ...func(*toolstack.Vbd)) *guest {
	w.t.Helper()
	v := toolstack.Vbd{Devid: xvda, Target: w.image(), Script: blklab.Script}
	for _, f := range change {
		f(&v)
	}
	*w.guests++
	g, err := w.StartGuest(w.ctx, fmt.Sprintf("guest%d", *w.guests), simclient.DomainConfig{}, v)
	w.must(err)
	t := &guest{Guest: g, w: w, image: v.Target}
	front.Strict = true
	t.info, err = g.Attach(w.ctx, blkguest.DiskConfig{Seed: uint64(*w.guests), Front: front})
	w.must(err)
	return t
}

// run runs a load to its end.
func (g *guest) run(l diskcheck.Load) diskcheck.Result {
	g.w.t.Helper()
	res, err := g.Run(g.w.ctx, blkguest.LoadArgs{Load: l})
	g.w.must(err)
	return res
}

// running starts a load without an end, and returns the function that ends it once all its
// requests are answered.
func (g *guest) running(l diskcheck.Load) (stop func() diskcheck.Result) {
	type outcome struct {
		res diskcheck.Result
		err error
	}
	ended := make(chan outcome, 1)
	go func() {
		res, err := g.Run(g.w.ctx, blkguest.LoadArgs{Load: l})
		ended <- outcome{res, err}
	}()
	return func() diskcheck.Result {
		g.w.t.Helper()
		g.w.must(g.Stop(g.w.ctx, ""))
		o := <-ended
		g.w.must(o.err)
		return o.res
	}
}

// innocent checks the whole disk and that the backend broke no rule.
func (g *guest) innocent() {
	g.w.t.Helper()
	g.w.must(g.Scan(g.w.ctx, ""))
	s, err := g.Stats(g.w.ctx, "")
	g.w.must(err)
	for _, v := range s.Violations {
		g.w.t.Errorf("%s accuses the backend: %s", g.Name, v)
	}
}

// status asks the daemon for the disk.
func (g *guest) status() vbd.Status {
	g.w.t.Helper()
	s, err := g.w.Vbd(g.w.ctx, g.ID(xvda))
	g.w.must(err)
	return s
}

// wait waits until the daemon's status of the disk satisfies a condition.
func (g *guest) wait(what string, ok func(*vbd.Status) bool) vbd.Status {
	g.w.t.Helper()
	after := uint64(0)
	for {
		s, err := g.w.Client().Vbd(g.w.ctx, g.ID(xvda).String(), after)
		if err != nil {
			g.w.t.Fatalf("waiting for %s: %v", what, err)
		}
		if ok(&s) {
			return s
		}
		after = s.Revision
	}
}

// read reads a node of the backend's directory; "" if it is missing.
func (g *guest) read(key string) string {
	v, _ := g.w.Store().Read(g.w.ctx, g.BackPath(xvda)+"/"+key)
	return v
}

// waitCounter waits until a counter of the disk has grown by n.
func (g *guest) waitCounter(name string, n uint64) {
	g.w.t.Helper()
	from := g.status().Counters[name]
	for g.status().Counters[name] < from+n {
		select {
		case <-time.After(time.Millisecond):
		case <-g.w.ctx.Done():
			g.w.t.Fatalf("%s does not grow", name)
		}
	}
}
