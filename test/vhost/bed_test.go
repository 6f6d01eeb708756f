// SPDX-License-Identifier: Apache-2.0

package vhost

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/netbackd/netbackd/internal/lab"
	"github.com/netbackd/netbackd/internal/lab/foreign"
	"github.com/netbackd/netbackd/internal/lab/netns"
)

// limit bounds each test. It is long, so that a busy machine does not fail.
const limit = 3 * time.Minute

// The host's address on a TAP and a guest's.
const (
	hostCIDR  = "10.77.0.1/24"
	hostIP    = "10.77.0.1"
	guestCIDR = "10.77.0.2/24"
	guestIP   = "10.77.0.2"
)

// bed is what a test has: programs, a folder for sockets and a name for a TAP.
type bed struct {
	*testing.T
	ctx      context.Context
	dir      string
	programs foreign.Programs
	netbackd string
	tap      string
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
	programs, err := foreign.Fetch("./build")
	if err != nil {
		t.Fatal(err)
	}
	return &bed{
		T: t, ctx: ctx, dir: dir, programs: programs,
		netbackd: filepath.Join(os.Getenv(envPrograms), "netbackd"),
		tap:      fmt.Sprintf("nbv%d", os.Getpid()%100000),
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

// carrier waits until the TAP passes frames.
func (b *bed) carrier() {
	b.Helper()
	b.await("carrier of "+b.tap, func() bool {
		link, err := netlink.LinkByName(b.tap)
		return err == nil && link.Attrs().OperState != netlink.OperDown && link.Attrs().RawFlags&0x10000 != 0
	})
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
