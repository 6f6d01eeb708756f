// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/internal/lab/xensim/simclient"
	"github.com/netbackd/netbackd/internal/netcontrol"
	"github.com/netbackd/netbackd/internal/vif"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// Options are the settings of a lab.
type Options struct {
	// Exe is the program netbackd-lab, which all processes of the lab run.
	Exe string
	// Dir is an empty directory for sockets and journals. Its path is short
	// enough for a socket's name.
	Dir string
	// Daemon are more arguments for `netbackd run`.
	Daemon []string
	// Launch starts the daemon's process; nil means [netns.StartHere].
	Launch func(*exec.Cmd) error
}

// Lab is a host with an embedded Xen. The process that makes it must be in a network
// namespace of its own (netns.Enter), which the lab changes freely.
type Lab struct {
	opts   Options
	xen    *Process
	daemon *Process
	conn   *simclient.Conn
	xl     *xl
	ctl    *netcontrol.Client
	guests []*Guest
	vhosts []*Vhost
}

// New starts an embedded Xen and netbackd, and waits until both are ready.
func New(ctx context.Context, opts Options) (_ *Lab, err error) {
	l := &Lab{opts: opts}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	if err := netns.Up("lo"); err != nil {
		return nil, err
	}
	if l.xen, err = l.launch(ctx, "xen", "ready", "sim", "--dir", l.XenDir()); err != nil {
		return nil, err
	}
	if l.conn, err = simclient.Dial(l.XenDir(), 0); err != nil {
		return nil, err
	}
	if l.xl, err = newXL(l.conn); err != nil {
		return nil, err
	}
	l.ctl = netcontrol.NewClient(filepath.Join(l.RunDir(), "control.sock"))
	return l, l.StartDaemon(ctx)
}

// SetLaunch changes how processes of back ends are started from now on, as Options.Launch.
func (l *Lab) SetLaunch(launch func(*exec.Cmd) error) { l.opts.Launch = launch }

// launch starts a part of the host and waits until its log contains ready.
func (l *Lab) launch(ctx context.Context, name, ready string, args ...string) (*Process, error) {
	p, err := start(name, l.opts.Exe, args, netns.StartHere)
	if err != nil {
		return nil, err
	}
	return await(ctx, p, ready)
}

// await waits until the log of a part contains ready.
func await(ctx context.Context, p *Process, ready string) (*Process, error) {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	if err := p.WaitLog(ctx, ready); err != nil {
		p.Kill()
		return nil, err
	}
	return p, nil
}

// StartDaemon starts netbackd, which must not be running.
func (l *Lab) StartDaemon(ctx context.Context) error {
	p, err := start("netbackd", l.opts.Exe, l.daemonArgs(), l.launcher())
	if err != nil {
		return err
	}
	l.daemon, err = await(ctx, p, "ready")
	return err
}

// launcher returns the function that starts the daemon's process.
func (l *Lab) launcher() func(*exec.Cmd) error {
	if l.opts.Launch != nil {
		return l.opts.Launch
	}
	return netns.StartHere
}

func (l *Lab) daemonArgs() []string {
	args := []string{"run", "--xen", l.XenDir(), "--run-dir", l.RunDir()}
	if mode := os.Getenv(isolateEnv); mode != "" {
		args = append(args, "--isolate", mode)
	}
	return append(args, l.opts.Daemon...)
}

// isolateEnv is a variable of the environment that chooses which vifs share a packet process, in
// the words of netbackd run --isolate, for all labs of a test.
const isolateEnv = "NETBACKD_LAB_ISOLATE"

// StartService starts netbackd as a service manager does: with further environment
// variables, and with open files, which become its descriptors from 3 on.
func (l *Lab) StartService(ctx context.Context, env []string, files []*os.File) error {
	if err := l.LaunchService(env, files, false); err != nil {
		return err
	}
	return l.AwaitDaemon(ctx)
}

// LaunchService is like StartService, and does not wait until the daemon is ready. With halted
// the process stops itself before it executes netbackd; SIGCONT lets it go on.
func (l *Lab) LaunchService(env []string, files []*os.File, halted bool) (err error) {
	// LISTEN_PID is the process's id, which is known only after the fork.
	script := `LISTEN_PID=$$ exec "$0" "$@"`
	if halted {
		script = `kill -STOP $$; ` + script
	}
	args := append([]string{"-c", script, l.opts.Exe}, l.daemonArgs()...)
	l.daemon, err = start("netbackd", "/bin/sh", args, func(cmd *exec.Cmd) error {
		cmd.Env = append(cmd.Env, env...)
		cmd.ExtraFiles = files
		return netns.StartHere(cmd)
	})
	return err
}

// AwaitDaemon waits until the daemon is ready.
func (l *Lab) AwaitDaemon(ctx context.Context) error {
	_, err := await(ctx, l.daemon, "ready")
	return err
}

// Use makes the daemons that are started from now on those of another program.
func (l *Lab) Use(exe string) { l.opts.Exe = exe }

// Daemon returns the netbackd process, running or not.
func (l *Lab) Daemon() *Process { return l.daemon }

// Xen returns the embedded Xen's process.
func (l *Lab) Xen() *Process { return l.xen }

// Domain describes a domain as the hypervisor sees it.
func (l *Lab) Domain(domid xen.Domid) (simclient.DomainInfo, error) {
	return l.xl.Control().Domain(domid)
}

// Hypervisor returns the toolstack's access to the hypervisor.
func (l *Lab) Hypervisor() *simclient.Control { return l.xl.Control() }

// Store returns dom0's connection to xenstore.
func (l *Lab) Store() *xenstore.Client { return l.xl.Xenstore() }

// Control returns a client of the daemon.
func (l *Lab) Control() *netcontrol.Client { return l.ctl }

// Bridge makes a bridge with an address for the host.
func (l *Lab) Bridge(name string, cidrs ...string) error {
	if _, err := netns.AddBridge(name); err != nil {
		return err
	}
	for _, c := range cidrs {
		if err := netns.AddAddr(name, c); err != nil {
			return err
		}
	}
	return nil
}

// Join makes the calling process part of a domain, so that it can run a frontend of its
// own.
func (l *Lab) Join(domid xen.Domid) (*simclient.Conn, error) {
	return simclient.Dial(l.XenDir(), domid)
}

// Vif asks the daemon for one vif.
func (l *Lab) Vif(ctx context.Context, name string) (*vif.Status, error) {
	vifs, err := l.ctl.Vifs(ctx)
	if err != nil {
		return nil, err
	}
	for i := range vifs {
		if vifs[i].Name == name {
			return &vifs[i], nil
		}
	}
	return nil, fmt.Errorf("the daemon has no %s", name)
}

// Close ends all parts. It returns an error for a part that ended abnormally.
func (l *Lab) Close() error {
	var errs []error
	for _, g := range l.guests {
		errs = append(errs, g.Stop())
	}
	for _, d := range l.vhosts {
		errs = append(errs, d.end())
	}
	if l.ctl != nil {
		l.ctl.Close()
	}
	if l.daemon != nil && !l.daemon.Ended() {
		errs = append(errs, l.daemon.Stop())
	}
	if l.xl != nil {
		errs = append(errs, l.xl.close())
	}
	if l.conn != nil {
		errs = append(errs, l.conn.Close())
	}
	if l.xen != nil && !l.xen.Ended() {
		errs = append(errs, l.xen.Stop())
	}
	return errors.Join(errs...)
}

// XenDir returns the directory of the embedded Xen's sockets.
func (l *Lab) XenDir() string { return filepath.Join(l.opts.Dir, "xen") }

// RunDir returns the directory of the daemon's socket and journals.
func (l *Lab) RunDir() string { return filepath.Join(l.opts.Dir, "run") }
