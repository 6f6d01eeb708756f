// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestGeometryOfLoop(t *testing.T) {
	for _, tt := range []struct {
		name   string
		args   []string
		sector int
	}{
		{"512", nil, 512},
		{"4Kn", []string{"--sector-size", "4096"}, 4096},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := image(t, 8<<20)
			dev := loop(t, path, tt.args...)
			d := open(t, Options{Path: dev})
			if d.Kind() != KindBlock || d.Sectors() != 16<<10 || d.SectorSize() != tt.sector || d.PhysicalSectorSize() < tt.sector {
				t.Errorf("%v: %d sectors of %d and %d bytes", d.Kind(), d.Sectors(), d.SectorSize(), d.PhysicalSectorSize())
			}
			if direct, why := d.Direct(); !direct {
				t.Errorf("not direct: %q", why)
			}
			if d.Identity().Major != 7 {
				t.Errorf("identity %+v", d.Identity())
			}
			discards(t, d, path)

			if err := os.Truncate(path, 16<<20); err != nil {
				t.Fatal(err)
			}
			command(t, "losetup", "--set-capacity", dev)
			if changed, err := d.Refresh(); !changed || err != nil || d.Sectors() != 32<<10 {
				t.Errorf("after resize: changed %v, %d sectors, %v", changed, d.Sectors(), err)
			}
		})
	}
}

// discards checks that a discard on a loop device punches a hole in its file.
func discards(t *testing.T, d *Disk, path string) {
	t.Helper()
	if g := d.Discard(); !g.OK() || g.Max == 0 || g.Secure {
		t.Fatalf("discard limits %+v", g)
	}
	block := make([]byte, 1<<20)
	for i := range block {
		block[i] = 0xa5
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(block, 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := d.DiscardRange(0, 1<<20, false, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := f.ReadAt(block[:512], 4096); err != nil || block[0] != 0 {
		t.Errorf("after the discard the file has %#x, %v", block[0], err)
	}
	if err := d.DiscardRange(0, 1<<20, true, nil); err != unix.EOPNOTSUPP {
		t.Errorf("secure discard: %v, want EOPNOTSUPP", err)
	}
}

// TestLargeSectors: a device whose sectors are larger than a guest's page is refused.
func TestLargeSectors(t *testing.T) {
	path := image(t, 8<<20)
	if out, err := exec.Command("losetup", "--sector-size", "8192", "--find", "--show", path).Output(); err != nil {
		t.Skip("the kernel has no such loop devices")
	} else if out, err := exec.Command("losetup", "--detach", strings.TrimSpace(string(out))).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	dev := loop(t, path, "--sector-size", "8192")
	if e := refused(t, Options{Path: dev}); !strings.Contains(e.Error(), "8192") {
		t.Errorf("%v: want the size of its sectors", e)
	}
}

// TestOneWriterOfLoop: another node for the same device does not help.
func TestOneWriterOfLoop(t *testing.T) {
	dev := loop(t, image(t, 1<<20))
	var st unix.Stat_t
	if err := unix.Stat(dev, &st); err != nil {
		t.Fatal(err)
	}
	other := t.TempDir() + "/node"
	if err := unix.Mknod(other, unix.S_IFBLK|0o600, int(st.Rdev)); err != nil {
		t.Skip(err)
	}
	first := open(t, Options{Path: dev})
	for _, path := range []string{dev, other} {
		if e := refused(t, Options{Path: path}); e.Reason != ReasonBusy {
			t.Errorf("%v with reason %v: want %v", e, e.Reason, ReasonBusy)
		}
	}
	shut(t, first)
	open(t, Options{Path: dev})
}

// mounted makes a file system on a new loop device and mounts it.
func mounted(t *testing.T, options string, loopArgs ...string) (dev, dir string) {
	t.Helper()
	dev = loop(t, image(t, 32<<20), loopArgs...)
	command(t, "mkfs.ext4", "-q", "-b", "4096", dev)
	dir = t.TempDir()
	if err := unix.Mount(dev, dir, "ext4", 0, options); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dev, dir
}

// TestDirectOnFileSystem: direct operations as the file system below can do them.
func TestDirectOnFileSystem(t *testing.T) {
	_, large := mounted(t, "", "--sector-size", "4096")
	_, journal := mounted(t, "data=journal")
	for _, tt := range []struct {
		name   string
		dir    string
		size   int
		told   int
		direct bool
		sector int
	}{
		{"4Kn, whole blocks", large, 1 << 20, 0, true, 4096},
		{"4Kn, as a guest was told", large, 1 << 20, 4096, true, 4096},
		{"4Kn, other than a guest was told", large, 1 << 20, 512, false, 512},
		{"4Kn, half a block", large, 1<<20 + 512, 0, false, 512},
		{"journalled data", journal, 1 << 20, 0, false, 512},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := tt.dir + "/disk.img"
			if err := os.WriteFile(path, make([]byte, tt.size), 0o600); err != nil {
				t.Fatal(err)
			}
			d := open(t, Options{Path: path, Cache: CacheDirect, SectorSize: tt.told})
			direct, why := d.Direct()
			if direct != tt.direct || direct == (why != "") || d.SectorSize() != tt.sector || d.Sectors() != uint64(tt.size/512) {
				t.Errorf("direct %v because of %q, %d sectors of %d bytes: want %v, %d", direct, why, d.Sectors(), d.SectorSize(), tt.direct, tt.sector)
			}
			flags, err := unix.FcntlInt(uintptr(d.FD()), unix.F_GETFL, 0)
			if err != nil || flags&unix.O_DIRECT != 0 != tt.direct {
				t.Errorf("flags %#x, %v: want O_DIRECT %v", flags, err, tt.direct)
			}
			shut(t, d)
		})
	}
}

func TestMountedDevice(t *testing.T) {
	dev, dir := mounted(t, "")
	// A mounted device stays so: Open does not wait.
	_, err := Open(context.Background(), Options{Path: dev})
	e, ok := err.(*Error)
	if !ok || e.Reason != ReasonInUse || !strings.Contains(e.Error(), dir) {
		t.Fatalf("%v: want that it is mounted on %s", err, dir)
	}
}

func TestDetachedLoop(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("loop devices need root")
	}
	dev := command(t, "losetup", "--find")
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	d, err := Open(ctx, Options{Path: dev})
	if err == nil {
		shut(t, d)
		t.Skip("another program has attached the device meanwhile")
	}
	if e, ok := err.(*Error); !ok || e.Reason != ReasonNoMedium {
		t.Errorf("%v: want reason %v", err, ReasonNoMedium)
	}
}

// TestFileOfLoop: a file that a loop device writes to is refused, by every name.
func TestFileOfLoop(t *testing.T) {
	path := image(t, 1<<20)
	link := t.TempDir() + "/link"
	if err := os.Link(path, link); err != nil {
		t.Skip(err)
	}
	for _, tt := range []struct {
		name          string
		args          []string
		read, refused bool
	}{
		{"writer beside a device", nil, false, true},
		{"reader beside a device", nil, true, true},
		{"writer beside a device that reads", []string{"--read-only"}, false, true},
		{"reader beside a device that reads", []string{"--read-only"}, true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dev := loop(t, path, tt.args...)
			for _, name := range []string{path, link} {
				o := Options{Path: name, ReadOnly: tt.read}
				if !tt.refused {
					open(t, o)
					continue
				}
				if e := refused(t, o); e.Reason != ReasonInUse || !strings.Contains(e.Error(), dev) {
					t.Errorf("%v with reason %v: want %v of %s", e, e.Reason, ReasonInUse, dev)
				}
			}
		})
	}
	open(t, Options{Path: path})
}
