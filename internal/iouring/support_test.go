// SPDX-License-Identifier: Apache-2.0

package iouring

import (
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestSupportedHere(t *testing.T) {
	err := Supported()
	if errors.Is(err, ErrNotSupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestDeniedByTheKernel(t *testing.T) {
	for _, tt := range []struct {
		role         string
		want         string
		notSupported bool
	}{
		{"seccomp:" + errnoArg(unix.ENOSYS), "the kernel has none, or a seccomp filter hides it: function not implemented", true},
		{"seccomp:" + errnoArg(unix.EPERM), "denied by a seccomp filter or a security module: operation not permitted", true},
		{"seccomp:" + errnoArg(unix.EACCES), "denied by a seccomp filter or a security module: permission denied", true},
		{"seccomp:" + errnoArg(unix.EMFILE), "too many open files", false},
		{"seccomp:" + errnoArg(unix.EINVAL), "invalid argument", false},
		{"memlock:0", "LimitMEMLOCK=", false},      // where rings count against the limit, not even a ring
		{"memlock:262144", "LimitMEMLOCK=", false}, // enough for a ring, but not for the buffers
	} {
		t.Run(tt.role, func(t *testing.T) {
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), childEnv+"="+tt.role)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			if text := string(out); !strings.Contains(text, tt.want) {
				t.Errorf("got %q, want it to contain %q", text, tt.want)
			}
			if got := strings.HasSuffix(strings.TrimSpace(string(out)), "true"); got != tt.notSupported {
				t.Errorf("matches ErrNotSupported: %v, want %v", got, tt.notSupported)
			}
		})
	}
}

func errnoArg(errno unix.Errno) string { return strconv.Itoa(int(errno)) }

func TestDenialNamesTheSwitch(t *testing.T) {
	for sysctl, want := range map[string]string{
		"2": "kernel.io_uring_disabled=2",
		"1": "kernel.io_uring_group",
		"0": "seccomp",
		"":  "seccomp",
	} {
		if got := denial(sysctl); !strings.Contains(got, want) {
			t.Errorf("io_uring_disabled=%q: got %q, want it to contain %q", sysctl, got, want)
		}
	}
}

func TestOldKernelIsRefused(t *testing.T) {
	r := &Ring{fd: -1}
	err := r.init(&params{features: featuresNeeded &^ featCQESkip}) // Linux 5.10 to 5.16
	if !errors.Is(err, ErrNotSupported) || !strings.Contains(err.Error(), "older than Linux 5.19") {
		t.Errorf("got %v", err)
	}
}

func TestEntriesAreBounded(t *testing.T) {
	for _, n := range []uint32{0, MaxEntries + 1, 1 << 31} {
		if r, err := New(n); err == nil {
			t.Errorf("%d entries are accepted", n)
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}
