// SPDX-License-Identifier: Apache-2.0

package vhost

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/netbackd/netbackd/internal/lab"
	"github.com/netbackd/netbackd/internal/lab/foreign"
	"github.com/netbackd/netbackd/internal/lab/netns"
)

// limit bounds each test. It is long, so that a busy machine does not fail.
const limit = 90 * time.Second

// The host's address on a TAP and a guest's.
const (
	hostCIDR  = "10.77.0.1/24"
	hostIP    = "10.77.0.1"
	guestCIDR = "10.77.0.2/24"
	guestIP   = "10.77.0.2"
)

// bed has the programs, the folder for sockets and the name of the TAP of one test.
type bed struct {
	*testing.T
	ctx      context.Context
	dir      string
	programs foreign.Programs
	netbackd string
	tap      string
	xen      string // value of --xen
}

// newBed skips the test if a program is missing.
func newBed(t *testing.T) *bed {
	t.Helper()
	netns.NeedTUN(t)
	if why := os.Getenv(envMissing); why != "" {
		lacks(t, why)
	}
	dir, err := os.MkdirTemp("", "nbv")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	return &bed{
		T: t, ctx: ctx, dir: dir, programs: foreign.At(os.Getenv(envFetched)),
		netbackd: filepath.Join(os.Getenv(envPrograms), "netbackd"),
		tap:      fmt.Sprintf("nbv%d", os.Getpid()%100000),
		xen:      "off",
	}
}

// lacks skips a test that cannot run here, or fails it if all have to run.
func lacks(t *testing.T, why string) {
	t.Helper()
	if os.Getenv(envRequired) == "required" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// all skips a test that only runs with every scenario.
func (b *bed) all() *bed {
	b.Helper()
	if os.Getenv("NETBACKD_SCENARIOS") != "all" {
		b.Skip("runs with NETBACKD_SCENARIOS=all")
	}
	return b
}

func (b *bed) path(name string) string { return filepath.Join(b.dir, name) }

// ok fails the test if there is an error.
func (b *bed) ok(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

// missing skips or fails the test if a program is missing, and fails it if there is another
// error.
func (b *bed) missing(err error) {
	b.Helper()
	if errors.Is(err, foreign.ErrMissing) {
		lacks(b.T, err.Error())
	}
	b.ok(err)
}

// ends kills a process at the end of the test, and shows its output if the test failed.
func (b *bed) ends(p *lab.Process) *lab.Process {
	b.Cleanup(func() {
		p.Kill()
		if b.Failed() {
			log := p.Log()
			b.Logf("output of %s:\n%s", p.Name, log[max(0, len(log)-4000):])
		}
	})
	return p
}

// await waits until a condition holds.
func (b *bed) await(what string, holds func() bool) {
	b.Helper()
	for !holds() {
		select {
		case <-b.ctx.Done():
			b.Fatalf("in vain: %s", what)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// backend is a netbackd that serves one device, behind a recorder.
type backend struct {
	*bed
	*lab.Process
	queues   int
	connect  bool
	recorder *foreign.Recorder
}

// serve starts netbackd and its recorder. The front end connects to the path "front", or,
// if connect is true, listens there.
func (b *bed) serve(queues int, connect bool) *backend {
	b.Helper()
	listen, dial := b.path("front"), b.path("back")
	if connect {
		listen, dial = dial, listen
	}
	r, err := foreign.NewRecorder(listen, dial, connect)
	b.ok(err)
	s := &backend{bed: b, queues: queues, connect: connect, recorder: r}
	s.start()
	b.Cleanup(func() {
		_ = r.Close()
		if b.Failed() {
			for i, t := range r.Transcripts() {
				b.Logf("connection %d:\n%s", i, strings.Join(t, "\n"))
			}
		}
		_ = netns.Delete(b.tap)
	})
	b.ok(netns.AddAddr(b.tap, hostCIDR))
	b.ok(netns.Up(b.tap))
	return s
}

func (s *backend) start() {
	s.Helper()
	p, err := foreign.StartNetbackd(s.ctx, foreign.Netbackd{
		Exe: s.netbackd, Socket: s.path("back"), Connect: s.connect, TAP: s.tap, Queues: s.queues,
		Args: []string{"--run-dir", s.dir, "--xen=" + s.xen, "--log-level=debug"},
	})
	s.ok(err)
	s.ends(p)
	s.ok(p.WaitLog(s.ctx, "ready"))
	s.Process = p
}

// restart kills netbackd and starts it again.
func (s *backend) restart() {
	s.Helper()
	s.Kill()
	s.start()
}

// transcript waits for connection number i and returns its messages so far.
func (s *backend) transcript(i int) []string {
	s.Helper()
	s.await(fmt.Sprintf("connection %d", i), func() bool { return len(s.recorder.Transcripts()) > i })
	return s.recorder.Transcripts()[i]
}

// accepted returns the features that the front end accepted last in a transcript.
func accepted(lines []string) (features uint64) {
	for _, l := range lines {
		if f, ok := strings.CutPrefix(l, "front SET_FEATURES "); ok {
			f = f[strings.LastIndex(f, " ")+1:]
			features, _ = strconv.ParseUint(strings.TrimPrefix(f, "0x"), 16, 64)
		}
	}
	return features
}

// makeTap makes the TAP with the host's address. It outlives its users.
func (b *bed) makeTap() {
	b.Helper()
	link := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: b.tap}, Mode: netlink.TUNTAP_MODE_TAP, Flags: netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR}
	b.ok(netlink.LinkAdd(link))
	b.ok(netns.AddAddr(b.tap, hostCIDR))
	b.ok(netns.Up(b.tap))
	b.Cleanup(func() { _ = netns.Delete(b.tap) })
}
