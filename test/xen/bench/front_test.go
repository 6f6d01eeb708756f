// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"testing"
	"time"

	"github.com/netbackd/netbackd/internal/lab"
	"github.com/netbackd/netbackd/internal/lab/guest"
	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/internal/lab/xensim/simclient"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

func TestMain(m *testing.M) { os.Exit(netns.Main(m)) }

// noBridge is a hotplug script that only brings the vif up.
func noBridge(ctx context.Context, s *xenstore.Client, h lab.Hotplug) error {
	if !h.Online {
		return nil
	}
	return errors.Join(netns.Up(h.Vif), s.Write(ctx, h.Back+"/hotplug-status", "connected"))
}

// TestFramesGoBothWays runs both ends of the frames, with netbackd between them, in the
// embedded Xen.
func TestFramesGoBothWays(t *testing.T) {
	netns.Need(t)
	netns.NeedTUN(t)
	// The sender waits in system calls that Go cannot interrupt. A collection would wait for it,
	// and stop the front of this process, for which the sender waits.
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	dir := t.TempDir()
	exe := filepath.Join(dir, "netbackd-lab")
	if said, err := exec.Command("go", "build", "-o", exe, "github.com/netbackd/netbackd/cmd/netbackd-lab").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	short, err := os.MkdirTemp("", "bench-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(short) })
	l, err := lab.New(ctx, lab.Options{Exe: exe, Dir: short})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	domid, err := l.CreateDomain(ctx, "u2", simclient.DomainConfig{GntallocLimit: 1024})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Attach(ctx, domid, lab.VifConfig{MAC: "00:16:3e:00:00:01", Script: noBridge}); err != nil {
		t.Fatal(err)
	}
	for _, static := range []bool{false, true} {
		running, stop := context.WithCancel(ctx)
		ended := make(chan error, 1)
		go func() { ended <- runFront(running, guest.Config{Xen: l.XenDir(), Domid: domid}, static) }()
		for connected := false; !connected; {
			v, err := l.Vif(ctx, "vif1.0")
			if err != nil {
				t.Fatal(err)
			}
			connected = v.State == xenbus.Connected
		}
		p := phase{vif: "vif1.0"}
		if err := p.find(); err != nil {
			t.Fatal(err)
		}
		for i := range frameItems {
			it := &frameItems[i]
			if _, err := p.guest.counts(); err != nil {
				t.Fatal(err)
			}
			w, err := it.open(p.to)
			if err != nil {
				t.Fatal(err)
			}
			if err := w.do(it.units(1)); err != nil {
				t.Errorf("%s: %v", it.Name, err)
			}
			w.close()
		}
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}
