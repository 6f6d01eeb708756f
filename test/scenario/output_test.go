// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/xenbus"
)

// stuck returns a pipe that is full, and that no process reads.
func (w *world) stuck() (reader, writer *os.File) {
	w.t.Helper()
	var p [2]int
	w.must(unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK))
	for b := make([]byte, 4096); ; {
		if _, err := unix.Write(p[1], b); err != nil {
			break
		}
	}
	w.must(unix.SetNonblock(p[1], false)) // blocking, as a child inherits it
	reader, writer = os.NewFile(uintptr(p[0]), "log"), os.NewFile(uintptr(p[1]), "log")
	w.t.Cleanup(func() { _ = reader.Close(); _ = writer.Close() })
	return reader, writer
}

// loggingTo starts a daemon whose standard output and error are f, and waits until it
// answers. It returns a channel that is closed when the daemon has ended.
func (w *world) loggingTo(f *os.File) (daemon *exec.Cmd, ended chan struct{}) {
	w.t.Helper()
	daemon = exec.Command(exe, "run", "--xen", w.XenDir(), "--run-dir", w.RunDir(), "--max-queues=8", "--log-level=debug")
	daemon.Stdout, daemon.Stderr = f, f
	daemon.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	w.must(daemon.Start())
	ended = make(chan struct{})
	go func() { _ = daemon.Wait(); close(ended) }()
	w.t.Cleanup(func() {
		_ = daemon.Process.Kill()
		<-ended
	})
	w.wait("the daemon to answer", func() bool {
		d, err := w.Control().Daemon(w.ctx)
		return err == nil && d.PID == daemon.Process.Pid
	})
	return daemon, ended
}

// TestGuestsAreServedWhileTheLogBlocks: the log is full and is not read. Guests are served
// and reconnect. Lost lines are counted and reported to a reader that returns. The daemon
// ends when it is asked to, or by the watchdog.
func TestGuestsAreServedWhileTheLogBlocks(t *testing.T) {
	w := newWorld(t)
	g := w.guest()
	var fronts []*rawFront // each has a budget of its own
	for range 8 {
		f := w.rawFront(1)
		f.connect()
		fronts = append(fronts, f)
	}
	w.must(w.Daemon().Stop())

	r, p := w.stuck()
	daemon, ended := w.loggingTo(p)
	g.serving()
	g.pings(3)
	lost := func() uint64 {
		d, err := w.Control().Daemon(w.ctx)
		w.must(err)
		return d.LogLost
	}
	var wg sync.WaitGroup
	for _, f := range fronts {
		wg.Go(func() {
			for ok := true; ok; ok = lost() == 0 {
				f.state(xenbus.Initialising)
				f.waitBack(xenbus.InitWait)
				f.connect()
			}
		})
	}
	wg.Wait()
	if text := fine(t, w.ask("show")); strings.Contains(text, " 0 lines lost") || !strings.Contains(text, "lines lost") {
		t.Errorf("show prints:\n%s", text)
	}
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadString('\n')
		w.must(err)
		if strings.Contains(line, "lines of the log were lost") {
			break
		}
	}
	go func() { _, _ = io.Copy(io.Discard, lines) }()
	g.pings(3)
	w.must(daemon.Process.Signal(unix.SIGTERM))
	w.within(ended, "to end when it is asked to")

	_, p = w.stuck()
	daemon, ended = w.loggingTo(p)
	w.must(daemon.Process.Signal(unix.SIGTERM))
	w.within(ended, "to end though no process reads its log")

	daemon, ended = w.loggingTo(p)
	w.must(daemon.Process.Signal(unix.SIGABRT)) // as the watchdog does
	w.within(ended, "to die though no process reads why")
	w.must(w.StartDaemon(w.ctx))
	g.serving()
	g.pings(3)
}

// TestHangUpDoesNotEndTheDaemon: a terminal that hangs up, and a reader of the log that
// ends, do not end the daemon.
func TestHangUpDoesNotEndTheDaemon(t *testing.T) {
	w := newWorld(t)
	g := w.guest()
	w.must(w.Daemon().Stop())
	r, p, err := os.Pipe()
	w.must(err)
	t.Cleanup(func() { _ = p.Close() })
	daemon, ended := w.loggingTo(p)
	g.serving()
	w.must(r.Close())
	for _, s := range []unix.Signal{unix.SIGHUP, unix.SIGPIPE, unix.SIGTTOU} {
		w.must(daemon.Process.Signal(s))
	}
	f := w.rawFront(1) // the daemon logs the connection, and the line is lost
	f.connect()
	g.pings(3)
	select {
	case <-ended:
		t.Error("the daemon ended")
	default:
	}
	w.must(daemon.Process.Signal(unix.SIGTERM))
	w.within(ended, "to end when it is asked to")
	w.must(w.StartDaemon(w.ctx))
}

// within waits for the daemon's end. A service manager kills a daemon that takes longer.
func (w *world) within(ended chan struct{}, what string) {
	w.t.Helper()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		w.t.Errorf("waited in vain for the daemon %s", what)
	}
}
