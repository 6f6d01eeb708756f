// SPDX-License-Identifier: Apache-2.0

// Package diskio moves data between memory and a disk without waiting: an Engine takes
// reads, writes, flushes and discards, and has their completions later, in any order. One
// wait serves all that its thread waits for, since an Engine polls other files too, such
// as an event channel.
//
// An Engine uses io_uring, or a bounded pool of threads with pread(2) and pwrite(2) where
// io_uring is missing or switched off. It must not know rings, grants or guests.
//
// # Threads
//
// An Engine belongs to the OS thread that made it: call New and all methods on one
// goroutine that called runtime.LockOSThread.
//
// # Memory
//
// Memory is given by address. It must not be on the Go heap, and must stay mapped until
// the operation's completion was taken.
package diskio
