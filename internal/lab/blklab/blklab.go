// SPDX-License-Identifier: Apache-2.0

// Package blklab sets up a host for disks on a machine without Xen, for tests and the demo:
// an embedded Xen, blkbackd and guests, each a process of its own, and a toolstack in the
// process of the caller.
package blklab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"

	"github.com/netbackd/netbackd/internal/blkcontrol"
	"github.com/netbackd/netbackd/internal/lab"
	"github.com/netbackd/netbackd/internal/lab/blkguest"
	"github.com/netbackd/netbackd/internal/lab/xensim/simclient"
	"github.com/netbackd/netbackd/internal/lab/xensim/toolstack"
	"github.com/netbackd/netbackd/internal/vbd"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// Script is the hotplug script of the vbds that blkbackd serves.
const Script = "block-blkbackd"

// Options are the settings of a lab.
type Options struct {
	// Exe is the program blkbackd-lab, which all processes of the lab run.
	Exe string
	// Dir is an empty directory for sockets and journals. Its path is short enough for a
	// socket's name.
	Dir string
	// Daemon are more arguments for `blkbackd run`.
	Daemon []string
	// Env is added to the environment of the daemon.
	Env []string
	// Launch starts the daemon's process; nil means [netns.StartHere].
	Launch func(*exec.Cmd) error
	// Xen makes the directory of the embedded Xen for the daemon out of that of the others;
	// nil means that they have the same.
	Xen func(dir string) (string, error)
	// Hotplug plays the script of a vbd; nil means one like block-blkbackd.
	Hotplug toolstack.Script
}

// Lab is a host with an embedded Xen.
type Lab struct {
	*toolstack.Toolstack
	opts   Options
	xen    *lab.Process
	daemon *lab.Process
	conn   *simclient.Conn
	ctl    *blkcontrol.Client
	xenDir string // for the daemon
	deaths int    // of disk processes that were asked for; see KillAt

	mu     sync.Mutex
	guests []*Guest // guarded by mu
}

// New starts an embedded Xen and blkbackd, and waits until both are ready.
func New(ctx context.Context, opts Options) (_ *Lab, err error) {
	if opts.Hotplug == nil {
		opts.Hotplug = Hotplug
	}
	l := &Lab{opts: opts}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	if l.xen, err = lab.StartReady(ctx, "xen", opts.Exe, "ready", nil, "sim", "--dir", l.XenDir()); err != nil {
		return nil, err
	}
	if l.conn, err = simclient.Dial(l.XenDir(), 0); err != nil {
		return nil, err
	}
	if l.Toolstack, err = toolstack.New(l.conn, toolstack.Options{Block: opts.Hotplug}); err != nil {
		return nil, err
	}
	l.xenDir = l.XenDir()
	if opts.Xen != nil {
		if l.xenDir, err = opts.Xen(l.XenDir()); err != nil {
			return nil, err
		}
	}
	l.ctl = blkcontrol.NewClient(filepath.Join(l.RunDir(), "control.sock"))
	return l, l.StartDaemon(ctx)
}

// Hotplug does what the script block-blkbackd does for a vbd.
func Hotplug(ctx context.Context, c toolstack.Call) error {
	if c.Action != toolstack.Add {
		return nil
	}
	return c.Store.Write(ctx, c.Backend+"/hotplug-status", "connected")
}

// StartDaemon starts blkbackd, which must not be running. env is added to the environment.
func (l *Lab) StartDaemon(ctx context.Context, env ...string) error {
	return l.launch(ctx, "ready", env...)
}

// IsolateEnv is a variable of the environment that chooses which vbds share a disk process, in the
// words of blkbackd run --isolate, for all labs of a test.
const IsolateEnv = "BLKBACKD_LAB_ISOLATE"

// launch starts blkbackd and waits until its log contains text.
func (l *Lab) launch(ctx context.Context, text string, env ...string) error {
	args := []string{"run", "--xen", l.xenDir, "--run-dir", l.RunDir()}
	if mode := os.Getenv(IsolateEnv); mode != "" {
		args = append(args, "--isolate", mode)
	}
	args = append(args, l.opts.Daemon...)
	p, err := lab.LaunchReady(ctx, "blkbackd", l.opts.Exe, text, l.opts.Launch, append(env, l.opts.Env...), args...)
	if err != nil {
		return err
	}
	l.daemon = p
	return nil
}

// SetDaemonArgs changes the arguments for the next StartDaemon.
func (l *Lab) SetDaemonArgs(args ...string) { l.opts.Daemon = args }

// Daemon returns the blkbackd process, running or not; Xen that of the embedded Xen.
func (l *Lab) Daemon() *lab.Process { return l.daemon }

// Xen returns the process of the embedded Xen.
func (l *Lab) Xen() *lab.Process { return l.xen }

// Client returns a client of the daemon.
func (l *Lab) Client() *blkcontrol.Client { return l.ctl }

// Domain describes a domain as the hypervisor sees it.
func (l *Lab) Domain(domid xen.Domid) (simclient.DomainInfo, error) {
	return l.Control().Domain(domid)
}

// XenDir returns the directory of the embedded Xen's sockets.
func (l *Lab) XenDir() string { return filepath.Join(l.opts.Dir, "xen") }

// RunDir returns the directory of the daemon's socket and journals.
func (l *Lab) RunDir() string { return filepath.Join(l.opts.Dir, "run") }

// Vbd asks the daemon for one vbd.
func (l *Lab) Vbd(ctx context.Context, id xenbus.DeviceID) (vbd.Status, error) {
	return l.ctl.Vbd(ctx, id.String(), 0)
}

// Guest is a running guest.
type Guest struct {
	*blkguest.Client
	Name  string
	Domid xen.Domid
	lab   *Lab
}

// CreateGuest makes a running domain without devices.
func (l *Lab) CreateGuest(ctx context.Context, name string, cfg simclient.DomainConfig) (xen.Domid, error) {
	if cfg.GntallocLimit == 0 {
		// Rings and pages of four queues; a real guest raises the same limit.
		cfg.GntallocLimit = 16384
	}
	if cfg.Pages == 0 {
		cfg.Pages = 32768
	}
	domid, _, err := l.Create(ctx, toolstack.Config{Name: name, Domain: cfg})
	if err != nil {
		return 0, err
	}
	return domid, l.Unpause(domid)
}

// Boot starts an agent in a domain.
func (l *Lab) Boot(name string, domid xen.Domid) (*Guest, error) {
	c, err := blkguest.Start(blkguest.StartOptions{
		Exe:    l.opts.Exe,
		Config: blkguest.Config{Xen: l.XenDir(), Domid: domid},
		Env:    []string{lab.RaceEnv},
	})
	if err != nil {
		return nil, fmt.Errorf("guest %s: %w", name, err)
	}
	g := &Guest{Client: c, Name: name, Domid: domid, lab: l}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.guests = append(l.guests, g)
	return g, nil
}

// StartGuest makes a domain with disks and starts an agent in it, which connects to none of
// them yet.
func (l *Lab) StartGuest(ctx context.Context, name string, cfg simclient.DomainConfig, disks ...toolstack.Vbd) (*Guest, error) {
	domid, err := l.CreateGuest(ctx, name, cfg)
	if err != nil {
		return nil, err
	}
	for _, v := range disks {
		if v.Script == "" {
			v.Script = Script
		}
		if _, err := l.AttachVbd(ctx, domid, v); err != nil {
			return nil, err
		}
	}
	return l.Boot(name, domid)
}

// ID returns the id of a disk of the guest in class vbd.
func (g *Guest) ID(devid int) xenbus.DeviceID {
	return xenbus.DeviceID{Class: xenbus.VBD, Domid: g.Domid, Devid: devid}
}

// BackPath returns the backend's directory of a disk.
func (g *Guest) BackPath(devid int) string {
	return fmt.Sprintf("/local/domain/0/backend/vbd/%d/%d", g.Domid, devid)
}

// Close ends all parts. It returns an error for a part that ended abnormally.
func (l *Lab) Close() error {
	var errs []error
	l.mu.Lock()
	guests := l.guests
	l.mu.Unlock()
	for _, g := range guests {
		errs = append(errs, g.Client.Close())
	}
	if l.ctl != nil {
		l.ctl.Close()
	}
	if l.daemon != nil && !l.daemon.Ended() {
		errs = append(errs, l.daemon.Stop())
	}
	if l.Toolstack != nil {
		errs = append(errs, l.Toolstack.Close())
	}
	if l.conn != nil {
		errs = append(errs, l.conn.Close())
	}
	if l.xen != nil && !l.xen.Ended() {
		errs = append(errs, l.xen.Stop())
	}
	return errors.Join(errs...)
}

// Store returns dom0's connection to xenstore.
func (l *Lab) Store() *xenstore.Client { return l.Xenstore() }
