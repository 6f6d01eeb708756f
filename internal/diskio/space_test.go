// SPDX-License-Identifier: Apache-2.0

package diskio

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/disk"
)

// TestFullFileSystem: a write into a hole of a sparse file fails when the file system is
// full, after a part of it perhaps. What is there can be read and written, and freed.
func TestFullFileSystem(t *testing.T) {
	const size, part = 64 << 20, 1 << 20
	dir := fileSystem(t)
	for _, cache := range []disk.Cache{disk.CacheDirect, disk.CacheWriteback} {
		t.Run(cache.String(), func(t *testing.T) {
			eachMode(t, func(t *testing.T, m mode) {
				path := filepath.Join(dir, "sparse.img")
				if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, size)); err != nil {
					t.Fatal(err)
				}
				d := open(t, disk.Options{Path: path, Cache: cache})
				e := m.engine(t, d)
				mem := mapMemory(t, part)
				for i := range mem {
					mem[i] = byte(i>>9 + 1)
				}
				off := uint64(0)
				res := int32(part)
				for ; res > 0 && off < size; off += uint64(res) {
					res = one(t, e, e.Write(off, address(mem), part, 1))
				}
				if res != -int32(unix.ENOSPC) {
					t.Fatalf("after %d bytes: %d, want ENOSPC", off, res)
				}
				if res := one(t, e, e.Write(0, address(mem), part, 1)); res != part {
					t.Errorf("write to blocks that exist: %d", res)
				}
				if res := one(t, e, e.Sync(1)); res != 0 {
					t.Errorf("flush: %d", res)
				}
				clear(mem)
				if res := one(t, e, e.Read(size-part, address(mem), part, 1)); res != part {
					t.Errorf("read of a hole: %d", res)
				}
				if res := one(t, e, e.Discard(0, 8*part, false, 1)); res != 0 {
					t.Errorf("discard: %d", res)
				}
				if res := one(t, e, e.Write(size-part, address(mem), part, 1)); res != part {
					t.Errorf("write after a discard: %d", res)
				}
			})
		})
	}
}
