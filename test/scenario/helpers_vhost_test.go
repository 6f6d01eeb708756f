// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/lab"
	"github.com/netbackd/netbackd/internal/lab/guest"
	"github.com/netbackd/netbackd/internal/lab/traffic"
	"github.com/netbackd/netbackd/internal/lab/vhostfront"
	"github.com/netbackd/netbackd/internal/vhostnet"
)

// vhost is a process `netbackd vhost-user` of a world, and virtGuest a guest whose card is a
// virtio device that such a process serves.
type vhost struct {
	*lab.Vhost
	w *world
}

// vhost starts a process whose TAP is on the world's bridge. args are more arguments.
func (w *world) vhost(name string, args ...string) *vhost {
	w.t.Helper()
	d, err := w.StartVhost(w.ctx, name, append([]string{"--bridge", bridge}, args...)...)
	w.must(err)
	v := &vhost{d, w}
	w.vhosts = append(w.vhosts, v)
	return v
}

// status asks the process for the status of its device.
func (d *vhost) status() vhostnet.Status {
	d.w.t.Helper()
	s, err := d.Status(d.w.ctx)
	d.w.must(err)
	return s
}

// waitStatus waits until the status satisfies ok.
func (d *vhost) waitStatus(what string, ok func(s *vhostnet.Status) bool) vhostnet.Status {
	d.w.t.Helper()
	var last vhostnet.Status
	d.w.wait(what, func() bool {
		s, err := d.Status(d.w.ctx)
		last = s
		return err == nil && ok(&s)
	})
	return last
}

// counter returns a counter of the device.
func (d *vhost) counter(c dataplane.Counter) uint64 {
	d.w.t.Helper()
	return d.status().Counters[c.String()]
}

// virtGuest is a guest with a virtio device. The methods of testGuest for traffic work with
// it, those that ask the daemon of vifs do not.
type virtGuest struct {
	*testGuest
	d    *vhost
	virt guest.VirtInfo
}

// virt returns the configuration of guest i of a device.
func (d *vhost) virt(i int, change ...func(*guest.VirtConfig)) guest.VirtConfig {
	c := guest.VirtConfig{
		MAC:   fmt.Sprintf("00:16:3e:00:00:%02x", 1+i),
		Addrs: []string{guestIP(i) + "/24", guestIP6(i) + "/64"},
		Front: vhostfront.Config{Socket: d.Socket, Strict: true},
	}
	for _, f := range change {
		f(&c)
	}
	return c
}

// fronted changes the front end of a guest.
func fronted(f func(c *vhostfront.Config)) func(*guest.VirtConfig) {
	return func(c *guest.VirtConfig) { f(&c.Front) }
}

// guest starts a guest on the device and waits until packets pass.
func (d *vhost) guest(change ...func(*guest.VirtConfig)) *virtGuest {
	d.w.t.Helper()
	i := d.w.guests
	d.w.guests++
	return d.guestAs(i, change...)
}

// guestAs does the same with the addresses of guest i.
func (d *vhost) guestAs(i int, change ...func(*guest.VirtConfig)) *virtGuest {
	d.w.t.Helper()
	w := d.w
	g, err := w.StartVirt(w.ctx, fmt.Sprintf("v%d", i), d.virt(i, change...))
	w.must(err)
	v := &virtGuest{&testGuest{Guest: g.Guest, w: w, ip: guestIP(i), ip6: guestIP6(i)}, d, g.Virt}
	w.neighbour(i)
	v.waitUp()
	_, err = v.TCPServe(w.ctx, guest.ServeArgs{Addr: tcpPort})
	w.must(err)
	_, err = v.UDPServe(w.ctx, guest.ServeArgs{Addr: udpPort})
	w.must(err)
	return v
}

// neighbour enters the address of guest i for good. Packets that wait for an answer of ARP can
// be overtaken by others, and wait a second if the question was lost.
func (w *world) neighbour(i int) {
	w.t.Helper()
	br, err := netlink.LinkByName(bridge)
	w.must(err)
	mac := net.HardwareAddr{0, 0x16, 0x3e, 0, 0, byte(1 + i)}
	w.must(netlink.NeighSet(&netlink.Neigh{LinkIndex: br.Attrs().Index, State: netlink.NUD_PERMANENT, IP: net.ParseIP(guestIP(i)), HardwareAddr: mac}))
}

// waitCarrier waits until the device is connected, and until kernel and bridge have noticed:
// until then they drop packets.
func (d *vhost) waitCarrier() {
	d.w.t.Helper()
	s := d.waitStatus("the device to be connected", func(s *vhostnet.Status) bool { return s.State == vhostnet.Connected })
	for _, name := range []string{s.Interface, bridge} {
		d.w.wait("the carrier of "+name, func() bool {
			l, err := netlink.LinkByName(name)
			return err == nil && l.Attrs().OperState == netlink.OperUp
		})
	}
}

// waitUp waits until packets pass. The kernel may notice late that the carrier was away.
func (g *virtGuest) waitUp() {
	g.w.t.Helper()
	g.d.waitCarrier()
	g.w.wait("a ping to come back", func() bool {
		r, err := g.Ping(g.w.ctx, guest.PingArgs{Addr: hostIP, PingOptions: traffic.PingOptions{Timeout: 100 * time.Millisecond}})
		g.w.must(err)
		return r.Received == 1
	})
}

// op carries out an operation on the guest's device.
func (g *virtGuest) op(args guest.VirtArgs) int {
	g.w.t.Helper()
	n, err := g.Virt(g.w.ctx, args)
	if err != nil {
		g.w.t.Fatalf("%s: %v", args.Op, err)
	}
	return n
}

// stats returns the counters of the guest's device.
func (g *virtGuest) stats() guest.VirtStats {
	g.w.t.Helper()
	s, err := g.VirtStats(g.w.ctx, "")
	g.w.must(err)
	return s
}

// innocent waits until the back end has sent all packets, and checks that it broke no rule
// and wrote nowhere else.
func (g *virtGuest) innocent() {
	g.w.t.Helper()
	g.op(guest.VirtArgs{Op: "settle"})
	for _, v := range g.stats().Violations {
		g.w.t.Errorf("%s accuses the back end: %s", g.Name, v)
	}
}

// streaming sends streams in both directions until the returned function is called, which
// returns how many have ended. Each byte is checked.
func (g *virtGuest) streaming(bytes int64) (stop func() int) {
	ctx, cancel := context.WithCancel(g.w.ctx)
	var wg sync.WaitGroup
	var mu sync.Mutex
	n := 0
	var failed error
	run := func(f func() error) {
		wg.Go(func() {
			for ctx.Err() == nil {
				err := f()
				mu.Lock()
				n++
				if failed == nil {
					failed = err
				}
				mu.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	whole := func(r traffic.TCPResult, err error) error {
		if err == nil && (r.Bytes != bytes || r.Wrong != 0) {
			err = fmt.Errorf("stream of %d bytes: %+v", bytes, r)
		}
		return err
	}
	run(func() error {
		return whole(g.TCPSend(g.w.ctx, guest.TCPSendArgs{Addr: hostIP + tcpPort, TCPSend: traffic.TCPSend{Bytes: bytes, Seed: 7}}))
	})
	run(func() error {
		c, err := traffic.DialTCP(g.w.ctx, g.ip+tcpPort)
		if err != nil {
			return err
		}
		return whole(traffic.SendTCP(g.w.ctx, c, traffic.TCPSend{Bytes: bytes, Seed: 9}))
	})
	return func() int {
		g.w.t.Helper()
		cancel()
		wg.Wait()
		g.w.must(failed)
		return n
	}
}

// beside runs f while a guest on another device sends and receives a little, and checks that
// it lost nothing.
func (w *world) beside(f func()) {
	w.t.Helper()
	g := w.vhost("beside", "--queues", "1").guest()
	ctx, stop := context.WithCancel(w.ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() {
		const bytes = 256 << 10
		for ctx.Err() == nil {
			r, err := g.TCPSend(w.ctx, guest.TCPSendArgs{Addr: hostIP + tcpPort, TCPSend: traffic.TCPSend{Bytes: bytes, Rate: 4 << 20, Seed: 3}})
			if err != nil || r.Wrong != 0 || r.Bytes != bytes {
				ended <- fmt.Errorf("bystander's stream: %+v: %w", r, err)
				return
			}
		}
		ended <- nil
	}()
	f()
	stop()
	w.must(<-ended)
	g.pings(5)
	g.innocent()
	if s := g.d.status(); s.Sessions != 1 {
		w.t.Errorf("the bystander had %d sessions", s.Sessions)
	}
}

// held returns the numbers of mappings of memfds and of open files of the process. One of
// the files is the connection that asks for the status.
func (d *vhost) held() (maps, files int) {
	d.w.t.Helper()
	d.status()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", d.PID()))
	d.w.must(err)
	maps = strings.Count(string(b), "/memfd:")
	dir := fmt.Sprintf("/proc/%d/fd", d.PID())
	list, err := os.ReadDir(dir)
	d.w.must(err)
	for _, f := range list {
		if to, err := os.Readlink(dir + "/" + f.Name()); err == nil && !strings.HasPrefix(to, "pipe:") {
			files++
		}
	}
	return maps, files
}

// released waits until the process holds nothing of a front end: no mapping of a memfd, and
// no more files than before.
func (d *vhost) released(files int) {
	d.w.t.Helper()
	d.w.wait("all memory and files of the front end to be let go", func() bool {
		maps, now := d.held()
		return maps == 0 && now <= files
	})
}

// logged waits until the log of the process has a line that contains all of the texts, from
// an offset on.
func (d *vhost) logged(from int, texts ...string) string {
	d.w.t.Helper()
	line := ""
	d.w.wait(fmt.Sprintf("a line of the log with %q", texts), func() bool {
		for l := range strings.Lines(d.Log()[from:]) {
			ok := true
			for _, t := range texts {
				ok = ok && strings.Contains(l, t)
			}
			if ok {
				line = l
				return true
			}
		}
		return false
	})
	return line
}

// vhostTest makes a world with one device and a guest of it.
func vhostTest(t *testing.T, args []string, change ...func(*guest.VirtConfig)) (*world, *vhost, *virtGuest) {
	t.Helper()
	w := newWorld(t)
	d := w.vhost("web", args...)
	return w, d, d.guest(change...)
}

// raw returns the next frame that comes in from the other end and satisfies ok.
func (c *cable) raw(ok func(frame []byte) bool) []byte {
	c.w.t.Helper()
	b := make([]byte, vnetLen+1<<17)
	for {
		n, from, err := unix.Recvfrom(c.fd, b, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			c.w.t.Fatalf("no frame comes: %v", err)
		}
		out := from.(*unix.SockaddrLinklayer).Pkttype == unix.PACKET_OUTGOING
		if !out && n > vnetLen && ok(b[vnetLen:n]) {
			return b[vnetLen:n]
		}
	}
}

const silence = 150 * time.Millisecond
