// SPDX-License-Identifier: Apache-2.0

// Package rawio makes many system calls on one file in one loop.
//
// A system call from Go passes two functions before the instruction and returns
// through both. Where the kernel prevents the processor from predicting returns across
// the boundary (return thunks, a refilled return stack), each return costs some ten
// nanoseconds: a tenth of the write of a small packet. The loop of this package is in
// assembly around the instruction, so that nothing returns until all calls are made.
// test/bench compares the loop with one in C. No Go package for this was found.
//
// As with a raw system call the Go scheduler is not informed, and the goroutine cannot
// be preempted before the end. So the files must not block, and the calls must be short
// and a few hundred at most.
//
// The package makes system calls of three arguments. It must not depend on the data that
// is read or written.
package rawio

// Call is one read or write. It takes 16 bytes.
type Call struct {
	// Addr is the address of the data, or of an array of iovecs. It is not on the
	// Go heap and must stay mapped until the calls are made.
	Addr uintptr
	Len  uint32 // bytes, or iovecs
	Res  int32  // bytes read or written, or a negative errno
}

// All makes the system call trap (SYS_READ, SYS_WRITE, SYS_READV, SYS_WRITEV) on fd
// once for each of calls, in order, and stores the results in them.
func All(trap uintptr, fd int, calls []Call) {
	if len(calls) > 0 {
		run(trap, uintptr(fd), calls, 0, 0)
	}
}

// Until makes read calls as All does, but ends with the first that fails or reads
// nothing, or after the first that reads more than most bytes. It returns the number of
// calls that read data.
func Until(trap uintptr, fd int, calls []Call, most int) (n int) {
	if len(calls) == 0 {
		return 0
	}
	return run(trap, uintptr(fd), calls, 1, most)
}
