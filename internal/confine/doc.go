// SPDX-License-Identifier: Apache-2.0

// Package confine takes from a process all system calls that it does not need, for good and
// for all of its threads, by a seccomp filter. What a guest that has taken over such a
// process can do is what its open files allow, by the calls of its [Policy].
//
// The filter lists what is allowed. Go's runtime needs memory without execution, threads of
// the same process, its own signals, clocks and waits. On top of that come reads and writes
// of open files, messages on open sockets, and the ioctls of the policy by their numbers.
//
// # What becomes of other calls
//
// They fail with EPERM, and clone3, whose flags a filter cannot see, with ENOSYS, so that
// callers use clone. A library may try such a call on some path, such as a look for a
// configuration file, and goes on. Calls that no path of the program makes are proof that the
// process was taken over, and kill it: to execute a program, to read or change other
// processes, to load a program or module into the kernel, to change mounts, users, groups or
// keys, and calls of another architecture. See killed.
//
// # Order
//
// The kernel keeps a map of calls that a filter allows whatever their arguments are, and does
// not run the filter for these (since Linux 5.11). It runs for calls whose arguments matter.
// ioctl, which moves packets, is decided first.
//
// # io_uring
//
// A ring executes calls that no filter sees. A process makes its rings first, by
// iouring.Reserve, which restricts them. io_uring_setup is not allowed.
package confine
