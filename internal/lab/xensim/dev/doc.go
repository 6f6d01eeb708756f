// SPDX-License-Identifier: Apache-2.0

// Package dev is the Linux in each domain of the embedded Xen, as far as the
// device nodes gntdev, evtchn and gntalloc go: what one open file of each can
// do, which errno it fails with, and what becomes of everything it holds when
// it is closed.
//
// It models drivers/xen/gntdev.c, evtchn.c and gntalloc.c of Linux 6.1 on top
// of package hyp's hypercalls, and reaches into the calling process as a kernel
// does, with process_vm_readv(2) and process_vm_writev(2).
//
// The package knows files, processes and errnos. It must not know how a call
// arrives: that is package xensim. But for Gntdev, a file belongs to one
// goroutine; only events come from others.
package dev
