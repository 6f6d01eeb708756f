// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestNotThere: the error for a missing device names the command that helps.
func TestNotThere(t *testing.T) {
	dir := t.TempDir()
	_, err := Open(filepath.Join(dir, "xen"))
	if err == nil || !strings.Contains(err.Error(), "modprobe xen-gntdev xen-evtchn") || !strings.Contains(err.Error(), "make demo") {
		t.Errorf("without a directory: %v", err)
	}
	_, err = Open(dir)
	if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "modprobe xen-gntdev") {
		t.Errorf("without gntdev: %v", err)
	}
	// Any file can be opened. The first ioctl shows that it is no event channel device.
	for _, name := range []string{"gntdev", "evtchn"} {
		_, err := Open(dir)
		if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "modprobe xen-"+name) {
			t.Errorf("without %s: %v", name, err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	h, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.OpenEvents(1); !errors.Is(err, unix.ENOTTY) {
		t.Errorf("a file that restricts: %v", err)
	}
}
