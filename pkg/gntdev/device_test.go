// SPDX-License-Identifier: Apache-2.0

package gntdev

import (
	"errors"
	"io/fs"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/xen"
)

func TestOpenSaysWhatToDo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "gntdev")
	_, err := Open(path)
	if !errors.Is(err, unix.ENOENT) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open: %v, want ENOENT", err)
	}
	want := "gntdev: open: " + path + ": no such file or directory; " +
		"load the module (modprobe xen-gntdev); if that fails, this machine is not a Xen domain"
	if err.Error() != want {
		t.Errorf("Open: %v\nwant: %s", err, want)
	}
}

func TestOpenAndClose(t *testing.T) {
	// Any file will do as long as nothing is asked of it.
	d, err := Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	segs := filled(1)
	if err := d.Copy(segs); !errors.Is(err, unix.ENOTTY) {
		t.Errorf("Copy: %v, want ENOTTY", err)
	}
	if _, err := d.Map(7, []xen.Gref{8}, ReadOnly); !errors.Is(err, unix.ENOTTY) {
		t.Errorf("Map: %v, want ENOTTY", err)
	}
	for range 2 {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestNewDevice has a descriptor that was opened elsewhere, of another file.
func TestNewDevice(t *testing.T) {
	fd, err := unix.MemfdCreate("gntdev", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	d := NewDevice(fd)
	if _, err := d.Map(5, []xen.Gref{1}, ReadOnly); !errors.Is(err, unix.ENOTTY) {
		t.Errorf("Map of a file: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != unix.EBADF {
		t.Errorf("the descriptor after Close: %v", err)
	}
}
