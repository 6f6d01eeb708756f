// SPDX-License-Identifier: Apache-2.0

// Package confinetest tries from within a sandbox what a guest that has taken over the process
// might try, and says what the kernel answered. It also checks from outside what rights and
// files a process has.
//
// It knows system calls only, not the sandbox: its table says what has to come out.
package confinetest

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Attempt is a system call that must not succeed.
type Attempt struct {
	Name string
	Want unix.Errno // 0: it kills the process
	Do   func() unix.Errno
}

// Denied returns the attempts that fail with an error.
func Denied() []Attempt { return denied() }

// Deadly returns the attempts that kill the process.
func Deadly() []Attempt { return deadly() }

// Run makes all attempts that fail, and returns an error for each with another outcome.
func Run() error {
	var errs []error
	for _, a := range Denied() {
		if got := a.Do(); got != a.Want {
			errs = append(errs, fmt.Errorf("%s: %w, want: %w", a.Name, outcome(got), a.Want))
		}
	}
	return errors.Join(errs...)
}

// Die makes the deadly attempt of that name. It returns if the process still lives.
func Die(name string) error {
	for _, a := range Deadly() {
		if a.Name == name {
			return fmt.Errorf("%s: %w, and the process lives", name, outcome(a.Do()))
		}
	}
	return fmt.Errorf("no attempt is called %q", name)
}

func outcome(errno unix.Errno) error {
	if errno == 0 {
		return errors.New("it succeeded")
	}
	return errno
}

// try makes a system call with numbers as arguments.
func try(nr uintptr, args ...uintptr) func() unix.Errno {
	var a [6]uintptr
	copy(a[:], args)
	return func() unix.Errno {
		_, _, errno := unix.RawSyscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5])
		return errno
	}
}
