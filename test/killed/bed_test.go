// SPDX-License-Identifier: Apache-2.0

package killed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/netbackd/netbackd/internal/lab"
	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/internal/lab/numbered"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// patience bounds every wait, on a busy machine.
const patience = 60 * time.Second

// bed is a host whose daemon is killed.
type bed struct {
	*lab.Lab
	t       *testing.T
	ctx     context.Context
	manager *lab.Manager // nil: no service manager keeps the TAPs' queues
	victim  string       // see the flag
	faults  *numbered.Faults
	vifs    []*vif
	score   score
	moves   bool // the guest moves its flows to other queues
	fresh   int  // deaths since the last balance
}

// newBed makes a host. With store a service manager keeps files for the daemon.
func newBed(t *testing.T, store bool, daemon ...string) *bed {
	t.Helper()
	netns.NeedTUN(t)
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	dir, err := os.MkdirTemp("/dev/shm", "nbk") // the run directory is on a tmpfs, as on a host
	if err != nil {
		dir, err = os.MkdirTemp("", "nbk")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	t.Cleanup(removeLinks)
	b := &bed{t: t, ctx: ctx, victim: *victim, faults: &numbered.Faults{}}
	args := append([]string{"--max-queues=4"}, daemon...)
	args = append(args, strings.Fields(*daemonArgs)...)
	b.Lab, err = lab.New(ctx, lab.Options{Exe: filepath.Join(*programs, "netbackd-lab"), Dir: dir, Daemon: args})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.close)
	if store {
		b.must(b.Daemon().Stop())
		b.manager, err = b.NewManager()
		b.must(err)
		b.must(b.start())
	}
	return b
}

// removeLinks removes the interfaces that a daemon leaves for its successor.
func removeLinks() {
	links, err := netlink.LinkList()
	if err != nil {
		return
	}
	for _, l := range links {
		if l.Type() == "tun" || l.Type() == "tuntap" || l.Type() == "bridge" {
			_ = netlink.LinkDel(l)
		}
	}
}

func (b *bed) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// start starts a daemon and waits until it is ready.
func (b *bed) start() error {
	if b.manager != nil {
		return b.manager.Start(b.ctx)
	}
	return b.StartDaemon(b.ctx)
}

// wait calls ok until it returns true.
func (b *bed) wait(what string, ok func() bool) {
	b.t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for begin := time.Now(); !ok(); <-tick.C {
		if n, first := b.faults.All(); n > 0 {
			b.t.Fatalf("%d faults, while waiting for %s:\n%s", n, what, strings.Join(first, "\n"))
		}
		if time.Since(begin) > patience {
			for _, v := range b.vifs {
				b.t.Logf("%s: %v", v.name, v.traffic)
			}
			b.t.Fatalf("waited in vain for %s", what)
		}
	}
}

// close ends the host.
func (b *bed) close() {
	for _, v := range b.vifs {
		if err := v.end(); err != nil {
			b.t.Errorf("%s: %v", v.name, err)
		}
	}
	log := b.Daemon()
	err := b.Lab.Close()
	if b.manager != nil {
		err = errors.Join(err, b.manager.Close())
	}
	if err != nil {
		b.t.Error(err)
	}
	if said := log.Log(); strings.Contains(said, "internal error") || strings.Contains(said, "panic") {
		b.t.Error("the daemon failed inside")
	}
	if n, first := b.faults.All(); n > 0 {
		b.t.Errorf("%d faults:\n%s", n, strings.Join(first, "\n"))
	}
	if b.t.Failed() {
		b.t.Logf("after %d deaths", b.score.deaths)
		b.t.Logf("netbackd said:\n%s", log.Log())
	}
}

// upScript plays a hotplug script that brings the interface up and adds it to no bridge.
func upScript(ctx context.Context, s *xenstore.Client, h lab.Hotplug) error {
	if !h.Online {
		return nil
	}
	l, err := netlink.LinkByName(h.Vif)
	if err == nil {
		err = errors.Join(netlink.LinkSetTxQLen(l, 1000), netlink.LinkSetUp(l))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", h.Vif, err)
	}
	return s.Write(ctx, h.Back+"/hotplug-status", "connected")
}
