// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink"

	"github.com/netbackd/netbackd/internal/lab"
	"github.com/netbackd/netbackd/internal/lab/guest"
	"github.com/netbackd/netbackd/internal/lab/systrace"
	"github.com/netbackd/netbackd/internal/lab/traffic"
	"github.com/netbackd/netbackd/internal/lab/vhostfront"
	"github.com/netbackd/netbackd/internal/vhostnet"
)

// virtDevice is a device of vhost-user and its guest.
type virtDevice struct {
	*lab.Vhost
	guest *lab.VirtGuest
}

// vhosts is a host with two devices of vhost-user, each a process, and their guests. The
// daemon of its vifs has none.
type vhosts struct {
	*lab.Lab
	dir    string
	server *traffic.TCPServer
	stop   func()
	other  virtDevice // not traced
	dev    virtDevice
}

// newVhosts makes a host. The process of the device is traced by t, which may be nil.
func newVhosts(ctx context.Context, t *systrace.Tracer, args ...string) (_ subject, err error) {
	dir, err := os.MkdirTemp("", "nbv")
	if err != nil {
		return nil, err
	}
	v := &vhosts{dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, v.close())
		}
	}()
	if v.Lab, err = lab.New(ctx, lab.Options{Exe: netExe, Dir: dir, Daemon: []string{"--workers=1"}}); err != nil {
		return nil, err
	}
	if err := v.Bridge(bridge, hostIP+"/24"); err != nil {
		return nil, err
	}
	if v.server, err = traffic.ListenTCP(tcpPort); err != nil {
		return nil, err
	}
	serving, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- v.server.Serve(serving) }()
	v.stop = func() { stop(); <-done }
	if v.other, err = v.device(ctx, 0); err != nil {
		return nil, err
	}
	if t != nil {
		v.SetLaunch(t.Launch)
	}
	v.dev, err = v.device(ctx, 1, args...)
	return v, err
}

// device starts device i and its guest.
func (v *vhosts) device(ctx context.Context, i int, args ...string) (d virtDevice, err error) {
	args = append([]string{"--bridge", bridge, "--queues", "2"}, args...)
	if d.Vhost, err = v.StartVhost(ctx, fmt.Sprintf("tap%d", i), args...); err != nil {
		return d, err
	}
	d.guest, err = v.StartVirt(ctx, fmt.Sprintf("v%d", i), guest.VirtConfig{
		MAC: fmt.Sprintf("00:16:3e:00:00:%02x", 1+i), Addrs: []string{fmt.Sprintf("10.98.0.%d/24", 10+i)},
		Front: vhostfront.Config{Socket: d.Socket, Pairs: 2, Strict: true, Inflight: true},
	})
	return d, err
}

func (v *vhosts) perform(ctx context.Context, p phase) error {
	switch p {
	case connecting:
		return v.front(ctx)
	case inTraffic:
		const n = 256 << 10
		r, err := v.dev.guest.TCPSend(ctx, guest.TCPSendArgs{Addr: hostIP + tcpPort, TCPSend: traffic.TCPSend{Bytes: n, Seed: 7}})
		if err == nil && (r.Bytes != n || r.Wrong != 0) {
			err = fmt.Errorf("stream of %d bytes: %+v", n, r)
		}
		return errors.Join(err, ping(ctx, v.dev.guest.Guest, 3))
	case detaching:
		info, err := v.dev.guest.Client.VirtInfo(ctx, "")
		if err != nil || !info.Connected {
			return err
		}
		_, err = v.dev.guest.Client.Virt(ctx, guest.VirtArgs{Op: "disconnect"})
		return err
	default:
		v.dev.Kill()
		return v.dev.Restart(ctx)
	}
}

// front connects the guest's device if it is not connected.
func (v *vhosts) front(ctx context.Context) error {
	info, err := v.dev.guest.Client.VirtInfo(ctx, "")
	if err != nil || info.Connected {
		return err
	}
	_, err = v.dev.guest.Client.Virt(ctx, guest.VirtArgs{Op: "reconnect"})
	return err
}

func (v *vhosts) serves(ctx context.Context) error {
	return until(ctx, "guest", func() error {
		if err := v.front(ctx); err != nil {
			return err
		}
		return ping(ctx, v.dev.guest.Guest, 3)
	})
}

func (v *vhosts) bystander(ctx context.Context) error {
	return until(ctx, "bystander", func() error { return ping(ctx, v.other.guest.Guest, 3) })
}

func (v *vhosts) told(ctx context.Context) string {
	s, err := v.dev.Status(ctx)
	switch {
	case err != nil:
		return ""
	case s.Error != "":
		return "error: " + s.Error
	case s.Waits != "":
		return "waits: " + s.Waits
	}
	return ""
}

func (v *vhosts) mend(ctx context.Context) error { return v.dev.Reset(ctx) }

func (v *vhosts) gone(ctx context.Context) error {
	return until(ctx, "after the disconnection", func() error {
		s, err := v.dev.Status(ctx)
		if err == nil && (s.State == vhostnet.Connected || len(s.Memory) > 0) {
			err = fmt.Errorf("the device is %v, with memory %v", s.State, s.Memory)
		}
		return err
	})
}

func (v *vhosts) daemon() *lab.Process { return v.dev.Process }

func (v *vhosts) restart(ctx context.Context) error { return v.dev.Restart(ctx) }

func (v *vhosts) books(context.Context) (books, error) {
	return processBooks(v.dev.PID(), v.RunDir())
}

func (v *vhosts) close() error {
	if v.stop != nil {
		v.stop()
	}
	var err error
	if v.Lab != nil {
		err = v.Lab.Close()
	}
	links, _ := netlink.LinkList()
	for _, l := range links {
		if t := l.Type(); t == "tuntap" || t == "tun" || t == "bridge" {
			_ = netlink.LinkDel(l)
		}
	}
	return errors.Join(err, os.RemoveAll(v.dir))
}
