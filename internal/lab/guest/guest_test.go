// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/netbackd/netbackd/internal/lab/fuzzloop"
	"github.com/netbackd/netbackd/internal/lab/netfront"
	"github.com/netbackd/netbackd/internal/lab/netfront/fronttest"
	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/internal/lab/traffic"
	"github.com/netbackd/netbackd/internal/lab/vhostfront"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

func TestMain(m *testing.M) {
	// The agents that the tests start are this binary.
	if len(os.Args) > 1 && os.Args[1] == "guest" {
		if err := asAgent(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "agent:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if code, done := netns.Enter(); done {
		os.Exit(code)
	}
	goleak.VerifyTestMain(m)
}

func asAgent(args []string) error {
	cfg, err := ParseArgs(args, os.Stderr)
	if err != nil {
		return err
	}
	return Main(context.Background(), cfg, os.Stdin, os.Stdout)
}

// lab is a host with a backend, whose TAP has the address 192.0.2.1, and a guest behind it
// with the address 192.0.2.2.
type lab struct {
	*Client
	t     *testing.T
	ctx   context.Context
	x     *fronttest.Xen
	domid xen.Domid
	back  *fronttest.Backend
}

const (
	hostAddr  = "192.0.2.1"
	guestAddr = "192.0.2.2"
)

func newLab(t *testing.T, queues int, offers map[string]string) *lab {
	t.Helper()
	netns.NeedTUN(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	l := &lab{t: t, ctx: ctx, x: fronttest.NewXen(t)}
	l.domid = l.x.NewGuest()
	dev, err := tap.Create(tap.Config{Name: "vif0", Queues: queues})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dev.Close() })
	err = errors.Join(
		netns.Sysctl("net/ipv6/conf/vif0/accept_dad", "0"),
		netns.AddAddr("vif0", hostAddr+"/24"), netns.AddAddr("vif0", "2001:db8::1/64"), netns.Up("vif0"),
		awaitReady(ctx, dev.Index()))
	if err != nil {
		t.Fatal(err)
	}
	l.back = l.x.Start(l.domid, fronttest.Options{Offers: offers, Tap: dev})
	if l.Client, err = Start(StartOptions{Config: Config{Xen: l.x.Dir, Domid: l.domid}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func vifConfig() VifConfig {
	return VifConfig{
		Addrs: []string{guestAddr + "/24", "2001:db8::2/64"},
		Front: netfront.Config{Strict: true, IDSalt: 0x4200},
	}
}

func (l *lab) attach(c VifConfig) VifInfo {
	l.t.Helper()
	info, err := l.Attach(l.ctx, c)
	if err != nil {
		l.t.Fatal(err)
	}
	return info
}

// reaches checks that the guest reaches the host.
func (l *lab) reaches() {
	l.t.Helper()
	for _, to := range []string{hostAddr, "2001:db8::1"} {
		r, err := l.Ping(l.ctx, PingArgs{Addr: to, PingOptions: traffic.PingOptions{Count: 3, Size: 1200}})
		if err != nil || r.Received != 3 {
			l.t.Errorf("ping %s: %+v, %v", to, r, err)
		}
	}
}

// wellBehaved checks that there is no violation, and returns the counters.
func (l *lab) wellBehaved() VifStats {
	l.t.Helper()
	s, err := l.Stats(l.ctx, "")
	if err != nil {
		l.t.Fatal(err)
	}
	for _, v := range s.Violations {
		l.t.Errorf("violation: %s", v)
	}
	return s
}

func TestAttach(t *testing.T) {
	l := newLab(t, 1, nil)
	if l.PID() == 0 || l.PID() == os.Getpid() {
		t.Errorf("the agent is process %d", l.PID())
	}
	got := l.attach(vifConfig())
	want := VifInfo{
		Name: "eth0", MAC: fmt.Sprintf("00:16:3e:00:00:%02x", l.domid),
		State: xenbus.Connected, Backend: xenbus.Connected, Queues: 1,
		Offers: netfront.Offers{RxCopy: true, SG: true, NoCsumOffload: true, SplitEvents: true, MaxQueues: 1},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("info (-want +got):\n%s", diff)
	}
	l.reaches()
	s := l.wellBehaved()
	if s.Total.TxPackets < 6 || s.Total.RxPackets < 6 || len(s.Queues) != 1 || s.Queues[0].Tx.ReqProd == 0 {
		t.Errorf("stats %+v", s)
	}
	if _, err := l.Attach(l.ctx, vifConfig()); err == nil {
		t.Error("eth0 was attached twice")
	}
	if err := l.Detach(l.ctx, "eth0"); err != nil {
		t.Error(err)
	}
	if _, err := l.Info(l.ctx, ""); err == nil {
		t.Error("a detached vif has info")
	}
	l.attach(vifConfig())
	l.reaches()
	if err := l.Quit(l.ctx); err != nil {
		t.Error(err)
	}
	once := []xenbus.State{xenbus.InitWait, xenbus.Connected, xenbus.Closing, xenbus.Closed}
	want2 := slices.Concat(once, once)
	if diff := cmp.Diff(want2, l.back.States()); diff != "" {
		t.Errorf("backend's states (-want +got):\n%s", diff)
	}
}

// TestTraffic sends traffic between host and guest, over one queue and over two, with a
// card that leaves the checksums to the pump and with one that computes them itself.
func TestTraffic(t *testing.T) {
	for _, c := range []struct {
		name   string
		queues int
		edit   func(*VifConfig)
	}{
		{"one queue", 1, func(*VifConfig) {}},
		{"two queues", 2, func(c *VifConfig) { c.Front.Queues, c.Front.SplitEvents = 2, true }},
		{"plain card", 1, func(c *VifConfig) { c.Plain = true }},
		{"few buffers", 1, func(c *VifConfig) { c.Front.TxPages, c.Front.RxPages = 20, 20 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t, c.queues, nil)
			cfg := vifConfig()
			c.edit(&cfg)
			if info := l.attach(cfg); info.Queues != c.queues {
				t.Errorf("%d queues, want %d", info.Queues, c.queues)
			}
			l.reaches()
			l.tcpBothWays()
			l.udpBothWays()
			s := l.wellBehaved()
			if s.Total.TapErrors+s.Total.TapDrops > 0 {
				t.Errorf("packets were lost at the card: %+v", s.Total)
			}
		})
	}
}

// serve runs a server of the host until the function it returns is called.
func (l *lab) serve(server func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(l.ctx)
	done := make(chan error, 1)
	go func() { done <- server(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			l.t.Error(err)
		}
	}
}

func (l *lab) tcpBothWays() {
	l.t.Helper()
	host, err := traffic.ListenTCP(hostAddr + ":0")
	if err != nil {
		l.t.Fatal(err)
	}
	defer l.serve(host.Serve)()
	r, err := l.TCPSend(l.ctx, TCPSendArgs{Addr: host.Addr().String(), TCPSend: traffic.TCPSend{Bytes: 3 << 20, Seed: 1}})
	if err != nil || r.Bytes != 3<<20 || r.Wrong != 0 {
		l.t.Errorf("to the host: %+v, %v", r, err)
	}

	s, err := l.TCPServe(l.ctx, ServeArgs{Addr: guestAddr + ":0"})
	if err != nil {
		l.t.Fatal(err)
	}
	conn, err := traffic.DialTCP(l.ctx, s.Addr)
	if err != nil {
		l.t.Fatal(err)
	}
	r, err = traffic.SendTCP(l.ctx, conn, traffic.TCPSend{Bytes: 3 << 20, Seed: 2})
	if err != nil || r.Bytes != 3<<20 || r.Wrong != 0 {
		l.t.Errorf("to the guest: %+v, %v", r, err)
	}
	if rs, err := l.TCPResults(l.ctx, s); err != nil || len(rs) != 1 || rs[0].Bytes != 3<<20 {
		l.t.Errorf("the guest's results: %+v, %v", rs, err)
	}
	if err := l.StopServer(l.ctx, s); err != nil {
		l.t.Error(err)
	}
	if _, err := l.TCPResults(l.ctx, s); err == nil {
		l.t.Error("a stopped server has results")
	}
}

func (l *lab) udpBothWays() {
	l.t.Helper()
	send := traffic.UDPSend{Count: 500, Size: 1000, Rate: 5000}
	host, err := traffic.ListenUDP(hostAddr + ":0")
	if err != nil {
		l.t.Fatal(err)
	}
	defer l.serve(host.Serve)()
	r, err := l.UDPSend(l.ctx, UDPSendArgs{Addr: host.Addr().String(), UDPSend: send})
	if err != nil || r.Sent != 500 || r.Received != 500 || r.Duplicated+r.Corrupt > 0 {
		l.t.Errorf("to the host: %+v, %v", r, err)
	}

	s, err := l.UDPServe(l.ctx, ServeArgs{Addr: guestAddr + ":0"})
	if err != nil {
		l.t.Fatal(err)
	}
	conn, err := traffic.DialUDP(l.ctx, s.Addr, "")
	if err != nil {
		l.t.Fatal(err)
	}
	r, err = traffic.SendUDP(l.ctx, conn, send)
	if err != nil || r.Sent != 500 || r.Received != 500 || r.Duplicated+r.Corrupt > 0 {
		l.t.Errorf("to the guest: %+v, %v", r, err)
	}
	if rs, err := l.UDPResults(l.ctx, s); err != nil || len(rs) != 1 || rs[0].Received != 500 {
		l.t.Errorf("the guest's results: %+v, %v", rs, err)
	}
}

// TestStreamSurvivesReconnecting runs a TCP stream across every kind of reconnection of a
// vif.
func TestStreamSurvivesReconnecting(t *testing.T) {
	l := newLab(t, 1, nil)
	l.attach(vifConfig())
	host, err := traffic.ListenTCP(hostAddr + ":0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(l.ctx)
	done := make(chan error, 1)
	go func() { done <- host.Serve(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	sent := make(chan error, 1)
	go func() {
		_, err := l.TCPSend(l.ctx, TCPSendArgs{
			Addr:    host.Addr().String(),
			TCPSend: traffic.TCPSend{Duration: 1500 * time.Millisecond, Rate: 4 << 20},
		})
		sent <- err
	}()
	if _, err := l.Reconnect(l.ctx, ConnectArgs{}); err != nil {
		t.Error(err)
	}
	if _, err := l.Suspend(l.ctx, ConnectArgs{}); err != nil {
		t.Error(err)
	}
	if err := l.Disconnect(l.ctx, ""); err != nil {
		t.Error(err)
	}
	front := netfront.Config{SplitEvents: true, Strict: true}
	info, err := l.Reconnect(l.ctx, ConnectArgs{Front: &front})
	if err != nil || !info.Split {
		t.Errorf("with another configuration: %+v, %v", info, err)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
	l.wellBehaved()
}

// TestBackendCloses detaches the device as libxl does, and resets it as a backend does.
func TestBackendCloses(t *testing.T) {
	for _, c := range []struct {
		name      string
		reconnect bool
		online    string
		want      xenbus.State
	}{
		{"detached", true, "0", xenbus.Closed},
		{"reset", true, "1", xenbus.Connected},
		{"reset, as Linux takes it", false, "1", xenbus.Closed},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t, 1, nil)
			cfg := vifConfig()
			cfg.Reconnect = c.reconnect
			l.attach(cfg)
			l.x.Write(l.x.BackDir(l.domid), "online", c.online, "state", "5")
			last := func() xenbus.State { s := l.back.States(); return s[len(s)-1] }
			for last() != c.want || !slices.Contains(l.back.States(), xenbus.Closed) {
				if _, err := l.Info(l.ctx, ""); err != nil {
					t.Fatalf("backend's states %v: %v", l.back.States(), err)
				}
			}
			if info, err := l.Info(l.ctx, ""); err != nil || info.State != c.want {
				t.Errorf("%+v, %v", info, err)
			}
			if c.want == xenbus.Connected {
				l.reaches()
			}
		})
	}
}

func TestKeysAndStates(t *testing.T) {
	l := newLab(t, 1, nil)
	l.attach(vifConfig())
	for _, k := range []struct {
		args KeyArgs
		want string
	}{
		{KeyArgs{Op: "read", Key: "request-rx-copy"}, "1"},
		{KeyArgs{Op: "read-backend", Key: "feature-sg"}, "1"},
		{KeyArgs{Op: "write", Key: "extra", Value: "word"}, ""},
		{KeyArgs{Op: "read", Key: "extra"}, "word"},
		{KeyArgs{Op: "remove", Key: "extra"}, ""},
		{KeyArgs{Op: "read", Key: "extra"}, ""},
	} {
		if got, err := l.Key(l.ctx, k.args); err != nil || got != k.want {
			t.Errorf("%+v: %q, %v, want %q", k.args, got, err, k.want)
		}
	}
	if _, err := l.Key(l.ctx, KeyArgs{Op: "eat"}); err == nil {
		t.Error("an operation that is none was done")
	}
	if err := l.SetState(l.ctx, "eth0", xenbus.Initialised); err != nil {
		t.Error(err)
	}
	if got, err := l.Key(l.ctx, KeyArgs{Op: "read", Key: "state"}); got != "3" || err != nil {
		t.Errorf("state %q, %v", got, err)
	}
}

func TestMulticast(t *testing.T) {
	l := newLab(t, 1, map[string]string{"feature-multicast-control": "1"})
	cfg := vifConfig()
	cfg.Front.Features = netfront.AllFeatures()
	cfg.Front.Features.MulticastControl = true
	l.attach(cfg)
	const group = "239.1.2.3:7777"
	s, err := l.Join(l.ctx, JoinArgs{Group: group})
	if err != nil {
		t.Fatal(err)
	}
	if m := l.back.Mcast(); !slices.Contains(m, "add 01:00:5e:01:02:03") || !slices.Contains(m, "add 33:33:00:00:00:01") {
		t.Errorf("the backend was asked for %v", m)
	}
	c, err := traffic.DialUDP(l.ctx, group, "vif0")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := traffic.SendUDP(l.ctx, c, traffic.UDPSend{Count: 50, Size: 300, Rate: 5000, NoReport: true}); err != nil {
		t.Fatal(err)
	}
	for {
		rs, err := l.UDPResults(l.ctx, s)
		if err != nil {
			t.Fatal(err)
		}
		if len(rs) == 1 && rs[0].Received == 50 {
			break
		}
	}
	r, err := l.Mcast(l.ctx, McastArgs{Addr: "01:00:5e:7f:ff:fa", Add: true})
	if err != nil || r.Okay != 1 || !slices.Contains(r.List, "01:00:5e:7f:ff:fa") {
		t.Errorf("%+v, %v", r, err)
	}
	r, err = l.Mcast(l.ctx, McastArgs{Addr: "01:00:5e:7f:ff:fa"})
	if err != nil || r.Okay != 1 || slices.Contains(r.List, "01:00:5e:7f:ff:fa") {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := l.Mcast(l.ctx, McastArgs{Addr: "nonsense"}); err == nil {
		t.Error("an address that is none was taken")
	}
	// A new connection has a list of its own.
	before := len(l.back.Mcast())
	if _, err := l.Reconnect(l.ctx, ConnectArgs{}); err != nil {
		t.Fatal(err)
	}
	if m := l.back.Mcast()[before:]; !slices.Contains(m, "add 01:00:5e:01:02:03") {
		t.Errorf("after reconnecting the backend was asked for %v", m)
	}
	l.wellBehaved()
}

func TestRaw(t *testing.T) {
	l := newLab(t, 1, nil)
	cfg := vifConfig()
	cfg.Front.RxPages = 200 // leaves room in the ring
	l.attach(cfg)
	frame := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0x16, 0x3e, 0, 0, 1, 0x88, 0xb5}, make([]byte, 50)...)
	const id = 0x1000
	r, err := l.Raw(l.ctx, RawArgs{Ops: []RawOp{
		{Op: "tx", Ref: "page", Page: frame, RingID: id, Size: 64},
		{Op: "tx", Ref: "bogus", RingID: id + 1, Size: 64},
		{Op: "tx", Ref: "bogus", Offset: 4090, RingID: id + 2, Size: 64, Flags: netif.TxExtraInfo},
		{Op: "extra", Extra: netif.NewMcast(true, [6]byte{1})},
		{Op: "flush"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Grefs) != 3 || r.Grefs[1] != bogusGref || r.Grefs[2] != bogusGref {
		t.Errorf("grefs %v", r.Grefs)
	}
	got := r.Tx
	for len(got) < 3 {
		if r, err = l.Raw(l.ctx, RawArgs{}); err != nil {
			t.Fatal(err)
		}
		got = append(got, r.Tx...)
	}
	want := []netif.TxResponse{{ID: id}, {ID: id + 1, Status: -1}, {ID: id + 2}} // the edit of the multicast list needs no page
	if diff := cmp.Diff(want, got, ignoreBlank); diff != "" {
		t.Errorf("responses (-want +got):\n%s", diff)
	}
	l.reaches()
	l.wellBehaved()
	for _, op := range []RawOp{{Op: "dance"}, {Op: "tx", Ref: "nonsense"}} {
		if _, err := l.Raw(l.ctx, RawArgs{Ops: []RawOp{op}}); err == nil {
			t.Errorf("%+v was done", op)
		}
	}
	if _, err := l.Raw(l.ctx, RawArgs{QueueArgs: QueueArgs{Queue: 7}}); err == nil {
		t.Error("there is a queue 7")
	}
}

// TestGuestDies kills the agent. Its resources are freed, and the next agent starts from
// the beginning.
func TestGuestDies(t *testing.T) {
	l := newLab(t, 1, nil)
	l.attach(vifConfig())
	l.reaches()
	if err := l.Kill(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-l.Done():
	default:
		t.Error("a killed agent lives")
	}
	if _, err := l.Info(l.ctx, ""); !errors.Is(err, ErrEnded) {
		t.Errorf("error %v, want %v", err, ErrEnded)
	}
	var err error
	if l.Client, err = Start(StartOptions{Config: Config{Xen: l.x.Dir, Domid: l.domid, Vifs: []VifConfig{vifConfig()}}}); err != nil {
		t.Fatal(err)
	}
	l.reaches()
}

func TestDo(t *testing.T) {
	l := newLab(t, 1, nil)
	l.attach(vifConfig())
	if err := l.Do(func() error {
		_, err := net.InterfaceByName("eth0")
		return err
	}); err != nil {
		t.Error(err)
	}
	if _, err := net.InterfaceByName("eth0"); err == nil {
		t.Error("eth0 is in our own namespace")
	}
}

func TestStartFails(t *testing.T) {
	netns.Need(t)
	var complaints bytes.Buffer
	if _, err := Start(StartOptions{Config: Config{Xen: t.TempDir()}, Stderr: &complaints}); !errors.Is(err, ErrEnded) {
		t.Errorf("error %v, want %v", err, ErrEnded)
	}
	if complaints.Len() == 0 {
		t.Error("nothing was said")
	}
}

// TestProtocol sends commands to an agent in this process. Most need no domain.
func TestProtocol(t *testing.T) {
	netns.Need(t)
	x := fronttest.NewXen(t)
	domid := x.NewGuest()
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		ended <- Main(t.Context(), Config{Xen: x.Dir, Domid: domid}, inR, outW)
		outW.Close()
	}()
	out := newLines(outR)
	say := func(s string) string {
		t.Helper()
		if _, err := io.WriteString(inW, s+"\n"); err != nil {
			t.Fatal(err)
		}
		return out.next(t)
	}
	if got, want := out.next(t), fmt.Sprintf(`{"id":0,"result":{"pid":%d}}`, os.Getpid()); got != want {
		t.Errorf("first word %s, want %s", got, want)
	}
	for _, c := range []struct{ say, want string }{
		{`{"id":1,"cmd":"dance"}`, `{"id":1,"error":"no such command: dance"}`},
		{`{"id":2,"cmd":"info"}`, `{"id":2,"error":"no vif \"\" is attached"}`},
		{`{"id":3,"cmd":"ping","args":{"addr":"x"}}`, `{"id":3,"error":"ParseAddr(\"x\"): unable to parse IP"}`},
		{`{"id":4,"cmd":"stop","args":{"server":9}}`, `{"id":4,"error":"no server 9"}`},
	} {
		if got := say(c.say); got != c.want {
			t.Errorf("%s\n is answered %s\n want        %s", c.say, got, c.want)
		}
	}
	for _, c := range []struct{ say, want string }{
		{`{"id":5,"cmd":"ping","args":{"count":"many"}}`, `{"id":5,"error":"arguments: `},
		{`nonsense`, `{"id":0,"error":"not a command: `},
	} {
		if got := say(c.say); !strings.HasPrefix(got, c.want) {
			t.Errorf("%s\n is answered %s\n want        %s ...", c.say, got, c.want)
		}
	}
	if got := say(`{"id":7,"cmd":"quit"}`); got != `{"id":7,"result":{}}` {
		t.Errorf("quit is answered %s", got)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	inW.Close()
}

// lines reads lines with a bound.
type lines struct{ ch chan string }

func newLines(r io.Reader) lines {
	l := lines{make(chan string, 100)}
	go func() {
		defer close(l.ch)
		b, rest := make([]byte, 4096), ""
		for {
			n, err := r.Read(b)
			rest += string(b[:n])
			for {
				line, more, ok := strings.Cut(rest, "\n")
				if !ok {
					break
				}
				l.ch <- line
				rest = more
			}
			if err != nil {
				return
			}
		}
	}()
	return l
}

func (l lines) next(t *testing.T) string {
	t.Helper()
	select {
	case s := <-l.ch:
		return s
	case <-time.After(10 * time.Second):
		t.Fatal("the agent says nothing")
		return ""
	}
}

func TestArgs(t *testing.T) {
	front := netfront.Config{Dir: "device/vif/1", Queues: 2, Features: netfront.Features{RxCopy: true}, Keys: map[string]string{"a": "b"}}
	for _, c := range []Config{
		{},
		{Xen: "/run/xen sim", Domid: 65535},
		{Vifs: []VifConfig{{Name: "eth0"}, {Name: "eth1", Addrs: []string{"192.0.2.2/24"}, MTU: 9000, Plain: true, Front: front}}},
		{NoXen: true, Virts: []VirtConfig{{MAC: "02:00:00:00:00:01", Gateway: "192.0.2.1", Front: vhostfront.Config{Socket: "/run/a b", Packed: true, Pairs: 2}}}},
	} {
		got, err := ParseArgs(c.Args(), io.Discard)
		if err != nil {
			t.Errorf("%q: %v", c.Args(), err)
		}
		if diff := cmp.Diff(c, got); diff != "" {
			t.Errorf("%q (-want +got):\n%s", c.Args(), diff)
		}
	}
	for _, args := range [][]string{{"--domid=65536"}, {"--domid=-1"}, {"--vif={"}, {"--vif"}, {"word"}, {"--nonsense"}} {
		if _, err := ParseArgs(args, io.Discard); err == nil {
			t.Errorf("%q was taken", args)
		}
	}
	if _, err := ParseArgs([]string{"--help"}, io.Discard); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("--help: %v", err)
	}
}

func TestParseMulticastList(t *testing.T) {
	const text = "2    eth0            1     0     01005e000001\n" +
		"2    eth0            1     0     333300000001\n" +
		"3    eth1            1     0     333300000002\n" +
		"2    eth0            2     0     333300000001\n" +
		"broken line\n2 eth0 1 0 zz\n2 eth0 1 0 0100\n"
	want := [][6]byte{{0x01, 0x00, 0x5e, 0, 0, 1}, {0x33, 0x33, 0, 0, 0, 1}}
	if diff := cmp.Diff(want, parseMulticastList(text, "eth0")); diff != "" {
		t.Errorf("list (-want +got):\n%s", diff)
	}
}

// FuzzParseMulticastList parses any text. The kernel writes the file, but a process chooses
// the devices' names in it.
func FuzzParseMulticastList(f *testing.F) {
	f.Add("2    eth0            1     0     01005e000001\n", "eth0")
	fuzzloop.Fuzz(f, func(t *testing.T, text, name string) {
		if n := len(parseMulticastList(text, name)); n > strings.Count(text, "\n")+1 {
			t.Fatalf("%d addresses", n)
		}
	})
}

// ignoreBlank leaves out the fields that only pad a struct.
var ignoreBlank = cmp.FilterPath(func(p cmp.Path) bool {
	f, ok := p.Last().(cmp.StructField)
	return ok && f.Name() == "_"
}, cmp.Ignore())
