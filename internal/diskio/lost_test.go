// SPDX-License-Identifier: Apache-2.0

package diskio

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/disk"
)

// TestLostWriteIsReportedToEachEngine: when the kernel cannot write back what is in the page
// cache, it reports that once to each open file. Rings of one disk must each have it: else a
// flush on one succeeds after another ring's has failed, although the data is gone.
func TestLostWriteIsReportedToEachEngine(t *testing.T) {
	eachMode(t, func(t *testing.T, m mode) {
		d := open(t, disk.Options{Path: fullLoop(t), Cache: disk.CacheWriteback})
		a, b := m.engine(t, d), m.engine(t, d)
		mem := mapMemory(t, 4<<20)
		for i := range mem {
			mem[i] = byte(i) | 1
		}
		if res := one(t, a, a.Write(0, address(mem), uint32(len(mem)), 1)); int(res) != len(mem) {
			t.Fatalf("write: %d", res)
		}
		for name, e := range map[string]*Engine{"one engine": a, "the other": b} {
			if res := one(t, e, e.Sync(2)); res >= 0 {
				t.Errorf("flush of %s: %d, want an error", name, res)
			}
		}
	})
}

// fullLoop returns a loop device whose file has no room.
func fullLoop(t *testing.T) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("mount: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	path := filepath.Join(dir, "image")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(8 << 20); err != nil {
		t.Fatal(err)
	}
	shut(t, f)
	out, err := exec.CommandContext(t.Context(), "losetup", "--find", "--show", path).Output()
	if err != nil {
		t.Skipf("losetup: %v", err)
	}
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.CommandContext(context.Background(), "losetup", "--detach", dev).CombinedOutput(); err != nil {
			t.Errorf("losetup --detach: %v: %s", err, out)
		}
	})
	return dev
}
