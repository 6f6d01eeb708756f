// SPDX-License-Identifier: Apache-2.0

package diskio

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/disk"
)

func memoryOf(t testing.TB, n int) []byte {
	t.Helper()
	mem, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(mem) })
	return mem
}

func TestRoundTrip(t *testing.T) {
	for _, no := range []bool{false, true} {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		path := filepath.Join(t.TempDir(), "a.img")
		if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, cache := range []disk.Cache{disk.CacheDirect, disk.CacheWriteback} {
			d, err := disk.Open(context.Background(), disk.Options{Path: path, Cache: cache})
			if err != nil {
				t.Fatal(err)
			}
			t.Log(d.Direct())
			e, err := New(Config{NoIOUring: no})
			if err != nil {
				t.Fatal(err)
			}
			t.Log(e.IOUring())
			if err := e.SetDisk(d); err != nil {
				t.Fatal(err)
			}
			mem := memoryOf(t, 1<<16)
			for i := range mem {
				mem[i] = byte(i * 7)
			}
			want := bytes.Clone(mem)
			run := func(ok bool) int32 {
				t.Helper()
				if !ok {
					t.Fatal("full")
				}
				var c [4]Completion
				for {
					if err := e.SubmitAndWait(1, time.Second); err != nil {
						t.Fatal(err)
					}
					if n := e.Completions(c[:]); n == 1 {
						return c[0].Res
					}
				}
			}
			t.Log(run(e.Write(4096, address(mem), 1<<16, 1)))
			t.Log(run(e.Sync(2)))
			clear(mem)
			t.Log(run(e.Read(4096, address(mem), 1<<16, 3)))
			if !bytes.Equal(mem, want) {
				t.Error("differs")
			}
			t.Log(run(e.Discard(4096, 1<<16, false, 4)))
			t.Log(run(e.Read(4096, address(mem), 1<<16, 3)))
			if !bytes.Equal(mem, make([]byte, 1<<16)) {
				t.Error("not zero")
			}
			if err := e.SetDisk(nil); err != nil {
				t.Error(err)
			}
			if err := e.Close(); err != nil {
				t.Error(err)
			}
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}
