// SPDX-License-Identifier: Apache-2.0

// Package iouring is a small io_uring for one OS thread, in two forms. [Ring] is for batches
// of reads and writes on TAP queues: registered files, registered buffers, one
// io_uring_enter(2) per batch, and no operation left in the kernel after it. [Async] is for
// disks: operations complete later and in any order, and one wait serves them and polled
// files.
//
// It is the only package that knows io_uring's ABI (include/uapi/linux/io_uring.h). It
// must not know packets, rings of guests, or the kind of its files. It exists because
// the Go packages for io_uring that were found run a goroutine for completions, which
// needs wake-ups between threads.
//
// # No operation of a Ring waits
//
// When [Ring.Submit] returns without error, every operation queued before has
// completed; one that would have to wait has completed with -EAGAIN. So a batch takes a
// bounded time, as the system calls that it replaces do, and between batches a ring may
// be closed and a file removed.
//
// O_NONBLOCK does not have this effect. On a file that supports poll, io_uring waits in
// the background when an operation returns -EAGAIN (io_rw_init_file, io_uring/rw.c). The
// ring uses one of two ways, chosen for each file when it is set:
//
//   - RWF_NOWAIT on each operation, if the file accepts it. A TAP does since Linux 6.4
//     (438b406055cd); before, it returns -EOPNOTSUPP.
//   - Otherwise waiting operations are cancelled by one IORING_OP_ASYNC_CANCEL behind
//     the batch's reads, in the same system call. A TAP needs this on Linux 5.19 to 6.3.
//     An empty read costs more then, so a batch of reads should not be much larger than
//     the backlog.
//
// # Kernels
//
// Linux 5.19 is the oldest that can cancel all waiting operations with one request. On
// older kernels, and where io_uring is switched off or denied, [New] returns
// [ErrNotSupported] with the reason; then use plain system calls. From 6.1 on the ring
// has SINGLE_ISSUER and DEFER_TASKRUN.
//
// # Threads
//
// A ring belongs to the OS thread that made it: call [New] and all methods on one
// goroutine that called runtime.LockOSThread. The kernel refuses other threads with
// EEXIST (since 6.1).
//
// # Sandboxes
//
// An io_uring does what a filter of system calls forbids. [Reserve] makes rings before a
// process gives up the right to make any; the kernel restricts them to what the package does.
package iouring
