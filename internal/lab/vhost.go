// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"path/filepath"

	"github.com/netbackd/netbackd/internal/lab/guest"
	"github.com/netbackd/netbackd/internal/netcontrol"
	"github.com/netbackd/netbackd/internal/vhostnet"
)

// Vhost is a vhost-user device of the host: a process `netbackd vhost-user`.
type Vhost struct {
	*Process
	Name   string
	Socket string // of vhost-user
	lab    *Lab
	args   []string
	ctl    *netcontrol.Client
}

// StartVhost starts a device on a socket of its own in the lab's directory. args are more
// arguments, which say at least which TAP or bridge.
func (l *Lab) StartVhost(ctx context.Context, name string, args ...string) (*Vhost, error) {
	d := &Vhost{Name: name, Socket: filepath.Join(l.opts.Dir, name+".sock"), lab: l}
	d.args = append([]string{"vhost-user", "--run-dir", l.RunDir(), "--name", name, "--socket-path", d.Socket}, args...)
	d.ctl = netcontrol.NewClient(netcontrol.DeviceSocket(l.RunDir(), name))
	l.vhosts = append(l.vhosts, d)
	return d, d.Restart(ctx)
}

// Restart starts the process again, which must have ended.
func (d *Vhost) Restart(ctx context.Context) (err error) {
	d.Process, err = LaunchReady(ctx, d.Name, d.lab.opts.Exe, "ready", d.lab.opts.Launch, nil, d.args...)
	return err
}

// Status asks the process for the status of the device.
func (d *Vhost) Status(ctx context.Context) (vhostnet.Status, error) { return d.ctl.Device(ctx) }

// Reset has the process close the connection of its front end.
func (d *Vhost) Reset(ctx context.Context) error { return d.ctl.ResetDevice(ctx) }

// end ends the process if it runs.
func (d *Vhost) end() error {
	d.ctl.Close()
	if d.Process == nil || d.Ended() {
		return nil
	}
	return d.Stop()
}

// VirtGuest is a running guest with a virtio network device.
type VirtGuest struct {
	*Guest
	Virt guest.VirtInfo
}

// StartVirt starts a guest whose network card is a virtio device, and waits until it is
// connected.
func (l *Lab) StartVirt(ctx context.Context, name string, cfg guest.VirtConfig) (*VirtGuest, error) {
	c, err := guest.Start(guest.StartOptions{Exe: l.opts.Exe, Config: guest.Config{NoXen: true}, Env: []string{raceEnv}})
	if err != nil {
		return nil, err
	}
	g := &VirtGuest{Guest: &Guest{Client: c, Name: name}}
	l.guests = append(l.guests, g.Guest)
	if g.Virt, err = c.VirtAttach(ctx, cfg); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return g, nil
}
