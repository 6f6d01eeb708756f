// SPDX-License-Identifier: Apache-2.0

// Package dev models the device nodes gntdev, evtchn and gntalloc of the Linux in each
// domain of the embedded Xen: the calls on an open file of each, their errnos, and the
// release of everything that the file holds when it is closed.
//
// It models drivers/xen/gntdev.c, evtchn.c and gntalloc.c of Linux 6.1 on top
// of package hyp's hypercalls, and reaches into the calling process as a kernel
// does, with process_vm_readv(2) and process_vm_writev(2).
//
// The package handles files, processes and errnos. Package xensim receives the calls.
// Except for Gntdev, a file belongs to one goroutine; only events come from others.
package dev
