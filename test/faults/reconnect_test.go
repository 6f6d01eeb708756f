// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/netbackd/netbackd/internal/lab/guest"
	"github.com/netbackd/netbackd/internal/lab/netfront"
	"github.com/netbackd/netbackd/internal/lab/netns"
)

// variant is a way to connect a vif.
type variant struct {
	queues       int
	one          bool // event channel for both rings
	stream, slot bool // control ring
	static       bool // grants
	bare         bool // without sg and offloads
	mcast        bool
}

func (v variant) String() string { return strings.Trim(fmt.Sprintf("%+v", struct{ variant }{v}), "{}") }

// variants lists the combinations that may be.
func variants() (all []variant) {
	for _, queues := range []int{1, 2, 8} {
		for i := range 1 << 3 {
			one, bare, mcast := i&1 != 0, i&2 != 0, i&4 != 0
			for ring := range 4 {
				v := variant{queues: queues, one: one, bare: bare, mcast: mcast}
				v.slot, v.stream, v.static = ring == 1 || ring == 3, ring == 2, ring == 3
				all = append(all, v)
			}
		}
	}
	return all
}

func (v variant) front() netfront.Config {
	c := netfront.Config{Queues: v.queues, SplitEvents: !v.one, Strict: true, Features: netfront.AllFeatures(),
		Control: v.slot, Stream: v.stream, TxPages: 32, RxPages: 32}
	if v.stream {
		c.Control = true
	}
	if v.bare {
		c.Features = netfront.Features{RxCopy: true, RxNotify: true}
	}
	c.Features.MulticastControl = v.mcast
	return c
}

// TestReconnects: thousands of connections of every kind leave nothing behind in the daemon,
// the kernel, Xen and xenstore.
func TestReconnects(t *testing.T) {
	netns.NeedTUN(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Hour)
	defer cancel()
	rounds := 24
	if os.Getenv("RECONNECTS") != "" {
		if _, err := fmt.Sscan(os.Getenv("RECONNECTS"), &rounds); err != nil {
			t.Fatal(err)
		}
	}
	s, err := newVifs(ctx, nil, "--max-queues=8", "--control-ring=both")
	if err != nil {
		t.Fatal(err)
	}
	v := s.(*vifs)
	defer func() {
		if err := v.close(); err != nil {
			t.Error(err)
		}
	}()
	if err := v.perform(ctx, connecting); err != nil {
		t.Fatal(err)
	}
	all := variants()
	rest := all[0]
	connect := func(k variant) error {
		front := k.front()
		if _, err := v.guest.Reconnect(ctx, guest.ConnectArgs{Front: &front}); err != nil {
			return err
		}
		if k.slot || k.stream {
			mapping := make([]uint32, 8)
			if err := v.guest.SetHash(ctx, "", netfront.Hash{Types: 15, Key: make([]byte, 40), Mapping: mapping}); err != nil {
				return fmt.Errorf("hash: %w", err)
			}
		}
		if k.static {
			if _, err := v.guest.StaticGrants(ctx, "", 0); err != nil {
				return fmt.Errorf("static grants: %w", err)
			}
		}
		return nil
	}
	// What is made at first use exists after the largest of each kind.
	for _, k := range []variant{{queues: 8, slot: true, static: true, mcast: true}, {queues: 8, stream: true}, {queues: 8, one: true, bare: true}, rest} {
		if err := connect(k); err != nil {
			t.Fatalf("%v: %v", k, err)
		}
	}
	clean, err := v.books(ctx)
	if err != nil {
		t.Fatal(err)
	}
	first, nodes := v.usage(ctx, t), v.nodes(ctx, t)
	half := first
	for i := range rounds {
		k := all[i*37%len(all)]
		if err := connect(k); err != nil {
			t.Fatalf("connection %d, %v: %v", i, k, err)
		}
		if i%100 == 0 {
			if err := v.serves(ctx); err != nil {
				t.Fatalf("connection %d, %v: %v", i, k, err)
			}
		}
		if i == rounds/2 {
			half = v.usage(ctx, t)
		}
		if i%1000 == 999 {
			fmt.Printf("%d connections\n", i+1)
		}
	}
	if err := connect(rest); err != nil {
		t.Fatal(err)
	}
	if err := v.serves(ctx); err != nil {
		t.Error(err)
	}
	if err := settled(ctx, v, clean); err != nil {
		t.Error(err)
	}
	last := v.usage(ctx, t)
	t.Logf("%d connections: at first %v, half way %v, in the end %v", rounds, first, half, last)
	if last.threads > first.threads+4 || last.maps > first.maps+8 || last.rss > half.rss+4<<20 {
		t.Errorf("grew from %v by %v to %v", first, half, last)
	}
	if n := v.nodes(ctx, t); n != nodes {
		t.Errorf("xenstore has %d nodes of the vif, had %d", n, nodes)
	}
}

// usage counts the threads, mappings and bytes of a process.
type usage struct {
	threads, maps int
	rss           int64
}

func (v *vifs) usage(ctx context.Context, t *testing.T) (u usage) {
	t.Helper()
	d, err := v.Control().Daemon(ctx)
	if err != nil {
		t.Fatal(err)
	}
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", v.Daemon().PID()))
	if err != nil {
		t.Fatal(err)
	}
	return usage{threads: d.Threads, maps: strings.Count(string(maps), "\n"), rss: d.Memory.Resident}
}

// nodes counts the nodes of both directories of the vif.
func (v *vifs) nodes(ctx context.Context, t *testing.T) (n int) {
	t.Helper()
	for _, dir := range []string{v.BackPath(v.guest.Domid, 0), v.FrontPath(v.guest.Domid, 0)} {
		list, err := v.Store().List(ctx, dir)
		if err != nil {
			t.Fatal(err)
		}
		n += len(list)
	}
	return n
}
