// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/lab"
	"github.com/netbackd/netbackd/internal/lab/guest"
	"github.com/netbackd/netbackd/internal/vif"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// serving waits until the present daemon serves the guest.
func (g *testGuest) serving() *vif.Status {
	g.w.t.Helper()
	return g.waitStatus("the successor to serve", func(s *vif.Status) bool { return s.State == xenbus.Connected && len(s.Queues) > 0 })
}

// TestKilledUnderTrafficAndStartedAgain: the daemon is killed during a stream and started
// again. The guest does not notice, and the stream arrives whole.
func TestKilledUnderTrafficAndStartedAgain(t *testing.T) {
	w := newWorld(t)
	g := w.guest()
	before := g.status()
	var whole []func()
	for range 3 {
		whole = append(whole, g.streaming(24<<20)) // the one before may have ended
		g.waitCounter(dataplane.TxBytes, 1<<20)
		w.Daemon().Kill()
		w.must(w.StartDaemon(w.ctx))
		g.serving()
	}
	for _, f := range whole {
		f()
	}
	g.innocentAfterKill()
	if after := g.status(); after.Interface != before.Interface || !after.Carrier {
		t.Errorf("interface %s carrier %t after, %s before", after.Interface, after.Carrier, before.Interface)
	}
}

// TestKilledAgainAndAgainWithFourQueuesBothWays repeatedly kills the daemon at a random
// instruction, under traffic in both directions on four queues.
func TestKilledAgainAndAgainWithFourQueuesBothWays(t *testing.T) {
	w := newWorld(t)
	g := w.guest(queues(4))
	state := w.record(w.BackPath(g.Domid, g.Devid) + "/state")
	index := w.link(g.Domid, g.Devid).Attrs().Index
	var streams []func()
	for range 3 {
		streams = append(streams, g.streaming(24<<20), g.streamed(24<<20))
	}
	var away times
	for range 6 {
		streams = append(streams, g.streaming(4<<20), g.streamed(4<<20)) // those before may have ended
		g.waitCounter(dataplane.TxBytes, 1<<20)
		g.waitCounter(dataplane.RxBytes, 1<<20)
		if n := len(w.journals(g.Domid, g.Devid)); n != 4 {
			t.Errorf("%d journals with 4 queues", n)
		}
		w.Daemon().Kill()
		begin := time.Now()
		w.must(w.StartDaemon(w.ctx))
		g.serving()
		away = append(away, time.Since(begin))
	}
	for _, whole := range streams {
		whole()
	}
	t.Logf("from the kill until served again: %v", away)
	g.innocentAfterKill()
	g.pings(5)
	if got := state.values(); !slices.Equal(got, []string{"4"}) {
		t.Errorf("the guest was told: the backend went %v", got)
	}
	if l := w.link(g.Domid, g.Devid); l == nil || l.Attrs().Index != index {
		t.Error("the interface is another one")
	}
	if d, err := w.Domain(g.Domid); err != nil || d.Pins != 8 {
		t.Errorf("%d pages of the guest mapped (%v), want 8", d.Pins, err)
	}
	_, err := w.Detach(w.ctx, g.Domid, g.Devid)
	w.must(err)
	w.vifGone(g.Domid, g.Devid)
	w.unpinned(g.Domid)
}

// TestStoppedUnderTrafficAndStartedAgain: for the guest an orderly stop is like a kill. The
// daemon ends at once.
func TestStoppedUnderTrafficAndStartedAgain(t *testing.T) {
	w := newWorld(t)
	g := w.guest(queues(2))
	there, back := g.streaming(48<<20), g.streamed(48<<20)
	for range 3 {
		g.waitCounter(dataplane.TxBytes, 1<<20)
		begin := time.Now()
		w.must(w.Daemon().Stop())
		if d := time.Since(begin); d > 3*time.Second {
			t.Errorf("it took %v to stop", d)
		}
		if n := len(w.journals(g.Domid, g.Devid)); n != 2 {
			t.Errorf("%d journals left for the successor, want 2", n)
		}
		if b := w.books(); b != (books{}) {
			t.Errorf("after its end the daemon holds %+v", b)
		}
		if w.link(g.Domid, g.Devid) == nil {
			t.Fatal("the interface went with the daemon")
		}
		w.must(w.StartDaemon(w.ctx))
		g.serving()
	}
	there()
	back()
	g.innocent()
}

// TestStoppedByInterrupt: a daemon that was started by hand gets SIGINT.
func TestStoppedByInterrupt(t *testing.T) {
	w := newWorld(t)
	g := w.guest()
	w.Daemon().Signal(syscall.SIGINT)
	<-w.Daemon().Done()
	if w.logged("stopped") != 1 {
		t.Error("it did not say that it stopped")
	}
	w.must(w.StartDaemon(w.ctx))
	g.serving()
	g.pings(3)
}

// TestKilledWhilePacketsWaitForRxSlots: packets that wait in the daemon for rx slots are
// lost when it is killed. Later ones arrive.
func TestKilledWhilePacketsWaitForRxSlots(t *testing.T) {
	w := newWorld(t, "--rx-drain=1m", "--rx-stall=1m")
	g := w.guest()
	raw := func(ops ...guest.RawOp) {
		t.Helper()
		_, err := g.Raw(w.ctx, guest.RawArgs{Ops: ops})
		w.must(err)
	}
	for range 3 {
		whole := g.streamed(16 << 20)
		raw(guest.RawOp{Op: "rx-target", Value: 0})
		g.waitStatus("packets to wait", func(s *vif.Status) bool { return len(s.Queues) == 1 && s.Queues[0].Held > 0 })
		w.Daemon().Kill()
		w.must(w.StartDaemon(w.ctx))
		g.serving()
		raw(guest.RawOp{Op: "rx-target", Value: 256}, guest.RawOp{Op: "flush"})
		whole()
	}
	g.pings(5)
	g.innocentAfterKill()
}

// TestWorldGoesOnWithoutTheDaemon: while the daemon is down, guests are created, close,
// reboot, are detached and destroyed. The daemon finds all these changes when it starts.
func TestWorldGoesOnWithoutTheDaemon(t *testing.T) {
	w := newWorld(t)
	same, closed, closing, reloaded, suspended := w.rawFront(2), w.rawFront(2), w.rawFront(1), w.rawFront(1), w.rawFront(3)
	detached, destroyed, removed, frontless, destroyedLater := w.rawFront(2), w.rawFront(2), w.rawFront(2), w.rawFront(1), w.rawFront(1)
	waiting := w.rawFront(1, script(lab.NoScript))
	all := []*rawFront{same, closed, closing, reloaded, suspended, detached, destroyed, removed, frontless, destroyedLater}
	for _, f := range all {
		f.connect()
	}
	w.Daemon().Kill()

	closed.state(xenbus.Closed)
	closing.state(xenbus.Closing)
	reloaded.state(xenbus.Initialising)
	suspended.newRings(1)
	suspended.offer(suspended.keys(), xenbus.Connected)
	waiting.offer(waiting.keys(), xenbus.Connected)
	w.must(w.Store().Write(w.ctx, waiting.back()+"/hotplug-status", "connected"))
	w.must(w.Hypervisor().Destroy(destroyed.domid))
	w.must(w.Store().Remove(w.ctx, removed.back()))
	w.must(w.Store().Remove(w.ctx, frontless.dir()))
	w.must(w.Hypervisor().Destroy(destroyedLater.domid))
	w.must(w.Store().Remove(w.ctx, destroyedLater.back()))
	took := make(chan time.Duration, 1)
	go func() {
		d, err := w.Detach(w.ctx, detached.domid, detached.devid)
		if err != nil {
			t.Error(err)
		}
		took <- d
	}()
	w.wait("the toolstack to ask for the detach", func() bool { return w.read(detached.back()+"/online") == "0" })
	created := w.domain()
	attached := make(chan error, 1)
	newVif := w.vifConfig()
	go func() { attached <- w.Attach(w.ctx, created, newVif) }()
	w.wait("the toolstack to make a vif", func() bool { return w.read(w.BackPath(created, 0)+"/state") == "1" })

	w.must(w.StartDaemon(w.ctx))
	closed.waitBack(xenbus.Closed)
	closing.waitBack(xenbus.Closing)
	reloaded.waitBack(xenbus.InitWait)
	suspended.waitBack(xenbus.Connected)
	w.wait("the other rings to be served", func() bool { return suspended.status().Grants == 2 })
	waiting.waitBack(xenbus.Connected)
	waiting.connected()
	w.wait("the rings that stayed to be served", func() bool { return same.status().Grants == 4 })
	same.connected()
	w.domainGone(destroyed.domid)
	w.domainGone(destroyedLater.domid)
	for _, f := range []*rawFront{removed, destroyedLater} {
		// The kernel may hold files of a process that was killed for a while.
		w.wait("the interface to be gone", func() bool { return w.link(f.domid, f.devid) == nil })
		w.vifGone(f.domid, f.devid)
		if v := w.read(f.back()); v != absent {
			t.Errorf("%s is back: %q", f.back(), v)
		}
	}
	for _, f := range []*rawFront{destroyed, frontless} {
		f.waitBack(xenbus.Closed)
		w.wait("the interface to be gone", func() bool { return w.link(f.domid, f.devid) == nil })
		if j := w.journals(f.domid, f.devid); len(j) > 0 {
			t.Errorf("journals of %s are left: %v", f.name(), j)
		}
	}
	t.Logf("detached %v after it was asked for", (<-took).Round(time.Millisecond))
	w.vifGone(detached.domid, detached.devid)
	for _, f := range []*rawFront{closed, closing, reloaded, detached, removed} {
		w.unpinned(f.domid)
	}
	w.must(<-attached)
	f := w.join(created, 0)
	f.newRings(2)
	f.connect()
	f.connected()
	for _, f := range []*rawFront{closed, reloaded} {
		f.reopen()
		f.connect()
		f.connected()
	}
}

// TestFirstStartWithGuestsThatAreThereAlready: the daemon starts late and without a run
// directory. It finds the guests that wait for it.
func TestFirstStartWithGuestsThatAreThereAlready(t *testing.T) {
	w := newWorld(t)
	w.must(w.Daemon().Stop())
	w.must(os.RemoveAll(w.RunDir()))
	const n = 4
	attached := make(chan error, n)
	domids := make([]xen.Domid, n)
	for i := range domids {
		domids[i] = w.domain()
		v := w.vifConfig()
		go func() { attached <- w.Attach(w.ctx, domids[i], v) }()
		w.wait("the toolstack to make a vif", func() bool { return w.read(w.BackPath(domids[i], 0)+"/state") == "1" })
	}
	begin := time.Now()
	w.must(w.StartDaemon(w.ctx))
	for range domids {
		w.must(<-attached)
	}
	t.Logf("%d vifs are ready %v after the start", n, time.Since(begin).Round(time.Millisecond))
	for _, d := range domids {
		f := w.join(d, 0)
		f.newRings(1)
		f.connect()
		f.connected()
	}
}

// TestJournalIsGarbage: a journal may have any content after a crash of the machine. The
// daemon still serves the vif.
func TestJournalIsGarbage(t *testing.T) {
	w := newWorld(t)
	for name, damage := range map[string]func(path string) error{
		"empty":     func(p string) error { return os.Truncate(p, 0) },
		"cut off":   func(p string) error { return os.Truncate(p, 100) },
		"noise":     func(p string) error { return os.WriteFile(p, []byte(strings.Repeat("\xa5\x5a\xff", 3000)), 0o600) },
		"gone":      os.Remove,
		"too large": func(p string) error { return os.Truncate(p, 1<<20) },
	} {
		t.Run(name, func(t *testing.T) {
			w := w.in(t)
			g := w.guest()
			g.pings(3)
			w.Daemon().Kill()
			for _, j := range w.journals(g.Domid, g.Devid) {
				w.must(damage(w.RunDir() + "/" + j))
			}
			w.must(w.StartDaemon(w.ctx))
			g.serving()
			g.pings(3)
			g.tcpToHost(1 << 20)
			g.innocentAfterKill()
		})
	}
}

// TestSecondDaemonRefusesToStart: a second netbackd refuses to start, and the running one is
// not disturbed.
func TestSecondDaemonRefusesToStart(t *testing.T) {
	w := newWorld(t)
	w.undisturbed(func() {
		s := w.ask("run", "--xen", w.XenDir())
		if s.code != 1 || !oneLine(s.err) || !strings.Contains(s.err, "another netbackd") || !strings.Contains(s.err, w.RunDir()) {
			t.Errorf("exit code %d, it said %q", s.code, s.err)
		}
	})
	if d, err := w.Control().Daemon(w.ctx); err != nil || d.PID != w.Daemon().PID() {
		t.Errorf("at the socket answers %d (%v), not %d", d.PID, err, w.Daemon().PID())
	}
}

// TestSecondDaemonWithARunDirectoryOfItsOwn: a second daemon with another run directory
// cannot detect the first. It finds the devices in use, names their holder, and does not
// change them.
func TestSecondDaemonWithARunDirectoryOfItsOwn(t *testing.T) {
	w := newWorld(t)
	g := w.guest(queues(2))
	f := w.rawFront(1)
	f.connect()
	first := w.Daemon()
	index := w.link(g.Domid, g.Devid).Attrs().Index
	before := w.books()
	whole := g.streaming(32 << 20)
	dir := t.TempDir()
	second := exec.CommandContext(w.ctx, exe, "run", "--xen", w.XenDir(), "--run-dir", dir)
	second.Cancel = func() error { return second.Process.Signal(syscall.SIGTERM) }
	var log lineBuffer
	second.Stderr = &log
	w.must(second.Start())
	for _, name := range []string{g.VifName(), f.name()} {
		w.wait("the second daemon to say what is wrong", func() bool {
			return log.has(name, "in use", fmt.Sprint(first.PID()))
		})
	}
	w.must(second.Process.Signal(syscall.SIGTERM))
	w.must(second.Wait())
	whole()
	g.pings(3)
	g.innocent()
	f.connected()
	if l := w.link(g.Domid, g.Devid); l == nil || l.Attrs().Index != index {
		t.Error("the interface is another one, or gone")
	}
	w.waitBooks(before)
	if n := w.logged("disconnected"); n > 0 {
		t.Error("the first daemon lost a vif to the second")
	}
}

func oneLine(s string) bool { return strings.Count(s, "\n") == 1 && strings.HasPrefix(s, "netbackd: ") }

// TestDaemonThatCannotStart: a daemon that cannot start prints the reason in one line,
// returns an exit code for it, and leaves nothing behind.
func TestDaemonThatCannotStart(t *testing.T) {
	w := newWorld(t)
	w.must(w.Daemon().Stop())
	w.must(os.RemoveAll(w.RunDir()))
	readOnly := t.TempDir()
	w.must(unix.Mount("tmpfs", readOnly, "tmpfs", unix.MS_RDONLY, ""))
	t.Cleanup(func() { _ = unix.Unmount(readOnly, unix.MNT_DETACH) })
	file := t.TempDir() + "/file"
	w.must(os.WriteFile(file, nil, 0o600))
	good := []string{"run", "--xen", w.XenDir(), "--run-dir", w.RunDir()}
	with := func(args ...string) []string { return append(slices.Clone(good), args...) }
	for _, c := range []struct {
		name string
		args []string
		mask string // the mount that hides /dev/net
		code int
		says []string
	}{
		{name: "the run directory cannot be written", args: with("--run-dir", readOnly), code: 1, says: []string{readOnly}},
		{name: "the run directory cannot be made", args: with("--run-dir", readOnly+"/x"), code: 1, says: []string{readOnly}},
		{name: "the run directory is a file", args: with("--run-dir", file), code: 1, says: []string{file}},
		{name: "no Xen", args: with("--xen", "/dev/no-xen"), code: 1, says: []string{"/dev/no-xen", "make demo"}},
		{name: "Xen's directory is empty", args: with("--xen", t.TempDir()), code: 1, says: []string{"gntdev"}},
		{name: "no /dev/net/tun", args: good, mask: "mount -t tmpfs none /dev/net", code: 1, says: []string{"/dev/net/tun"}},
		{name: "/dev/net/tun is something else", args: good, mask: "mount --bind /dev/null /dev/net/tun", code: 1, says: []string{"/dev/net/tun"}},
		{name: "an unknown flag", args: with("--turbo"), code: 2, says: []string{"--turbo", "--help"}},
		{name: "a flag without its value", args: with("--workers"), code: 2, says: []string{"--workers", "--help"}},
		{name: "a number that is none", args: with("--max-queues", "many"), code: 2, says: []string{"max-queues", "many"}},
		{name: "no queues", args: with("--max-queues", "0"), code: 2, says: []string{"--max-queues", "0"}},
		{name: "too many queues", args: with("--max-queues", "65"), code: 2, says: []string{"--max-queues", "65"}},
		{name: "fewer than no workers", args: with("--workers", "-1"), code: 2, says: []string{"--workers", "-1"}},
		{name: "no time to drain", args: with("--rx-drain", "0s"), code: 2, says: []string{"--rx-drain"}},
		{name: "an unknown offload", args: with("--offload", "magic"), code: 2, says: []string{"--offload", "magic", "auto"}},
		{name: "an unknown level", args: with("--log-level", "loud"), code: 2, says: []string{"--log-level", "loud", "debug"}},
		{name: "an unknown format", args: with("--log-format", "xml"), code: 2, says: []string{"--log-format", "xml", "json"}},
		{name: "an argument too many", args: with("fast"), code: 2, says: []string{"fast", "--help"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			links := linkNames(t)
			var s said
			if c.mask == "" {
				s = netbackd(w.ctx, c.args...)
			} else {
				s = command(w.ctx, "unshare", append([]string{"--mount", "sh", "-c", c.mask + ` && exec "$0" "$@"`, exe}, c.args...)...)
			}
			if s.code != c.code || !oneLine(s.err) || s.out != "" {
				t.Errorf("exit code %d, want %d; it said %q and %q", s.code, c.code, s.err, s.out)
			}
			for _, text := range c.says {
				if !strings.Contains(s.err, text) {
					t.Errorf("it said %q, which does not tell of %s", s.err, text)
				}
			}
			if left, err := os.ReadDir(w.RunDir()); err == nil && len(left) > 0 {
				names := []string{}
				for _, l := range left {
					names = append(names, l.Name())
				}
				t.Errorf("it left %v", names)
			}
			if now := linkNames(t); !slices.Equal(now, links) {
				t.Errorf("interfaces %v, before %v", now, links)
			}
			if b := w.books(); b != (books{}) {
				t.Errorf("Xen has %+v in its books", b)
			}
		})
	}
	w.must(w.StartDaemon(w.ctx))
}

// innocentAfterKill is like innocent for a guest whose daemon was killed, perhaps during a
// copy: bytes that it wrote into an rx page without publishing them are still there when
// a successor puts a shorter packet in the same page.
func (g *testGuest) innocentAfterKill() {
	g.w.t.Helper()
	s, err := g.Stats(g.w.ctx, "")
	g.w.must(err)
	for _, v := range s.Violations {
		if !strings.Contains(v, "rx page written outside of the data") {
			g.w.t.Errorf("%s accuses the backend: %s", g.Name, v)
		}
	}
}
