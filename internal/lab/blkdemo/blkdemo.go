// SPDX-License-Identifier: Apache-2.0

// Package blkdemo shows blkbackd at work on a machine without Xen: an embedded Xen, blkbackd
// and a guest whose disk is a file here. The guest writes, the daemon is killed in the
// middle, and every byte is checked.
//
// It contains the steps of the demonstration. Package blklab sets up the host.
package blkdemo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/netbackd/netbackd/internal/lab/blkfront"
	"github.com/netbackd/netbackd/internal/lab/blkguest"
	"github.com/netbackd/netbackd/internal/lab/blklab"
	"github.com/netbackd/netbackd/internal/lab/diskcheck"
	"github.com/netbackd/netbackd/internal/lab/xensim/simclient"
	"github.com/netbackd/netbackd/internal/lab/xensim/toolstack"
	"github.com/netbackd/netbackd/internal/vbd"
)

// Options are the settings of the demo.
type Options struct {
	Exe string    // the program blkbackd-lab
	Out io.Writer // for the texts of the demo
	Dir string    // for the disk; empty: a temporary directory
	// Stretch is the duration of each measurement.
	Stretch time.Duration
	// Daemon are more arguments for `blkbackd run`.
	Daemon []string
}

const (
	diskMiB = 96
	queues  = 2
	kills   = 3
)

// show is one run of the demo.
type show struct {
	Options
	lab   *blklab.Lab
	guest *blklab.Guest
	begin time.Time
	costs []cost
}

// Run runs the demo and cleans up.
func Run(ctx context.Context, opts Options) (err error) {
	dir, err := os.MkdirTemp("", "blkbackd-demo-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if opts.Dir == "" {
		opts.Dir = dir
	}
	s := &show{Options: opts, begin: time.Now()}
	defer func() {
		if s.lab != nil {
			err = errors.Join(err, s.lab.Close())
		}
	}()
	image, err := s.image()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(image)) }()
	s.say("A host with an embedded Xen and blkbackd, and a guest whose disk is a sparse file of\n%d MiB. Each sector has its number and the number of its write.\n", diskMiB)
	for _, f := range []func(context.Context) error{
		func(ctx context.Context) error { return s.setUp(ctx, dir, image) },
		s.fill, s.kill, s.verify, s.measure,
	} {
		if err := f(ctx); err != nil {
			return err
		}
	}
	s.report()
	s.say("\nNothing was lost. %v in all.", time.Since(s.begin).Round(100*time.Millisecond))
	return nil
}

func (s *show) say(format string, v ...any) { fmt.Fprintf(s.Out, format+"\n", v...) }

// step prints what is done, runs f and prints its result.
func (s *show) step(what string, f func() (string, error)) error {
	fmt.Fprintf(s.Out, "  %-28s ", what)
	came, err := f()
	if err != nil {
		fmt.Fprintln(s.Out, "FAILED")
		return fmt.Errorf("%s: %w", what, err)
	}
	fmt.Fprintln(s.Out, came)
	return nil
}

// image makes the file of the disk.
func (s *show) image() (path string, err error) {
	f, err := os.CreateTemp(s.Dir, "demo-*.img")
	if err != nil {
		return "", err
	}
	return f.Name(), errors.Join(f.Truncate(diskMiB<<20), f.Close())
}

func (s *show) setUp(ctx context.Context, dir, image string) error {
	err := s.step("embedded Xen and blkbackd", func() (string, error) {
		begin := time.Now()
		l, err := blklab.New(ctx, blklab.Options{Exe: s.Exe, Dir: dir, Daemon: append([]string{fmt.Sprintf("--max-queues=%d", queues)}, s.Daemon...)})
		s.lab = l
		if err != nil {
			return "", err
		}
		d, err := l.Client().Daemon(ctx)
		return fmt.Sprintf("ready in %v, io_uring %s, up to %d segments a request", time.Since(begin).Round(time.Millisecond), d.Uring, d.MaxSegments), err
	})
	if err != nil {
		return err
	}
	return s.step("guest db", func() (string, error) {
		begin := time.Now()
		g, err := s.lab.StartGuest(ctx, "db", simclient.DomainConfig{}, toolstack.Vbd{Devid: toolstack.XVDA, Target: image})
		if err != nil {
			return "", err
		}
		s.guest = g
		i, err := g.Attach(ctx, blkguest.DiskConfig{Front: front(256, false)})
		return fmt.Sprintf("domain %d, %s connected in %v: %d queues of %d slots, %s", g.Domid, filepath.Base(image),
			time.Since(begin).Round(time.Millisecond), i.Queues, i.Slots, offers(i.Offers)), err
	})
}

// front returns the configuration of the guest's frontend.
func front(segments int, persistent bool) blkfront.Config {
	return blkfront.Config{Queues: queues, Order: 2, Indirect: segments, Pages: 1024, Persistent: persistent}
}

func offers(o blkfront.Offers) string {
	text := fmt.Sprintf("%d MiB", o.Sectors>>11)
	for _, k := range []struct {
		name string
		on   bool
	}{{"flush", o.Flush}, {"barrier", o.Barrier}, {"discard", o.Discard}} {
		if k.on {
			text += " " + k.name
		}
	}
	return text
}

// load runs a load on all queues of the guest.
func (s *show) load(ctx context.Context, l diskcheck.Load) (diskcheck.Result, error) {
	return s.guest.Run(ctx, blkguest.LoadArgs{Load: l})
}

func (s *show) fill(ctx context.Context) error {
	s.say("")
	large := diskcheck.Load{Once: true, Depth: 4, MinSegments: 256}
	err := s.step("write all of the disk", func() (string, error) {
		r, err := s.load(ctx, large)
		return fmt.Sprintf("%5.0f MiB/s, %d requests of 1 MiB", r.MiB(), r.Requests), err
	})
	if err != nil {
		return err
	}
	large.Reads = 100
	return s.step("read it back", func() (string, error) {
		r, err := s.load(ctx, large)
		return fmt.Sprintf("%5.0f MiB/s, every byte checked", r.MiB()), err
	})
}

// kill kills the daemon under a load of writes and flushes.
func (s *show) kill(ctx context.Context) error {
	type outcome struct {
		res diskcheck.Result
		err error
	}
	ended := make(chan outcome, 1)
	go func() {
		r, err := s.load(ctx, diskcheck.Load{Depth: 16, MaxSegments: 32, Reads: 30, Flushes: 5, Discards: 2, Parts: true})
		ended <- outcome{r, err}
	}()
	again := uint64(0) // requests started again so far
	for range kills {
		err := s.step("kill -9 while it writes", func() (string, error) {
			if err := s.awaitWrites(ctx, 200); err != nil {
				return "", err
			}
			s.lab.Daemon().Kill()
			begin := time.Now()
			if err := s.lab.StartDaemon(ctx); err != nil {
				return "", err
			}
			d, err := s.awaitServed(ctx)
			n := d.Counters["readopted"]
			if n >= again { // counts since the last writing are lost with a daemon
				n -= again
			}
			again = d.Counters["readopted"]
			return fmt.Sprintf("served again after %v, %d requests started again", time.Since(begin).Round(time.Millisecond), n), err
		})
		if err != nil {
			return err
		}
	}
	return s.step("the guest", func() (string, error) {
		if err := s.guest.Stop(ctx, ""); err != nil {
			return "", err
		}
		o := <-ended
		return fmt.Sprintf("noticed a pause of %v; %d requests, none failed", o.res.Stats.Slowest.Round(time.Millisecond), o.res.Requests), o.err
	})
}

func (s *show) status(ctx context.Context) (vbd.Status, error) {
	return s.lab.Vbd(ctx, s.guest.ID(toolstack.XVDA))
}

// awaitWrites waits until the daemon has served n more writes.
func (s *show) awaitWrites(ctx context.Context, n uint64) error {
	v, err := s.status(ctx)
	for from := v.Counters["writes"]; err == nil && v.Counters["writes"] < from+n; v, err = s.status(ctx) {
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return err
}

// awaitServed waits until the daemon serves the disk.
func (s *show) awaitServed(ctx context.Context) (v vbd.Status, err error) {
	for {
		v, err = s.lab.Client().Vbd(ctx, s.guest.ID(toolstack.XVDA).String(), v.Revision)
		if err != nil || v.Waits == "" && v.Connection != nil {
			return v, err
		}
	}
}

// verify reads the whole disk.
func (s *show) verify(ctx context.Context) error {
	return s.step("verify all sectors", func() (string, error) {
		begin := time.Now()
		if err := s.guest.Scan(ctx, ""); err != nil {
			return "", err
		}
		st, err := s.guest.Stats(ctx, "")
		if err == nil && len(st.Violations) > 0 {
			err = fmt.Errorf("the guest accuses the backend: %v", st.Violations)
		}
		return fmt.Sprintf("%d sectors are right, %v; no answer broke a rule", diskMiB<<11, time.Since(begin).Round(time.Millisecond)), err
	})
}
