// SPDX-License-Identifier: Apache-2.0

package xendev

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestOpen(t *testing.T) {
	if _, err := Open(filepath.Join(t.TempDir(), "none"), 0); err != unix.ENOENT {
		t.Errorf("a node that is not there: %v", err)
	}
	d, err := Open("/dev/null", unix.O_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	flags, err := unix.FcntlInt(uintptr(d.Hold()), unix.F_GETFL, 0)
	d.Release()
	if err != nil || flags&unix.O_NONBLOCK == 0 {
		t.Errorf("flags %#x, %v", flags, err)
	}
	if err := d.Close(unix.Close); err != nil {
		t.Error(err)
	}
}

// TestCloseWaits: no call uses a descriptor that belongs to another file by now.
func TestCloseWaits(t *testing.T) {
	d := New(7)
	if fd := d.Hold(); fd != 7 {
		t.Errorf("descriptor %d", fd)
	}
	failure := errors.New("a reason")
	released := false
	closed := make(chan error)
	go func() {
		closed <- d.Close(func(fd int) error {
			if fd != 7 || !released {
				t.Errorf("%d is closed, released: %t", fd, released)
			}
			return failure
		})
	}()
	released = true
	d.Release()
	if err := <-closed; err != failure {
		t.Errorf("Close: %v", err)
	}
	if fd := d.Hold(); fd != -1 {
		t.Errorf("descriptor %d of what is closed", fd)
	}
	d.Release()
	if err := d.Close(func(int) error { return failure }); err != nil {
		t.Errorf("the second Close: %v", err)
	}
}

func TestOpenHint(t *testing.T) {
	for errno, want := range map[unix.Errno]string{
		unix.ENOENT: "modprobe xen-gntdev", unix.EACCES: "root", unix.EPERM: "root",
		unix.ENODEV: "not a Xen domain", unix.ENXIO: "not a Xen domain", unix.EMFILE: "LimitNOFILE",
	} {
		if got := OpenHint("xen-gntdev", errno); !strings.Contains(got, want) {
			t.Errorf("%v: the hint %q does not speak of %q", errno, got, want)
		}
	}
	if got := OpenHint("xen-gntdev", unix.EIO); got != "" {
		t.Errorf("a hint where there is none: %q", got)
	}
}
