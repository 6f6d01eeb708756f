// SPDX-License-Identifier: Apache-2.0

// Package iouring is a small io_uring for one OS thread, made for batches of
// reads and writes on TAP queues: registered files, registered buffers, one
// io_uring_enter(2) per batch, and nothing left behind in the kernel.
//
// It knows io_uring's ABI (include/uapi/linux/io_uring.h) and is the only
// package that does. It knows nothing of packets, rings of guests, or what the
// files are.
//
// # No operation waits
//
// The kernel offers operations that complete some day. This package does not:
// when [Ring.Submit] returns without error, every operation queued before it has
// completed, and one that would have had to wait completed with -EAGAIN. So
// a batch is as bounded as the system calls it replaces, and a ring may be
// closed, or a file taken out, whenever no batch is under way.
//
// O_NONBLOCK alone does not give that. On a file that can poll, io_uring treats
// O_NONBLOCK as a reason to wait in the background, not as a reason to fail
// (io_rw_init_file, io_uring/rw.c). There are two ways out, and the ring picks
// one for each file when it is set:
//
//   - RWF_NOWAIT on each operation, where the file takes it. A TAP does since
//     Linux 6.4 (438b406055cd); before, it answers -EOPNOTSUPP.
//   - Otherwise operations run without it, and what waits is taken back by one
//     IORING_OP_ASYNC_CANCEL behind the batch's reads, in the same system call.
//     This is what a TAP needs on Linux 5.19 to 6.3. An empty read costs more
//     here, so batches of reads should not be much larger than the backlog.
//
// # Kernels
//
// Linux 5.19 is the oldest that can take back any waiting operation with one
// request, so older ones are refused, as are kernels where io_uring is switched
// off or denied: [ErrNotSupported] with the reason, and plain system calls
// are the answer. From 6.1 the ring is made with SINGLE_ISSUER and DEFER_TASKRUN.
//
// # Threads
//
// A ring belongs to the OS thread that made it: call [New] and everything else
// on one goroutine that did runtime.LockOSThread. The kernel refuses others with
// EEXIST (since 6.1).
package iouring
