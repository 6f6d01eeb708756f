// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/fuzzloop"
)

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	file := func(name string, size int) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	fifo, dangling := filepath.Join(dir, "fifo"), filepath.Join(dir, "dangling")
	if err := errors.Join(unix.Mkfifo(fifo, 0o600), os.Symlink("gone", dangling)); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		path string
		want Reason
		text string // part of the message
	}{
		{"no file", filepath.Join(dir, "gone"), ReasonNotFound, "target="},
		{"no directory", filepath.Join(file("a", 512), "b"), ReasonNotFound, ""},
		{"dangling link", dangling, ReasonNotFound, ""},
		{"directory", dir, ReasonDirectory, "raw image"},
		{"fifo", fifo, ReasonKind, ""},
		{"character device", "/dev/null", ReasonKind, "block device"},
		{"empty", file("empty", 0), ReasonTooSmall, "truncate -s %512"},
		{"less than a sector", file("small", 511), ReasonTooSmall, "512 bytes"},
		{"not whole sectors", file("odd", 1025), ReasonNotMultiple, "1536 bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, readOnly := range []bool{false, true} {
				e := refused(t, Options{Path: tt.path, ReadOnly: readOnly})
				if e.Reason != tt.want || !strings.Contains(e.Error(), tt.text) || !strings.Contains(e.Error(), tt.path) {
					t.Errorf("error %v with reason %v: want %v and %q", e, e.Reason, tt.want, tt.text)
				}
			}
		})
	}
}

// TestOpenWithoutPermission: as root, the test gives up its rights to files on one thread.
func TestOpenWithoutPermission(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can give up its rights to files")
	}
	path := image(t, 4096)
	if err := os.Chmod(path, 0o400); err != nil {
		t.Fatal(err)
	}
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked, so that the thread ends with its rights
		_, err := unix.SetfsuidRetUid(65534)
		if err == nil {
			_, err = Open(context.Background(), Options{Path: path})
		}
		result <- err
	}()
	var e *Error
	if err := <-result; !errors.As(err, &e) || e.Reason != ReasonPermission {
		t.Errorf("%v: want reason %v", err, ReasonPermission)
	}
}

func TestOpenErrors(t *testing.T) {
	for _, e := range []struct {
		errno unix.Errno
		want  Reason
	}{{unix.EROFS, ReasonReadOnly}, {unix.ENOMEDIUM, ReasonNoMedium}, {unix.ETXTBSY, ReasonInUse}, {unix.EIO, ReasonOther}} {
		if got := openError("/x", e.errno); got.Reason != e.want || !errors.Is(got, e.errno) {
			t.Errorf("%v: %v with reason %v, want %v", e.errno, got, got.Reason, e.want)
		}
	}
}

func TestGeometryOfFile(t *testing.T) {
	for _, tt := range []struct {
		name     string
		o        Options
		direct   bool
		discards bool
	}{
		{"writeback", Options{}, false, true},
		{"auto", Options{Cache: CacheAuto}, false, true},
		{"direct", Options{Cache: CacheDirect}, true, true},
		{"read-only", Options{ReadOnly: true}, false, false},
		{"cdrom", Options{CDROM: true}, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := image(t, 1<<20+512)
			link := filepath.Join(t.TempDir(), "link")
			if err := os.Symlink(path, link); err != nil {
				t.Fatal(err)
			}
			tt.o.Path = link
			d := open(t, tt.o)
			direct, why := d.Direct()
			if direct != tt.direct && why == "" {
				t.Errorf("direct %v: want %v, or a reason", direct, tt.direct)
			}
			if d.Sectors() != 1<<11+1 || d.SectorSize() != 512 || d.PhysicalSectorSize() < 512 || d.Kind() != KindFile {
				t.Errorf("%d sectors of %d and %d bytes of %v", d.Sectors(), d.SectorSize(), d.PhysicalSectorSize(), d.Kind())
			}
			if g := d.Discard(); g.OK() != tt.discards || g.Secure {
				t.Errorf("discard limits %+v: want some: %v", g, tt.discards)
			}
			if d.ReadOnly() == tt.discards {
				t.Errorf("read-only %v", d.ReadOnly())
			}
			if d.Identity().Path != link || d.Identity().Inode == 0 {
				t.Errorf("identity %+v", d.Identity())
			}
		})
	}
}

// TestDirectFallsBack: ramfs has no O_DIRECT.
func TestDirectFallsBack(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "ramfs", 0, ""); err != nil {
		t.Skipf("mount ramfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	path := filepath.Join(dir, "disk.img")
	if err := os.WriteFile(path, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	d := open(t, Options{Path: path, Cache: CacheDirect})
	if direct, why := d.Direct(); direct || why == "" {
		t.Errorf("direct %v because of %q: want false with a reason", direct, why)
	}
	if d.Discard().OK() {
		t.Error("discards are offered, which ramfs does not have")
	}
	if err := d.DiscardRange(0, 4096, false, nil); err != unix.EOPNOTSUPP {
		t.Errorf("discard: %v, want EOPNOTSUPP", err)
	}
}

func TestRefresh(t *testing.T) {
	path := image(t, 1<<20)
	d := open(t, Options{Path: path})
	for _, step := range []struct {
		size    int64
		sectors uint64
		changed bool
	}{{1 << 20, 1 << 11, false}, {1 << 21, 1 << 12, true}, {1<<21 + 100, 1 << 12, false}, {4096, 8, true}, {0, 0, true}} {
		if err := os.Truncate(path, step.size); err != nil {
			t.Fatal(err)
		}
		changed, err := d.Refresh()
		if changed != step.changed || err != nil || d.Sectors() != step.sectors {
			t.Errorf("size %d: changed %v, %d sectors, %v: want %v, %d", step.size, changed, d.Sectors(), err, step.changed, step.sectors)
		}
	}
}

func TestNull(t *testing.T) {
	d := open(t, Options{NullSize: 1 << 30})
	if d.Kind() != KindNull || d.Sectors() != 1<<21 || d.FD() != -1 || !d.Discard().OK() {
		t.Errorf("%v of %d sectors, fd %d", d.Kind(), d.Sectors(), d.FD())
	}
	if changed, err := d.Refresh(); changed || err != nil {
		t.Errorf("refresh: %v, %v", changed, err)
	}
}

func TestDiscardFreesBlocks(t *testing.T) {
	path := image(t, 0)
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	blocks := func() int64 {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		return st.Blocks
	}
	d := open(t, Options{Path: path})
	if err := unix.Fsync(d.FD()); err != nil { // delayed allocation
		t.Fatal(err)
	}
	before := blocks()
	if err := d.DiscardRange(0, 1<<19, false, nil); err != nil {
		t.Fatal(err)
	}
	if after := blocks(); after > before-(1<<19)/512 {
		t.Errorf("%d blocks before, %d after the discard of 512 KiB", before, after)
	}
	if d.Refresh(); d.Sectors() != 1<<11 {
		t.Errorf("%d sectors after the discard", d.Sectors())
	}
	for _, tt := range []struct {
		name   string
		secure bool
		stop   bool
		want   error
	}{{"secure", true, false, unix.EOPNOTSUPP}, {"stopped", false, true, unix.ECANCELED}} {
		if err := d.DiscardRange(0, 4096, tt.secure, func() bool { return tt.stop }); err != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
	shut(t, d)
	if err := open(t, Options{Path: path, ReadOnly: true}).DiscardRange(0, 4096, false, nil); err != unix.EROFS {
		t.Errorf("discard on a read-only disk: %v, want EROFS", err)
	}
}

func TestParseParams(t *testing.T) {
	for _, tt := range []struct {
		params string
		want   Options
		bad    bool
	}{
		{"/srv/a.img", Options{Path: "/srv/a.img"}, false},
		{"/srv/a.img\x00", Options{Path: "/srv/a.img"}, false},
		{"aio:/srv/a.img", Options{Path: "/srv/a.img"}, false},
		{"raw:/dev/vg/lv", Options{Path: "/dev/vg/lv"}, false},
		{"phy:/dev/sda", Options{Path: "/dev/sda"}, false},
		{"/srv/a:b.img", Options{Path: "/srv/a:b.img"}, false},
		{"null:1g", Options{NullSize: 1 << 30}, false},
		{"null:512", Options{NullSize: 512}, false},
		{"", Options{}, true},
		{"aio:", Options{}, true},
		{"a.img", Options{}, true},
		{"qcow2:/srv/a.img", Options{}, true},
		{"/srv/a\x00b", Options{}, true},
		{"null:", Options{}, true},
		{"null:0", Options{}, true},
		{"null:100", Options{}, true},
		{"null:-1", Options{}, true},
		{"null:9999999999t", Options{}, true},
	} {
		got, err := ParseParams(tt.params)
		if diff := cmp.Diff(tt.want, got, cmp.Comparer(func(a, b func(Holder)) bool { return a == nil && b == nil })); diff != "" || (err != nil) != tt.bad {
			t.Errorf("%q: %v (-want +got)\n%s", tt.params, err, diff)
		}
	}
}

func FuzzParseParams(f *testing.F) {
	for _, s := range []string{"/srv/a.img", "aio:/a", "null:1g", "null:", ""} {
		f.Add(s)
	}
	fuzzloop.Fuzz(f, func(t *testing.T, s string) {
		o, err := ParseParams(s)
		switch {
		case err != nil:
			if o.Path != "" || o.NullSize != 0 {
				t.Errorf("%q: an error and %+v", s, o)
			}
		case o.NullSize != 0:
			if o.NullSize < 0 || o.NullSize%SectorSize != 0 || o.Path != "" {
				t.Errorf("%q: %+v", s, o)
			}
		case !filepath.IsAbs(o.Path) || strings.ContainsRune(o.Path, 0):
			t.Errorf("%q: path %q", s, o.Path)
		}
	})
}

func TestCacheNames(t *testing.T) {
	for _, c := range []Cache{CacheAuto, CacheWriteback, CacheDirect} {
		if got, err := ParseCache(c.String()); got != c || err != nil {
			t.Errorf("%v: %v, %v", c, got, err)
		}
	}
	if _, err := ParseCache("none"); err == nil {
		t.Error("none is accepted")
	}
}

// TestOpenEndsWithContext: a context that has ended refuses nothing that is free.
func TestOpenEndsWithContext(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	d, err := Open(ctx, Options{Path: image(t, 4096)})
	if err != nil {
		t.Fatal(err)
	}
	shut(t, d)
}
