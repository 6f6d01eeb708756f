// SPDX-License-Identifier: Apache-2.0

package steer

import (
	"errors"
	"os"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Error is the error of every function and method of this package.
type Error struct {
	// Op is the failed operation: "load" or "set".
	Op string
	// Err is or wraps an errno, an *ebpf.VerifierError, or os.ErrClosed.
	Err error
	// Hint tells the user what to do; it may be empty.
	Hint string
}

func (e *Error) Error() string {
	s := "steer: " + e.Op + ": " + e.Err.Error()
	if e.Hint != "" {
		s += "; " + e.Hint
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// fail makes err an *Error. nil stays nil.
func fail(op string, err error) error {
	if err == nil {
		return nil
	}
	return &Error{Op: op, Err: err, Hint: hint(err, mayBPF())}
}

// hint returns a remedy for an error of bpf(2), or "". may is set if the thread has the
// capability. Setting kernel.unprivileged_bpf_disabled to 0 would not help: a map of maps
// needs the capability.
func hint(err error, may bool) string {
	switch {
	case errors.Is(err, os.ErrClosed):
		return ""
	case errors.As(err, new(*ebpf.VerifierError)):
		return "this kernel's verifier does not accept the program; please report it"
	case errors.Is(err, unix.EPERM) && !may:
		return "CAP_BPF is needed (CapabilityBoundingSet= under systemd)"
	case errors.Is(err, unix.EPERM):
		return "bpf(2) is refused in spite of CAP_BPF: by a user namespace, a container or a seccomp filter; before Linux 5.11 also for want of locked memory (LimitMEMLOCK=)"
	case errors.Is(err, unix.ENOSYS), errors.Is(err, ebpf.ErrNotSupported):
		return "a kernel with CONFIG_BPF_SYSCALL is needed"
	}
	return ""
}

// mayBPF reports whether the calling thread has a capability for bpf(2), in its own user
// namespace at least.
func mayBPF() bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return false
	}
	has := func(c int) bool { return data[c/32].Effective&(1<<(c%32)) != 0 }
	return has(unix.CAP_BPF) || has(unix.CAP_SYS_ADMIN)
}
