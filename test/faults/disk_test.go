// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/netbackd/netbackd/internal/lab"
	"github.com/netbackd/netbackd/internal/lab/blkfront"
	"github.com/netbackd/netbackd/internal/lab/blkguest"
	"github.com/netbackd/netbackd/internal/lab/blklab"
	"github.com/netbackd/netbackd/internal/lab/diskcheck"
	"github.com/netbackd/netbackd/internal/lab/systrace"
	"github.com/netbackd/netbackd/internal/lab/xensim/simclient"
	"github.com/netbackd/netbackd/internal/lab/xensim/toolstack"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

const (
	xvda = toolstack.XVDA
	// loadTime bounds a load. A request that gets no answer is a failure.
	loadTime = 3 * time.Second
)

// disks is a host with blkbackd and two guests, each with a disk.
type disks struct {
	*blklab.Lab
	dir   string
	other *blklab.Guest // whose disk stays
	guest *blklab.Guest // whose disk is attached and detached
	loads uint64
}

// newDisks makes a host whose daemon is traced by t, which may be nil. args are more arguments
// of the daemon.
func newDisks(ctx context.Context, t *systrace.Tracer, args ...string) (_ subject, err error) {
	dir, err := os.MkdirTemp("", "nbd")
	if err != nil {
		return nil, err
	}
	d := &disks{dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}()
	opts := blklab.Options{Exe: blkExe, Dir: dir, Daemon: append([]string{"--max-queues=2"}, args...)}
	if t != nil {
		opts.Launch = t.Launch
	}
	if d.Lab, err = blklab.New(ctx, opts); err != nil {
		return nil, err
	}
	v, err := d.vbd("g0")
	if err != nil {
		return nil, err
	}
	if d.other, err = d.StartGuest(ctx, "g0", simclient.DomainConfig{}, v); err != nil {
		return nil, err
	}
	// The grants that it would keep mapped are not those of the books.
	front := diskFront()
	front.Front.Persistent = false
	if _, err := d.other.Attach(ctx, front); err != nil {
		return nil, err
	}
	d.guest, err = d.StartGuest(ctx, "g1", simclient.DomainConfig{})
	return d, err
}

// vbd returns a disk with a new image, as the model of a new front end expects. An image that
// was attached before is removed.
func (d *disks) vbd(name string) (toolstack.Vbd, error) {
	image := filepath.Join(d.dir, name+".img")
	if err := os.Remove(image); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return toolstack.Vbd{}, err
	}
	err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 4<<20))
	return toolstack.Vbd{Devid: xvda, Target: image, Script: blklab.Script}, err
}

func diskFront() blkguest.DiskConfig {
	return blkguest.DiskConfig{Seed: 1, Front: blkfront.Config{Queues: 2, Indirect: 32, Persistent: true, Strict: true}}
}

func (d *disks) perform(ctx context.Context, p phase) error {
	switch p {
	case connecting:
		v, err := d.vbd("g1")
		if err != nil {
			return err
		}
		if _, err := d.AttachVbd(ctx, d.guest.Domid, v); err != nil {
			return err
		}
		return d.front(ctx)
	case inTraffic:
		return d.load(ctx, d.guest, 60)
	case detaching:
		_, err := d.DetachVbd(ctx, d.guest.Domid, xvda)
		if _, none := d.guest.Info(ctx, ""); none == nil {
			err = errors.Join(err, d.guest.Detach(ctx, ""))
		}
		return err
	default:
		d.Daemon().Kill()
		return d.StartDaemon(ctx)
	}
}

// front connects the guest's disk if it is not connected.
func (d *disks) front(ctx context.Context) error {
	info, err := d.guest.Info(ctx, "")
	switch {
	case err != nil:
		_, err = d.guest.Attach(ctx, diskFront())
	case info.State == xenbus.Connected && info.Backend == xenbus.Connected:
		return nil
	default:
		_, err = d.guest.Reconnect(ctx, blkguest.ConnectArgs{})
	}
	return err
}

// load has requests of all kinds served on each queue, and checks what they read.
func (d *disks) load(ctx context.Context, g *blklab.Guest, requests int) error {
	limited, cancel := context.WithTimeout(ctx, loadTime)
	defer cancel()
	info, err := g.Info(limited, "")
	if err != nil {
		return err
	}
	d.loads++
	l := diskcheck.Load{
		Requests: requests, Depth: 4, MinSegments: 1, MaxSegments: 24, Reads: 40, Flushes: 10, Barriers: 5, Discards: 5, Seed: d.loads,
	}
	if !info.Offers.Discard { // the image could not be asked for it
		l.Discards = 0
	}
	r, err := g.Run(limited, blkguest.LoadArgs{Load: l})
	switch {
	case err != nil:
		return fmt.Errorf("load of %s: %w", g.Name, err)
	case r.Errors > 0 || r.Unanswered > 0:
		return fmt.Errorf("load of %s: %d requests failed, %d have no answer", g.Name, r.Errors, r.Unanswered)
	}
	return nil
}

func (d *disks) serves(ctx context.Context) error {
	return until(ctx, "guest", func() error {
		if err := d.front(ctx); err != nil {
			return err
		}
		return d.load(ctx, d.guest, 4)
	})
}

func (d *disks) bystander(ctx context.Context) error {
	return until(ctx, "bystander", func() error {
		if _, err := d.other.Info(ctx, ""); err != nil {
			return err
		}
		return d.load(ctx, d.other, 4)
	})
}

func (d *disks) told(ctx context.Context) string {
	s, err := d.Vbd(ctx, d.guest.ID(xvda))
	if err != nil {
		return ""
	}
	switch {
	case s.Error != "":
		return "error: " + s.Error
	case s.Quarantine != "":
		return "quarantine: " + s.Quarantine
	case s.Waits != "":
		return "waits: " + s.Waits
	}
	return ""
}

func (d *disks) mend(ctx context.Context) error {
	return d.Client().Reset(ctx, d.guest.ID(xvda).String())
}

func (d *disks) gone(ctx context.Context) error {
	return until(ctx, "after the detach", func() error {
		if _, err := d.Vbd(ctx, d.guest.ID(xvda)); err == nil {
			return errors.New("the daemon has the vbd")
		}
		if found, _ := filepath.Glob(filepath.Join(d.RunDir(), fmt.Sprintf("*-%d-*", d.guest.Domid))); len(found) > 0 {
			return fmt.Errorf("files are left: %v", found)
		}
		if s, err := d.Store().Read(ctx, d.guest.BackPath(xvda)+"/state"); err == nil {
			return fmt.Errorf("the back end's directory is left, in state %s", s)
		}
		return nil
	})
}

func (d *disks) daemon() *lab.Process { return d.Daemon() }

func (d *disks) restart(ctx context.Context) error { return d.StartDaemon(ctx) }

func (d *disks) books(context.Context) (books, error) {
	b, err := processBooks(d.Daemon().PID(), d.RunDir())
	if err != nil {
		return b, err
	}
	info, err := d.Domain(xen.Dom0)
	b.hypervisor(info)
	return b, err
}

func (d *disks) close() error {
	var err error
	if d.Lab != nil {
		err = d.Lab.Close()
	}
	return errors.Join(err, os.RemoveAll(d.dir))
}
