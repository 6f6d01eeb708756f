// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/netbackd/netbackd/internal/lab"
	"github.com/netbackd/netbackd/internal/lab/guest"
	"github.com/netbackd/netbackd/internal/lab/netfront"
	"github.com/netbackd/netbackd/internal/lab/systrace"
	"github.com/netbackd/netbackd/internal/lab/traffic"
	"github.com/netbackd/netbackd/internal/vif"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

const (
	bridge  = "xenbr0"
	hostIP  = "10.98.0.1"
	tcpPort = ":5001"
)

// vifs is a host with netbackd and two guests.
type vifs struct {
	*lab.Lab
	dir    string
	server *traffic.TCPServer
	stop   func()
	other  *lab.Guest // whose vif stays
	guest  *lab.Guest // whose vif is attached and detached
}

// newVifs makes a host whose daemon is traced by t, which may be nil. args are more
// arguments of the daemon.
func newVifs(ctx context.Context, t *systrace.Tracer, args ...string) (_ subject, err error) {
	dir, err := os.MkdirTemp("", "nbf")
	if err != nil {
		return nil, err
	}
	v := &vifs{dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, v.close())
		}
	}()
	args = append(args, strings.Fields(os.Getenv("FAULTS_DAEMON"))...)
	opts := lab.Options{Exe: netExe, Dir: dir, Daemon: append([]string{"--max-queues=2", "--workers=2"}, args...)}
	if t != nil {
		opts.Launch = t.Launch
	}
	if v.Lab, err = lab.New(ctx, opts); err != nil {
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
	if v.other, err = v.StartGuest(ctx, v.config(0)); err != nil {
		return nil, err
	}
	// The other guest gets its vif in the first phase.
	domid, err := v.CreateDomain(ctx, "g1", v.config(1).Domain)
	if err != nil {
		return nil, err
	}
	c, err := guest.Start(guest.StartOptions{Exe: netExe, Config: guest.Config{Xen: v.XenDir(), Domid: domid}})
	if err != nil {
		return nil, err
	}
	v.guest = &lab.Guest{Client: c, Name: "g1", Domid: domid}
	return v, nil
}

func (v *vifs) config(i int) lab.GuestConfig {
	c := lab.GuestConfig{
		Name: fmt.Sprintf("g%d", i),
		Vif:  lab.VifConfig{MAC: fmt.Sprintf("00:16:3e:00:00:%02x", 1+i), Bridge: bridge},
		Front: guest.VifConfig{
			Addrs:     []string{fmt.Sprintf("10.98.0.%d/24", 10+i)},
			Reconnect: true,
			Front:     netfront.Config{Queues: 2, SplitEvents: true, Strict: true, Control: true, Features: netfront.AllFeatures()},
		},
	}
	c.Domain.GntallocLimit = 8192
	c.Front.Front.Dir = "device/vif/0"
	return c
}

func (v *vifs) name() string { return v.guest.VifName() }

func (v *vifs) perform(ctx context.Context, p phase) error {
	switch p {
	case connecting:
		c := v.config(1)
		if err := v.Attach(ctx, v.guest.Domid, c.Vif); err != nil {
			return err
		}
		return v.front(ctx)
	case inTraffic:
		return errors.Join(v.stream(ctx), ping(ctx, v.guest, 3))
	case detaching:
		_, err := v.Detach(ctx, v.guest.Domid, 0)
		if _, none := v.guest.Client.Info(ctx, ""); none == nil {
			err = errors.Join(err, v.guest.Client.Detach(ctx, ""))
		}
		return err
	default:
		v.Daemon().Kill()
		return v.StartDaemon(ctx)
	}
}

// front connects the guest's device if it is not connected.
func (v *vifs) front(ctx context.Context) error {
	info, err := v.guest.Client.Info(ctx, "")
	switch {
	case err != nil:
		_, err = v.guest.Attach(ctx, v.config(1).Front)
	case info.State == xenbus.Connected && info.Backend == xenbus.Connected:
		return nil
	default:
		_, err = v.guest.Reconnect(ctx, guest.ConnectArgs{})
	}
	if err != nil {
		return err
	}
	// A guest without them is served as well.
	_ = v.guest.SetHash(ctx, "", netfront.Hash{Types: 15, Key: make([]byte, 40), Mapping: []uint32{0, 1, 0, 1}})
	_, _ = v.guest.StaticGrants(ctx, "", 0)
	return nil
}

// stream sends a stream from the guest to the host.
func (v *vifs) stream(ctx context.Context) error {
	const n = 256 << 10
	r, err := v.guest.TCPSend(ctx, guest.TCPSendArgs{Addr: hostIP + tcpPort, TCPSend: traffic.TCPSend{Bytes: n, Seed: 7}})
	if err == nil && (r.Bytes != n || r.Wrong != 0) {
		err = fmt.Errorf("stream of %d bytes: %+v", n, r)
	}
	return err
}

// ping has n pings of a guest answered by the host.
func ping(ctx context.Context, g *lab.Guest, n int) error {
	r, err := g.Ping(ctx, guest.PingArgs{Addr: hostIP, PingOptions: traffic.PingOptions{Count: n, Interval: time.Millisecond, Timeout: time.Second}})
	if err == nil && (r.Received != n || r.Corrupt != 0) {
		err = fmt.Errorf("ping: %d of %d came back, %d corrupt", r.Received, n, r.Corrupt)
	}
	return err
}

func (v *vifs) serves(ctx context.Context) error {
	return until(ctx, "guest", func() error {
		if err := v.front(ctx); err != nil {
			return err
		}
		return ping(ctx, v.guest, 3)
	})
}

func (v *vifs) bystander(ctx context.Context) error {
	return until(ctx, "bystander", func() error { return ping(ctx, v.other, 3) })
}

func (v *vifs) told(ctx context.Context) string {
	s, err := v.Vif(ctx, v.name())
	if err != nil {
		return ""
	}
	return tells(s)
}

func tells(s *vif.Status) string {
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

func (v *vifs) mend(ctx context.Context) error {
	if _, err := v.Vif(ctx, v.name()); err != nil {
		return err
	}
	return v.Control().Reset(ctx, v.name())
}

func (v *vifs) gone(ctx context.Context) error {
	return until(ctx, "after the detach", func() error {
		if _, err := v.Vif(ctx, v.name()); err == nil {
			return errors.New("the daemon has the vif")
		}
		if _, err := netlink.LinkByName("netbackd-" + v.name()); err == nil {
			return errors.New("its TAP is left")
		}
		if found, _ := filepath.Glob(filepath.Join(v.RunDir(), fmt.Sprintf("*-%d.0*", v.guest.Domid))); len(found) > 0 {
			return fmt.Errorf("files are left: %v", found)
		}
		if s, err := v.Store().Read(ctx, v.BackPath(v.guest.Domid, 0)+"/state"); err == nil {
			return fmt.Errorf("the back end's directory is left, in state %s", s)
		}
		return nil
	})
}

func (v *vifs) daemon() *lab.Process { return v.Daemon() }

func (v *vifs) restart(ctx context.Context) error { return v.StartDaemon(ctx) }

func (v *vifs) books(ctx context.Context) (books, error) {
	b, err := processBooks(v.Daemon().PID(), v.RunDir())
	if err != nil {
		return b, err
	}
	info, err := v.Domain(xen.Dom0)
	b.hypervisor(info)
	return b, err
}

func (v *vifs) close() error {
	if v.stop != nil {
		v.stop()
	}
	var errs []error
	if v.guest != nil {
		errs = append(errs, v.guest.Close())
	}
	if v.Lab != nil {
		errs = append(errs, v.Lab.Close())
	}
	links, _ := netlink.LinkList()
	for _, l := range links {
		if t := l.Type(); t == "tuntap" || t == "tun" || t == "bridge" {
			_ = netlink.LinkDel(l)
		}
	}
	return errors.Join(append(errs, os.RemoveAll(v.dir))...)
}
