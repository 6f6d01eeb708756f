// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/netbackd/netbackd/internal/lab"
	"github.com/netbackd/netbackd/internal/lab/guest"
	"github.com/netbackd/netbackd/internal/lab/traffic"
	"github.com/netbackd/netbackd/internal/lab/xensim/simclient"
	"github.com/netbackd/netbackd/internal/vif"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntalloc"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// rawFront is a frontend that the test plays itself: rings without traffic, with any keys
// and states.
//
// It writes its directory as dom0, since xenstored limits a guest's write rate. For netbackd
// there is no difference.
type rawFront struct {
	w      *world
	domid  xen.Domid
	devid  int
	pages  *simclient.Pages
	events *simclient.Events
	queues []rawQueue
	wrote  []string // keys of the last publish
}

// rawQueue are one queue's rings and channels.
type rawQueue struct {
	rings          *gntalloc.Pages // tx, then rx
	tx             *netif.TxFront
	rx             *netif.RxFront
	txPort, rxPort evtchn.Port
}

// rawFront makes a domain with a vif that is plugged into the bridge, and rings.
func (w *world) rawFront(queues int, opts ...option) *rawFront {
	w.t.Helper()
	domid := w.domain(opts...)
	cfg := w.vifConfig(opts...)
	w.must(w.Attach(w.ctx, domid, cfg))
	f := w.join(domid, cfg.Devid)
	f.newRings(queues)
	return f
}

// domain makes a domain without devices.
func (w *world) domain(opts ...option) xen.Domid {
	w.t.Helper()
	cfg := config(w.guests, opts...)
	w.guests++
	if cfg.Domain.GntallocLimit == 0 {
		cfg.Domain.GntallocLimit = 8192
	}
	domid, err := w.CreateDomain(w.ctx, cfg.Name, cfg.Domain)
	w.must(err)
	return domid
}

// join plays the frontend of an existing vif.
func (w *world) join(domid xen.Domid, devid int) *rawFront {
	w.t.Helper()
	f := &rawFront{w: w, domid: domid, devid: devid}
	conn, err := w.Join(domid)
	w.must(err)
	w.t.Cleanup(func() { _ = conn.Close() })
	f.pages, err = conn.Pages()
	w.must(err)
	w.t.Cleanup(func() { _ = f.pages.Close() })
	f.events, err = conn.Events()
	w.must(err)
	w.t.Cleanup(func() { _ = f.events.Close() })
	return f
}

func (f *rawFront) name() string    { return xenbus.VifID{Domid: f.domid, Devid: f.devid}.String() }
func (f *rawFront) back() string    { return f.w.BackPath(f.domid, f.devid) }
func (f *rawFront) dir() string     { return f.w.FrontPath(f.domid, f.devid) }
func (f *rawFront) errNode() string { return errNode(f.domid, f.devid) }

// in returns the frontend for use in a subtest of w.
func (f *rawFront) in(w *world) *rawFront {
	sub := *f
	sub.w = w
	w.t.Cleanup(func() { f.wrote = sub.wrote })
	return &sub
}

// newRings makes rings for this many queues. Earlier rings stay as they are.
func (f *rawFront) newRings(queues int) {
	f.w.t.Helper()
	f.queues = nil
	for range queues {
		var q rawQueue
		var err error
		q.rings, err = f.pages.Alloc(0, 2, true)
		f.w.must(err)
		q.tx, err = netif.InitTx(q.rings.Bytes()[:netif.PageSize])
		f.w.must(err)
		q.rx, err = netif.InitRx(q.rings.Bytes()[netif.PageSize:])
		f.w.must(err)
		q.txPort, err = f.events.BindUnbound(0)
		f.w.must(err)
		q.rxPort, err = f.events.BindUnbound(0)
		f.w.must(err)
		f.queues = append(f.queues, q)
	}
}

// keys returns the keys of a well-behaved frontend.
func (f *rawFront) keys() map[string]string {
	k := map[string]string{
		"request-rx-copy":   "1",
		"feature-rx-notify": "1",
		"feature-sg":        "1",
	}
	prefix := func(int) string { return "" }
	if len(f.queues) > 1 {
		k["multi-queue-num-queues"] = strconv.Itoa(len(f.queues))
		prefix = func(i int) string { return fmt.Sprintf("queue-%d/", i) }
	}
	for i, q := range f.queues {
		p := prefix(i)
		k[p+"tx-ring-ref"] = fmt.Sprint(q.rings.Refs()[0])
		k[p+"rx-ring-ref"] = fmt.Sprint(q.rings.Refs()[1])
		k[p+"event-channel-tx"] = fmt.Sprint(q.txPort)
		k[p+"event-channel-rx"] = fmt.Sprint(q.rxPort)
	}
	return k
}

// with returns keys with some of them changed, or removed if their value is gone.
func (f *rawFront) with(changes map[string]string) map[string]string {
	k := f.keys()
	for key, v := range changes {
		if v == gone {
			delete(k, key)
		} else {
			k[key] = v
		}
	}
	return k
}

// gone is the value of a missing node.
const gone = "\x00gone"

// offer publishes exactly these keys and goes to a state, in one transaction.
func (f *rawFront) offer(keys map[string]string, state xenbus.State) {
	f.w.t.Helper()
	f.w.must(f.w.Store().Transaction(f.w.ctx, func(tx *xenstore.Tx) error {
		for _, k := range f.wrote {
			if _, still := keys[k]; still {
				continue
			}
			if err := tx.Remove(f.w.ctx, f.dir()+"/"+k); err != nil && !errors.Is(err, xenstore.ErrNotExist) {
				return err
			}
		}
		for k, v := range keys {
			if err := tx.Write(f.w.ctx, f.dir()+"/"+k, v); err != nil {
				return err
			}
		}
		return tx.Write(f.w.ctx, f.dir()+"/state", state.Value())
	}))
	f.wrote = slices.Collect(maps.Keys(keys))
}

// state writes the frontend's state.
func (f *rawFront) state(s xenbus.State) {
	f.w.t.Helper()
	f.w.must(f.w.Store().Write(f.w.ctx, f.dir()+"/state", s.Value()))
}

// waitBack waits until the backend is in one of the states.
func (f *rawFront) waitBack(states ...xenbus.State) {
	f.w.t.Helper()
	f.w.waitBack(f.domid, f.devid, states...)
}

func (w *world) waitBack(domid xen.Domid, devid int, states ...xenbus.State) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.ctx, patience)
	defer cancel()
	w.must(w.BackState(ctx, domid, devid, states...))
}

// connect connects as a well-behaved frontend does.
func (f *rawFront) connect() {
	f.w.t.Helper()
	f.offer(f.keys(), xenbus.Connected)
	f.waitBack(xenbus.Connected)
}

// close disconnects as a driver that is unloaded does.
func (f *rawFront) close() {
	f.w.t.Helper()
	f.state(xenbus.Closing)
	f.waitBack(xenbus.Closing, xenbus.Closed)
	f.state(xenbus.Closed)
	f.waitBack(xenbus.Closed)
}

// closesWhenAsked makes the frontend close as soon as its backend goes to Closing. The channel
// has the result.
func (f *rawFront) closesWhenAsked() <-chan error {
	done := make(chan error, 1)
	go func() {
		err := f.w.BackState(f.w.ctx, f.domid, f.devid, xenbus.Closing)
		if err == nil {
			err = f.w.Store().Write(f.w.ctx, f.dir()+"/state", xenbus.Closed.Value())
		}
		done <- err
	}()
	return done
}

// reopen goes back to Initialising after close and waits for the backend.
func (f *rawFront) reopen() {
	f.w.t.Helper()
	f.state(xenbus.Initialising)
	f.waitBack(xenbus.InitWait)
}

// status asks the daemon for the vif's status.
func (f *rawFront) status() *vif.Status {
	f.w.t.Helper()
	s, err := f.w.Vif(f.w.ctx, f.name())
	f.w.must(err)
	return s
}

// connected checks that the vif has mapped all rings and bound all event channels.
func (f *rawFront) connected() {
	f.w.t.Helper()
	s := f.status()
	if s.State != xenbus.Connected || s.Grants != 2*len(f.queues) || s.Ports != 2*len(f.queues) || s.Quarantine != "" {
		f.w.t.Errorf("%s with %d queues: %v, %d pages mapped, %d channels bound, quarantine %q",
			f.name(), len(f.queues), s.State, s.Grants, s.Ports, s.Quarantine)
	}
}

// vifConfig returns the vif of a domain that was just made.
func (w *world) vifConfig(opts ...option) lab.VifConfig { return config(w.guests-1, opts...).Vif }

// errNode returns the path of a vif's error node.
func errNode(domid xen.Domid, devid int) string {
	return xenbus.VifID{Domid: domid, Devid: devid}.ErrorPath(xen.Dom0)
}

// read returns the value of a node, or absent for a missing node.
func (w *world) read(path string) string {
	w.t.Helper()
	v, err := w.Store().Read(w.ctx, path)
	if errors.Is(err, xenstore.ErrNotExist) {
		return absent
	}
	w.must(err)
	return v
}

const absent = "none"

// waitError waits until the error node of a vif contains what.
func (w *world) waitError(domid xen.Domid, devid int, what string) {
	w.t.Helper()
	w.wait(fmt.Sprintf("an error with %q", what), func() bool {
		return strings.Contains(w.read(errNode(domid, devid)), what)
	})
}

// unpinned waits until no page of the domain is mapped.
func (w *world) unpinned(domid xen.Domid) {
	w.t.Helper()
	w.wait(fmt.Sprintf("all pages of domain %d to be let go", domid), func() bool {
		d, err := w.Domain(domid)
		return err != nil || d.Pins == 0 && d.GrantsInUse == 0
	})
}

// domainGone waits until the hypervisor has removed the domain, which stays a zombie as
// long as a page of it is mapped.
func (w *world) domainGone(domid xen.Domid) {
	w.t.Helper()
	w.wait(fmt.Sprintf("domain %d to be no zombie", domid), func() bool {
		_, err := w.Domain(domid)
		return err != nil
	})
}

// vifGone waits until a vif is removed: from the daemon's list, its interface, its journal
// and its error node.
func (w *world) vifGone(domid xen.Domid, devid int) {
	w.t.Helper()
	name := xenbus.VifID{Domid: domid, Devid: devid}.String()
	w.wait(name+" to be forgotten", func() bool {
		_, err := w.Vif(w.ctx, name)
		return err != nil
	})
	w.noInterface(domid, devid)
	if j := w.journals(domid, devid); len(j) > 0 {
		w.t.Errorf("journals of %s are left: %v", name, j)
	}
	if e := w.read(errNode(domid, devid)); e != absent {
		w.t.Errorf("error node of %s is left: %q", name, e)
	}
}

// noInterface checks that a vif has no TAP under any name.
func (w *world) noInterface(domid xen.Domid, devid int) {
	w.t.Helper()
	if l := w.link(domid, devid); l != nil {
		w.t.Errorf("the interface %s of vif%d.%d is left", l.Attrs().Name, domid, devid)
	}
}

// link returns the TAP of a vif, or nil if there is none. Scripts rename it, so link finds
// it by its second name.
func (w *world) link(domid xen.Domid, devid int) netlink.Link {
	l, err := netlink.LinkByName(fmt.Sprintf("netbackd-vif%d.%d", domid, devid))
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	w.must(err)
	return l
}

// journals returns the files that the daemon keeps for a vif.
func (w *world) journals(domid xen.Domid, devid int) []string {
	found, err := filepath.Glob(filepath.Join(w.RunDir(), fmt.Sprintf("ring-%d.%d-*", domid, devid)))
	w.must(err)
	for i := range found {
		found[i] = filepath.Base(found[i])
	}
	return found
}

// books counts the pages and channels that netbackd holds, as the hypervisor sees them.
type books struct{ Maps, Interdomain int }

func (w *world) books() books {
	w.t.Helper()
	d, err := w.Domain(0)
	w.must(err)
	return books{d.Maps, d.Interdomain}
}

// waitBooks waits until netbackd holds exactly these numbers.
func (w *world) waitBooks(want books) {
	w.t.Helper()
	var got books
	w.wait(fmt.Sprintf("the hypervisor's books to say %+v", want), func() bool {
		got = w.books()
		return got == want
	})
}

// recorder records the values of a node that a watch shows, in order. Some values may be
// missing.
type recorder struct {
	w    *world
	path string

	mu   sync.Mutex
	seen []string // guarded by mu
}

// record starts a recorder. It ends with the test.
func (w *world) record(path string) *recorder {
	w.t.Helper()
	r := &recorder{w: w, path: path}
	watch, err := w.Store().Watch(w.ctx, path)
	w.must(err)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for range watch.C() {
			v, err := w.Store().Read(w.ctx, path)
			if errors.Is(err, xenstore.ErrNotExist) {
				v = absent
			} else if err != nil {
				return
			}
			r.mu.Lock()
			if n := len(r.seen); n == 0 || r.seen[n-1] != v {
				r.seen = append(r.seen, v)
			}
			r.mu.Unlock()
		}
	}()
	w.t.Cleanup(func() {
		watch.Close()
		<-ended
	})
	return r
}

// values returns the values up to the current one, which it waits for.
func (r *recorder) values() []string {
	r.w.t.Helper()
	r.w.wait("the watch of "+r.path, func() bool {
		now := r.w.read(r.path)
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.seen) > 0 && r.seen[len(r.seen)-1] == now
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.seen)
}

// logged counts the lines of the daemon's log that contain all of the texts.
func (w *world) logged(texts ...string) int { return countLines(w.Daemon().Log(), texts) }

// waitLogged waits for such a line.
func (w *world) waitLogged(texts ...string) {
	w.t.Helper()
	w.wait(fmt.Sprintf("a log line with %q", texts), func() bool { return w.logged(texts...) > 0 })
}

// streaming sends a stream from the guest to the host in the background. The returned
// function waits for its end and checks that it arrived whole.
func (g *testGuest) streaming(n int64) (whole func()) {
	return g.w.inBackground(n, func() (traffic.TCPResult, error) {
		return g.TCPSend(g.w.ctx, guest.TCPSendArgs{Addr: hostIP + tcpPort, TCPSend: traffic.TCPSend{Bytes: n, Seed: 7}})
	})
}

// streamed is like streaming from the host to the guest.
func (g *testGuest) streamed(n int64) (whole func()) {
	return g.w.inBackground(n, func() (traffic.TCPResult, error) {
		c, err := traffic.DialTCP(g.w.ctx, g.ip+tcpPort)
		if err != nil {
			return traffic.TCPResult{}, err
		}
		return traffic.SendTCP(g.w.ctx, c, traffic.TCPSend{Bytes: n, Seed: 9})
	})
}

func (w *world) inBackground(n int64, send func() (traffic.TCPResult, error)) (whole func()) {
	type outcome struct {
		r   traffic.TCPResult
		err error
	}
	ended := make(chan outcome, 1)
	go func() {
		r, err := send()
		ended <- outcome{r, err}
	}()
	return func() {
		w.t.Helper()
		o := <-ended
		w.must(o.err)
		w.whole(o.r, n)
	}
}

// flooded sends packets to the guest until the returned function is called. It does not
// count them.
func (g *testGuest) flooded() (stop func()) {
	ctx, cancel := context.WithCancel(g.w.ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for ctx.Err() == nil {
			c, err := traffic.DialUDP(ctx, g.ip+udpPort, "")
			if err != nil {
				continue // the guest is not reachable at the moment
			}
			_, _ = traffic.SendUDP(ctx, c, traffic.UDPSend{Count: 200, Size: 1000, Rate: 20000, NoReport: true})
		}
	}()
	return sync.OnceFunc(func() {
		cancel()
		<-ended
	})
}

// pinged pings from the host. No packet may be lost.
func (w *world) pinged(ip string, n, size int) {
	w.t.Helper()
	p, err := traffic.DialPing(netip.MustParseAddr(ip))
	w.must(err)
	defer func() { _ = p.Close() }()
	r, err := p.Ping(w.ctx, traffic.PingOptions{Count: n, Size: size, Interval: time.Millisecond, Timeout: 5 * time.Second})
	w.must(err)
	if r.Received != n || r.Corrupt != 0 {
		w.t.Fatalf("ping %s: %d of %d came back, %d corrupt", ip, r.Received, n, r.Corrupt)
	}
}

// said holds a command's output and exit code.
type said struct {
	out, err string
	code     int
}

// netbackd runs a command of netbackd: of the installed program, unless it is the daemon.
func netbackd(ctx context.Context, args ...string) said {
	if args[0] == "run" {
		return command(ctx, exe, args...)
	}
	return command(ctx, installed, args...)
}

func command(ctx context.Context, name string, args ...string) said {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0")
	err := cmd.Run()
	s := said{out: out.String(), err: errs.String()}
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		s.code = exit.ExitCode()
	case err != nil:
		s.code, s.err = -1, err.Error()
	}
	return s
}

// ask runs a command against the world's daemon.
func (w *world) ask(args ...string) said {
	return netbackd(w.ctx, append(args, "--run-dir", w.RunDir())...)
}

// lineBuffer collects the output of a process in the background.
type lineBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer // guarded by mu
}

func (b *lineBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

// has reports whether there is a line with all of the texts.
func (b *lineBuffer) has(texts ...string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return countLines(b.buf.String(), texts) > 0
}

// countLines counts the lines that contain all of the texts.
func countLines(s string, texts []string) (n int) {
	for line := range strings.Lines(s) {
		if !slices.ContainsFunc(texts, func(t string) bool { return !strings.Contains(line, t) }) {
			n++
		}
	}
	return n
}

// process holds the kernel's statistics of a process.
type process struct {
	fds, maps, threads int
	rss                int   // KiB
	switches           int64 // voluntary, of all threads
}

func (w *world) process(pid int) (p process) {
	w.t.Helper()
	at := func(name string) string { return fmt.Sprintf("/proc/%d/%s", pid, name) }
	fds, err := os.ReadDir(at("fd"))
	w.must(err)
	p.fds = len(fds)
	maps, err := os.ReadFile(at("maps"))
	w.must(err)
	p.maps = bytes.Count(maps, []byte{'\n'})
	p.rss = int(w.statusField(at("status"), "VmRSS:"))
	tasks, err := os.ReadDir(at("task"))
	w.must(err)
	p.threads = len(tasks)
	for _, t := range tasks {
		p.switches += w.statusField(at("task/"+t.Name()+"/status"), "voluntary_ctxt_switches:")
	}
	return p
}

// statusField returns a number in a status file of the kernel, 0 if the thread has
// ended.
func (w *world) statusField(path, field string) int64 {
	w.t.Helper()
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return 0
	}
	w.must(err)
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, field); ok {
			n, err := strconv.ParseInt(strings.Fields(v)[0], 10, 64)
			w.must(err)
			return n
		}
	}
	w.t.Fatalf("%s has no %s", path, field)
	return 0
}

// newPlainWorld returns a world of programs without the race detector, for scenarios that
// measure: the detector multiplies memory use and slows everything down.
func newPlainWorld(t *testing.T, daemon ...string) *world {
	t.Helper()
	plain := exe + "-plain"
	if _, err := os.Stat(plain); err != nil && exe != "" {
		cmd := exec.Command("go", "build", "-o", plain, "github.com/netbackd/netbackd/cmd/netbackd-lab")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if said, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build netbackd: %v\n%s", err, said)
		}
	}
	tested := exe
	defer func() { exe = tested }()
	exe = plain
	return newWorld(t, daemon...)
}

// times are measured times, for a test to print and to bound.
type times []time.Duration

// at returns the quantile part of the times.
func (d times) at(part float64) time.Duration {
	s := slices.SortedFunc(slices.Values(d), cmp.Compare[time.Duration])
	return s[min(int(part*float64(len(s))), len(s)-1)]
}

func (d times) String() string {
	return fmt.Sprintf("median %v, 90%% within %v, longest %v of %d", d.at(0.5).Round(10*time.Microsecond),
		d.at(0.9).Round(10*time.Microsecond), d.at(1).Round(10*time.Microsecond), len(d))
}

// in returns the world for use in a subtest.
func (w *world) in(t *testing.T) *world {
	sub := *w
	sub.t = t
	t.Cleanup(func() { w.guests = sub.guests })
	return &sub
}

// linkNames returns the interfaces of this network, in order.
func linkNames(t *testing.T) (names []string) {
	t.Helper()
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		names = append(names, l.Attrs().Name)
	}
	slices.Sort(names)
	return names
}
