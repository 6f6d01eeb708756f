// SPDX-License-Identifier: Apache-2.0

// Package rawio makes many system calls on one file in one go.
//
// A system call from Go is a call through two functions to the instruction and
// two returns from there. Where the kernel keeps the processor from foreseeing
// returns across the boundary (return thunks, a refilled return stack), each of
// them costs some ten nanoseconds, every time: a tenth of what a small packet's
// write costs altogether. Here the loop over the calls is around the instruction
// itself, so there is nothing to return from until all are made.
//
// As with a raw system call the Go scheduler is not told, and the goroutine can
// not be preempted before the end: it is for files that do not block, some
// hundred short calls at a time.
//
// The package knows calls of three arguments. It must not know what is read or
// written.
package rawio

// Call is one read or write. It is 16 octets.
type Call struct {
	// Addr is where the data is, or an array of iovecs. It is not the Go
	// heap's, and stays mapped until the calls are made.
	Addr uintptr
	Len  uint32 // octets, or iovecs
	Res  int32  // octets read or written, or a negative errno
}

// All makes the system call trap (SYS_READ, SYS_WRITE, SYS_READV, SYS_WRITEV) on
// fd once for each of calls, in order, and leaves the results in them.
func All(trap uintptr, fd int, calls []Call) {
	if len(calls) > 0 {
		run(trap, uintptr(fd), calls, 0, 0)
	}
}

// Until is All, but ends with the first call that fails or reads nothing, or
// behind the first that reads more than most octets. It returns how many read
// something.
func Until(trap uintptr, fd int, calls []Call, most int) (n int) {
	if len(calls) == 0 {
		return 0
	}
	return run(trap, uintptr(fd), calls, 1, most)
}
