// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/netbackd/netbackd/internal/lab/blkfront"
	"github.com/netbackd/netbackd/internal/lab/blkguest"
	"github.com/netbackd/netbackd/internal/lab/guest"
	"github.com/netbackd/netbackd/internal/lab/netns"
)

// reconnects returns the number of connections of a test: usual, or all, at most most, with
// RECONNECTS.
func reconnects(t *testing.T, usual, most int) int {
	t.Helper()
	n := usual
	if text := os.Getenv("RECONNECTS"); text != "" {
		if _, err := fmt.Sscan(text, &n); err != nil {
			t.Fatal(err)
		}
		n = min(n, most)
	}
	return n
}

// diskVariants lists ways to connect a disk.
func diskVariants() (all []blkfront.Config) {
	for _, queues := range []int{1, 2, 4} {
		for _, order := range []int{0, 2} {
			for _, indirect := range []int{0, 64} {
				for _, persistent := range []bool{false, true} {
					all = append(all, blkfront.Config{Queues: queues, Order: order, Indirect: indirect, Persistent: persistent, Strict: true})
				}
			}
		}
	}
	return all
}

// again has n connections made, by connect, and checks that they leave nothing behind. Every
// tenth one is used.
func again(ctx context.Context, t *testing.T, s subject, n int, connect func(i int) error) {
	t.Helper()
	for i := range min(24, n) { // what is made at first use exists after these
		if err := connect(i); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.serves(ctx); err != nil {
		t.Fatal(err)
	}
	if err := connect(0); err != nil {
		t.Fatal(err)
	}
	clean, err := s.books(ctx)
	if err != nil {
		t.Fatal(err)
	}
	first := processUsage(t, s.daemon().PID())
	for i := range n {
		if err := connect(i); err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		if i%10 == 0 {
			if err := s.serves(ctx); err != nil {
				t.Fatalf("connection %d: %v", i, err)
			}
		}
	}
	if err := connect(0); err != nil {
		t.Fatal(err)
	}
	if err := settled(ctx, s, clean); err != nil {
		t.Error(err)
	}
	last := processUsage(t, s.daemon().PID())
	t.Logf("%d connections: at first %v, in the end %v", n, first, last)
	if last.threads > first.threads+4 || last.maps > first.maps+8 {
		t.Errorf("grew from %v to %v", first, last)
	}
}

// processUsage counts the threads and mappings of a process.
func processUsage(t *testing.T, pid int) (u usage) {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		t.Fatal(err)
	}
	return usage{threads: len(threads), maps: strings.Count(string(maps), "\n")}
}

// TestDiskReconnects: connections of disks, of every kind, leave nothing behind.
func TestDiskReconnects(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Hour)
	defer cancel()
	s, err := newDisks(ctx, nil, "--max-queues=4")
	if err != nil {
		t.Fatal(err)
	}
	d := s.(*disks)
	defer func() {
		if err := d.close(); err != nil {
			t.Error(err)
		}
	}()
	if err := d.perform(ctx, connecting); err != nil {
		t.Fatal(err)
	}
	all := diskVariants()
	again(ctx, t, d, reconnects(t, 8, 1000), func(i int) error {
		_, err := d.guest.Reconnect(ctx, blkguest.ConnectArgs{Front: &all[i*7%len(all)]})
		return err
	})
}

// TestVhostReconnects: sessions of a device of vhost-user leave nothing behind.
func TestVhostReconnects(t *testing.T) {
	netns.NeedTUN(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Hour)
	defer cancel()
	s, err := newVhosts(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	v := s.(*vhosts)
	defer func() {
		if err := v.close(); err != nil {
			t.Error(err)
		}
	}()
	again(ctx, t, v, reconnects(t, 8, 1000), func(int) error {
		_, err := v.dev.guest.Client.Virt(ctx, guest.VirtArgs{Op: "reconnect"})
		return err
	})
}
