// SPDX-License-Identifier: Apache-2.0

package iouring

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// TestFilesWithoutSlot: files that have no slot are read and written in the order of the
// batch, so a write may send what a read before it brought. A read of a file that is not
// ready fails, and so does one of a file that is not open.
func TestFilesWithoutSlot(t *testing.T) {
	eachMode(t, func(t *testing.T, m mode) {
		r := m.ring(t, 8)
		from, feed := pipe(t)
		drain, to := pipe(t)
		mem := memory(t, 4096)
		if _, err := unix.Write(feed, []byte("12345678")); err != nil {
			t.Fatal(err)
		}
		r.ReadFile(from, address(mem), 8, 1)
		r.WriteFile(to, address(mem), 8, 2)
		if diff := cmp.Diff(map[uint64]int32{1: 8, 2: 8}, submit(t, r)); diff != "" {
			t.Errorf("results (-want +got):\n%s", diff)
		}
		got := make([]byte, 16)
		if n, err := unix.Read(drain, got); err != nil || string(got[:n]) != "12345678" {
			t.Errorf("%q was written, %v", got[:max(n, 0)], err)
		}
		r.ReadFile(from, address(mem), 8, 3)
		r.ReadFile(1<<20, address(mem), 8, 4)
		r.WriteFile(to, address(mem), 4, 5)
		if diff := cmp.Diff(map[uint64]int32{3: again, 4: badf, 5: 4}, submit(t, r)); diff != "" {
			t.Errorf("results (-want +got):\n%s", diff)
		}
		// The read that failed does not take what comes later.
		if _, err := unix.Write(feed, []byte("later")); err != nil {
			t.Fatal(err)
		}
		if n, err := unix.Read(from, got); err != nil || string(got[:n]) != "later" {
			t.Errorf("%q is there, %v", got[:max(n, 0)], err)
		}
		full := 0
		for r.WriteFile(to, address(mem), 1, uint64(10+full)) {
			full++
		}
		if full != r.Entries() || r.ReadFile(from, address(mem), 1, 7) {
			t.Errorf("%d operations fit a ring of %d", full, r.Entries())
		}
		submit(t, r)
	})
}
