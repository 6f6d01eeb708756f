// SPDX-License-Identifier: Apache-2.0

package scale

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/netbackd/netbackd/internal/lab"
	"github.com/netbackd/netbackd/internal/lab/crowd"
	"github.com/netbackd/netbackd/internal/lab/netns"
)

func TestMain(m *testing.M) {
	if code, done := netns.Enter(); done {
		os.Exit(code)
	}
	// IPv6 would send packets on each link that comes up.
	if err := netns.NoIPv6(); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	goleak.VerifyTestMain(m)
}

// host is a host with a crowd.
type host struct {
	*crowd.Crowd
	exe string // netbackd-lab
	lab *lab.Lab
	tb  testing.TB
	ctx context.Context
}

// envExe is a netbackd-lab to measure, such as an older one. Without it the present one is built.
const envExe = "SCALE_EXE"

// newHost builds netbackd and starts it on an embedded Xen.
func newHost(tb testing.TB) *host {
	tb.Helper()
	netns.NeedTUN(tb)
	// As on a host, the run directory is on a tmpfs, if there is one. The path is short:
	// socket addresses are.
	dir, err := os.MkdirTemp("/dev/shm", "nbs")
	if err != nil {
		dir, err = os.MkdirTemp("", "nbs")
	}
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = os.RemoveAll(dir) })
	if exe := os.Getenv(envExe); exe != "" {
		return startHost(tb, exe, dir)
	}
	exe := filepath.Join(dir, "netbackd-lab")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", exe, "github.com/netbackd/netbackd/cmd/netbackd-lab")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if said, err := build.CombinedOutput(); err != nil {
		tb.Fatalf("build netbackd-lab: %v\n%s", err, said)
	}
	return startHost(tb, exe, dir)
}

// startHost starts a host with a program that was built.
func startHost(tb testing.TB, exe, dir string) (h *host) {
	tb.Helper()
	var err error
	h = &host{exe: exe, tb: tb, ctx: context.Background()}
	if h.lab, err = lab.New(h.ctx, lab.Options{Exe: exe, Dir: dir}); err != nil {
		tb.Fatal(err)
	}
	h.Crowd = crowd.New(h.lab)
	tb.Cleanup(h.close)
	return h
}

// close ends all guests, then the host.
func (h *host) close() {
	h.must(h.Destroy(h.ctx))
	h.must(h.lab.Close())
}

func (h *host) must(err error) {
	h.tb.Helper()
	if err != nil {
		h.tb.Fatal(err)
	}
}

// connected adds guests with one queue each and waits until they are connected.
func (h *host) connected(n int) {
	h.tb.Helper()
	guests, err := h.Add(h.ctx, n, 1)
	h.must(err)
	h.must(h.Connect(h.ctx, guests))
}

// used reads what the daemon has used.
func (h *host) used() crowd.Usage {
	h.tb.Helper()
	u, err := crowd.Read(h.lab.Daemon().PID())
	h.must(err)
	return u
}

// comeToRest waits until no thread of the daemon has run for a time, and returns what it has
// used by then.
func (h *host) comeToRest(idle, within time.Duration) crowd.Usage {
	h.tb.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	last, since, began := h.used(), time.Now(), time.Now()
	for time.Since(since) < idle {
		<-tick.C
		now := h.used()
		if now.Switches == last.Switches {
			continue
		}
		if time.Since(began) > within {
			h.tb.Fatalf("the daemon does not come to rest; these threads ran since %v ago:\n%s", time.Since(since), crowd.Ran(last, now))
		}
		last, since = now, time.Now()
	}
	return last
}
