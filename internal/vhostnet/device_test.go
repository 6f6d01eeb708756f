// SPDX-License-Identifier: Apache-2.0

package vhostnet

import (
	"cmp"
	"errors"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/vhostuser"
)

// TestSession: what a device does with the TAP in a session, and what its status shows.
func TestSession(t *testing.T) {
	b := newBed(t, Config{})
	if s := b.d.Status(); s.State != Waiting || s.Waits != "a front end" || s.Carrier || !s.Up || !s.Made {
		t.Errorf("before: %+v", s)
	}
	f := b.front()
	b.start(f, 2)
	s := b.d.Status()
	if s.State != Connected || s.Waits != "" || !s.Carrier || s.Active != 2 || s.Sessions != 1 || s.Frontend != os.Getpid() {
		t.Errorf("connected: %+v", s)
	}
	if diff := gocmp.Diff([]Memory{{Kind: "shared", Regions: 1, Bytes: guestSize}}, s.Memory); diff != "" {
		t.Errorf("memory (-want +got):\n%s", diff)
	}
	if o := b.d.link.offload; o != (tap.Offload{Csum: true, TSO4: true, TSO6: true, ECN: true, USO: b.d.link.uso}) {
		t.Errorf("offloads %+v", o)
	}
	if _, err := f.StopRing(2); err != nil {
		t.Fatal(err)
	}
	if s := b.d.Status(); s.Active != 1 || !s.Carrier {
		t.Errorf("second pair stopped: %d pairs, carrier %v", s.Active, s.Carrier)
	}
	b.must(f.Close())
	b.idle()
	if s := b.d.Status(); s.State != Waiting || s.Carrier || s.Active != 0 || len(s.Features) != 0 || len(s.Memory) != 0 || s.Error != "" {
		t.Errorf("after: %+v", s)
	}
	if o := b.d.link.offload; o != (tap.Offload{}) {
		t.Errorf("offloads after the session: %+v", o)
	}
}

// TestStall: a guest that posts no buffers takes the carrier, as that of a vif does.
func TestStall(t *testing.T) {
	b := newBed(t, Config{})
	f := b.front()
	b.start(f, 2)
	carrier := func(want bool) {
		t.Helper()
		await(t, "the carrier changes", func() bool { i, err := b.d.link.info(); return err == nil && i.Carrier == want })
	}
	b.rings.notice(dataplane.Notice{Kind: dataplane.Stalled, Queue: 1})
	carrier(false)
	if s := b.d.State(); s != Stalled {
		t.Errorf("state %s", s)
	}
	b.rings.notice(dataplane.Notice{Kind: dataplane.Resumed, Queue: 1})
	carrier(true)
	b.rings.notice(dataplane.Notice{Kind: dataplane.Stalled, Queue: 1})
	carrier(false)
	if _, err := f.StopRing(2); err != nil { // a pair that is not used cannot stall
		t.Fatal(err)
	}
	carrier(true)
}

// TestBreachEndsTheSession: the reason is logged once and shown, and the next front end is
// served.
func TestBreachEndsTheSession(t *testing.T) {
	b := newBed(t, Config{})
	f := b.front()
	b.start(f, 1)
	b.rings.notice(dataplane.Notice{Kind: dataplane.Breach, Queue: 0, Err: errors.New("the head is out of bounds")})
	b.idle()
	want := "queue pair 0: the head is out of bounds"
	if s := b.d.Status(); s.Error != want || s.State != Waiting {
		t.Errorf("state %s, error %q", s.State, s.Error)
	}
	lines := b.logs.FilterMessage("connection closed").All()
	if len(lines) != 1 || lines[0].ContextMap()["error"] != want {
		t.Errorf("log %v", lines)
	}
	b.start(b.front(), 1)
	if s := b.d.Status(); s.State != Connected || s.Sessions != 2 {
		t.Errorf("the next session: %+v", s)
	}
}

// TestProtocolErrorEndsTheSession: the same for messages. Number 41 was proposed for the
// memory of Xen's guests once.
func TestProtocolErrorEndsTheSession(t *testing.T) {
	b := newBed(t, Config{Xen: XenGrant})
	f := b.front()
	b.must(f.U64(vhostuser.Request(41), 1))
	b.idle()
	if s := b.d.Status(); !strings.Contains(s.Error, "41") {
		t.Errorf("error %q", s.Error)
	}
}

// TestShortageWhileWaiting: a front end that cannot be accepted because the host is short of
// memory for a while does not end the device. Its status tells the cause.
func TestShortageWhileWaiting(t *testing.T) {
	b := newBed(t, Config{})
	b.conns <- nil
	await(t, "the failure is told", func() bool { return strings.Contains(b.d.Status().Error, "cannot allocate memory") })
	b.start(b.front(), 1)
	if s := b.d.Status(); s.State != Connected {
		t.Errorf("afterwards: %+v", s)
	}
}

func TestReset(t *testing.T) {
	b := newBed(t, Config{})
	if b.d.Reset() {
		t.Error("a session without a front end was reset")
	}
	b.start(b.front(), 1)
	if !b.d.Reset() {
		t.Error("there is no session to reset")
	}
	b.idle()
	if s := b.d.Status(); s.Error != errReset.Error() {
		t.Errorf("error %q", s.Error)
	}
}

// TestMTU: a TAP that was made follows the front end; others, and one whose MTU was given,
// do not.
func TestMTU(t *testing.T) {
	for name, tc := range map[string]struct {
		cfg     TapConfig
		make    bool
		ask     uint64
		refused bool
		want    int
	}{
		"made":                    {ask: 9000, want: 9000},
		"made, smaller":           {ask: 1400, want: 1400},
		"made, too large":         {ask: 65530, refused: true, want: 1500},
		"given":                   {cfg: TapConfig{MTU: 1400}, ask: 1400, want: 1400},
		"given, larger":           {cfg: TapConfig{MTU: 1400}, ask: 1500, refused: true, want: 1400},
		"given, smaller":          {cfg: TapConfig{MTU: 1400}, ask: 1300, want: 1400},
		"administrator's":         {make: true, ask: 1500, want: 1500},
		"administrator's, larger": {make: true, ask: 1501, refused: true, want: 1500},
	} {
		t.Run(name, func(t *testing.T) {
			if tc.make {
				addTap(t, true, true)
			}
			b := newBed(t, Config{Tap: tc.cfg})
			f := b.front()
			_, _, err := f.Negotiate(^uint64(0)&^(1<<34), ^uint64(0))
			b.must(err)
			err = f.U64(vhostuser.NetSetMTU, tc.ask)
			if errors.Is(err, vhostuser.ErrRefused) != tc.refused || err != nil && !tc.refused {
				t.Errorf("error %v", err)
			}
			if s := b.d.Status(); s.MTU != tc.want || !tc.refused && s.GuestMTU != int(tc.ask) {
				t.Errorf("mtu %d, of the guest %d", s.MTU, s.GuestMTU)
			}
			b.must(f.Close())
			b.idle()
			if s, want := b.d.Status(), cmp.Or(tc.cfg.MTU, 1500); s.MTU != want || s.GuestMTU != 0 {
				t.Errorf("after the session: mtu %d, of the guest %d, want %d", s.MTU, s.GuestMTU, want)
			}
		})
	}
}

// addTap makes a TAP as an administrator does.
func addTap(t *testing.T, multi, vnet bool) {
	t.Helper()
	netns.NeedTUN(t)
	l := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: tapName}, Mode: netlink.TUNTAP_MODE_TAP, Flags: netlink.TUNTAP_NO_PI, Owner: 12, Group: 34}
	if multi {
		l.Flags |= netlink.TUNTAP_MULTI_QUEUE
	}
	if vnet {
		l.Flags |= netlink.TUNTAP_VNET_HDR
	}
	l.Queues = 1 // without any the library takes the flag of several away
	if err := netlink.LinkAdd(l); err != nil {
		t.Fatal(err)
	}
	for _, f := range l.Fds {
		_ = f.Close()
	}
	t.Cleanup(func() { _ = netns.Delete(tapName) })
}

// TestTapOfAdministrator stays as it was found.
func TestTapOfAdministrator(t *testing.T) {
	for name, multi := range map[string]bool{"one queue": false, "several queues": true} {
		for kind, vnet := range map[string]bool{"plain": false, "vnet header": true} {
			t.Run(name+", "+kind, func(t *testing.T) {
				addTap(t, multi, vnet)
				d, _, logs, err := openDevice(t, Config{Tap: TapConfig{Name: tapName, Auto: 4}})
				if err != nil {
					t.Fatal(err)
				}
				pairs := 1
				if multi {
					pairs = 4
				}
				s := d.Status()
				if s.Pairs != pairs || s.Made || s.Up || s.VnetHdr != vnet || slices.Contains(s.Offered, "guest_csum") != vnet {
					t.Errorf("%+v", s)
				}
				if n := logs.FilterMessageSnippet("no vnet headers").Len(); (n == 1) == vnet {
					t.Errorf("%d warnings", n)
				}
				if err := d.Close(); err != nil {
					t.Fatal(err)
				}
				l, err := netlink.LinkByName(tapName)
				if err != nil {
					t.Fatal(err)
				}
				after := l.(*netlink.Tuntap)
				if after.NonPersist || after.Owner != 12 || after.Group != 34 {
					t.Errorf("persistent %v, owner %d, group %d", !after.NonPersist, after.Owner, after.Group)
				}
			})
		}
	}
}

// TestTapOfAdministratorWorksAfterwards: nothing that a session did to a TAP with one queue is in
// the way of the next program.
func TestTapOfAdministratorWorksAfterwards(t *testing.T) {
	addTap(t, false, true)
	if err := netns.Up(tapName); err != nil {
		t.Fatal(err)
	}
	for _, used := range []bool{false, true} {
		b := newBed(t, Config{Tap: TapConfig{Queues: 1}})
		if used {
			f := b.front()
			b.start(f, 1)
			if s := b.d.Status(); !s.Carrier || s.Active != 1 {
				t.Errorf("carrier %v, %d pairs", s.Carrier, s.Active)
			}
			b.must(f.Close())
			b.idle()
		}
		b.stop()
		<-b.ended
		b.ended <- nil
		b.rings.Close()
		b.must(b.d.link.dev.CloseKeep()) // as after kill -9
	}
	// Not by pkg/tap, which makes a device that it adopts work again.
	other := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: tapName}, Mode: netlink.TUNTAP_MODE_TAP,
		Flags: netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR, Queues: 1}
	if err := netlink.LinkAdd(other); err != nil {
		t.Fatal(err)
	}
	defer other.Fds[0].Close()
	index, err := netlink.LinkByName(tapName)
	if err != nil {
		t.Fatal(err)
	}
	s, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(s)
	frame := make([]byte, 60)
	copy(frame, []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5}) // the type for local experiments
	buf := make([]byte, 200)
	await(t, "a packet passes", func() bool {
		_ = unix.Sendto(s, frame, 0, &unix.SockaddrLinklayer{Ifindex: index.Attrs().Index})
		_ = other.Fds[0].SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		n, err := other.Fds[0].Read(buf)
		return err == nil && n == tap.VnetHdrLen+len(frame)
	})
}

// TestTapErrors: errors say what to do.
func TestTapErrors(t *testing.T) {
	for name, tc := range map[string]struct {
		cfg   TapConfig
		setUp func(t *testing.T)
		want  string
	}{
		"no TAP":     {TapConfig{Name: "lo"}, nil, "the interface lo is no TAP"},
		"one queue":  {TapConfig{Queues: 2}, func(t *testing.T) { addTap(t, false, true) }, "or use --queues 1"},
		"no bridge":  {TapConfig{Bridge: "br9"}, nil, "ip link add br9 type bridge"},
		"not bridge": {TapConfig{Bridge: "lo"}, nil, "lo is no Linux bridge"},
		"mtu":        {TapConfig{MTU: 66000}, nil, "mtu 66000"},
	} {
		t.Run(name, func(t *testing.T) {
			if tc.setUp != nil {
				tc.setUp(t)
			}
			d, _, _, err := openDevice(t, Config{Tap: tc.cfg})
			if err == nil {
				_ = d.Close()
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
			_, found := netlink.LinkByName(tapName)
			if left := found == nil; left != (tc.setUp != nil) {
				t.Errorf("a TAP is there: %v", left)
			}
		})
	}
}

// TestBridge: a TAP that is made is a port of the bridge with its MTU before it is up, and a
// successor of a process that was killed takes it over.
func TestBridge(t *testing.T) {
	netns.NeedTUN(t)
	index, err := netns.AddBridge("br7")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netns.Delete("br7") })
	bridge, err := netlink.LinkByName("br7")
	if err == nil {
		err = netlink.LinkSetMTU(bridge, 1450)
	}
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{Tap: TapConfig{Bridge: "br7", Queues: 2}}
	d, _, _, err := openDevice(t, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if s := d.Status(); s.Bridge != "br7" || s.MTU != 1450 || !s.Up || s.Carrier {
		t.Errorf("%+v", s)
	}
	was := d.link.dev.Index()
	d.rings.Close()
	if err := d.link.dev.CloseKeep(); err != nil { // as after kill -9
		t.Fatal(err)
	}
	d, _, _, err = openDevice(t, cfg)
	if err != nil {
		t.Fatal(err)
	}
	info, err := d.link.info()
	if err != nil || info.Master != index || d.link.dev.Index() != was || !d.link.ours {
		t.Errorf("%+v, index %d, was %d, %v", info, d.link.dev.Index(), was, err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := netlink.LinkByName(tapName); err == nil {
		t.Error("the TAP is still there")
	}
}

// TestTransient: a TAP that no successor could find ends with the process.
func TestTransient(t *testing.T) {
	d, _, _, err := openDevice(t, Config{Tap: TapConfig{Transient: true}})
	if err != nil {
		t.Fatal(err)
	}
	l, err := netlink.LinkByName(tapName)
	if err != nil || !l.(*netlink.Tuntap).NonPersist {
		t.Errorf("%+v, %v", l, err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}

// TestTapDeleted ends the device.
func TestTapDeleted(t *testing.T) {
	b := newBed(t, Config{})
	b.start(b.front(), 1)
	if err := netns.Delete(tapName); err != nil {
		t.Fatal(err)
	}
	b.rings.notice(dataplane.Notice{Kind: dataplane.TapGone})
	err := <-b.ended
	b.ended <- nil
	if !errors.Is(err, ErrTapGone) || !strings.Contains(err.Error(), tapName) {
		t.Errorf("error %v", err)
	}
}

// TestRingOfADeletedTap: a ring whose TAP queue cannot be attached is not served.
func TestRingOfADeletedTap(t *testing.T) {
	b := newBed(t, Config{})
	f := b.front()
	_, _, err := f.Negotiate(1<<32, vhostuser.ProtocolReplyAck)
	b.must(err)
	b.must(f.SetMemory([]vhostuser.Region{guestRegion}, []int{memfd(t, guestSize)}))
	b.must(netns.Delete(tapName))
	_, err = f.Do(vhostuser.Message{Header: vhostuser.Header{Request: vhostuser.SetVringEnable}, State: vhostuser.VringState{Index: 0, Num: 1}})
	b.must(err)
	if err := f.StartRing(ringAddr(0), ringSize, 0, eventfd(t), eventfd(t)); err == nil {
		t.Error("the ring was started")
	}
	if s := b.rings.State(0); s.Rx.Started {
		t.Errorf("state %+v", s)
	}
}

// TestRARP: the network sees the frame, from the address of the guest.
func TestRARP(t *testing.T) {
	b := newBed(t, Config{})
	s, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(0x3580)) // RARP, in the order of the network
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(s)
	b.must(unix.Bind(s, &unix.SockaddrLinklayer{Protocol: 0x3580, Ifindex: b.d.link.dev.Index()}))
	f := b.front()
	b.start(f, 1)
	b.must(f.U64(vhostuser.SendRARP, 0x060504030201|1<<40))
	buf := make([]byte, 100)
	n, err := unix.Read(s, buf)
	if err != nil {
		t.Fatal(err)
	}
	mac := []byte{1, 2, 3, 4, 5, 7}
	if n != 60 || !slices.Equal(buf[6:12], mac) || !slices.Equal(buf[22:28], mac) || !slices.Equal(buf[32:38], mac) || buf[21] != 3 {
		t.Errorf("%d bytes: % x", n, buf[:n])
	}
}

// resources counts what sessions use.
func resources(t *testing.T) map[string]int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	return map[string]int{"descriptors": len(fds), "guests mapped": strings.Count(string(maps), "memfd:guest"), "goroutines": runtime.NumGoroutine()}
}

// TestHundredSessions: front ends that come and go, properly or not, leave nothing behind.
func TestHundredSessions(t *testing.T) {
	b := newBed(t, Config{})
	mem, kick, call := memfd(t, guestSize), eventfd(t), eventfd(t)
	var before map[string]int
	for i := range 101 {
		f := vhostuser.NewFrontend(b.conn())
		_, _, err := f.Negotiate(^uint64(0)&^(1<<34), ^uint64(0))
		b.must(err)
		b.must(f.SetMemory([]vhostuser.Region{guestRegion}, []int{mem}))
		for r := range uint32(1 + i%4) {
			b.must(f.StartRing(ringAddr(r), ringSize, 0, kick, call))
		}
		switch i % 5 {
		case 1:
			_, err := f.StopRing(0)
			b.must(err)
		case 2:
			b.d.Reset()
		case 3:
			b.rings.notice(dataplane.Notice{Kind: dataplane.Breach, Err: errors.New("as a test wants")})
		case 4: // half a message
			_ = f.U64(vhostuser.Request(41), 0)
		}
		b.must(f.Close())
		b.idle()
		if i == 0 {
			before = resources(t)
		}
	}
	if diff := gocmp.Diff(before, resources(t)); diff != "" {
		t.Errorf("after 100 sessions (-before +after):\n%s", diff)
	}
}

// TestPanicEndsTheSession: an internal error costs the session.
func TestPanicEndsTheSession(t *testing.T) {
	b := newBed(t, Config{})
	b.rings.set(func(s *spy) { s.panics = true })
	f := b.front()
	_, _, _ = f.Negotiate(1<<32, ^uint64(0))
	b.idle()
	if s := b.d.Status(); s.Error != "internal error: as a test wants" {
		t.Errorf("error %q", s.Error)
	}
	if n := b.logs.FilterMessage("internal error").Len(); n != 1 {
		t.Errorf("%d lines in the log", n)
	}
	b.rings.set(func(s *spy) { s.panics = false })
	b.start(b.front(), 1)
}

// TestMoreQueuesAfterAKill: the TAP that a killed process left takes as many queues as its
// successor wants.
func TestMoreQueuesAfterAKill(t *testing.T) {
	for _, queues := range []int{1, 4, 2} {
		d, _, _, err := openDevice(t, Config{Tap: TapConfig{Queues: queues}})
		if err != nil {
			t.Fatal(err)
		}
		if d.Pairs() != queues {
			t.Errorf("%d pairs, want %d", d.Pairs(), queues)
		}
		d.rings.Close()
		if err := d.link.dev.CloseKeep(); err != nil {
			t.Fatal(err)
		}
	}
	if err := netns.Delete(tapName); err != nil {
		t.Error(err)
	}
}
