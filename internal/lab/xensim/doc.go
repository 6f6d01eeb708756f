// SPDX-License-Identifier: Apache-2.0

// Package xensim is an embedded Xen: a process that plays the hypervisor, the
// Linux kernel of each domain and xenstored, so that backends and frontends
// made for /dev/xen/* run, each as a process of its own, on any Linux.
//
// It is as strict as Xen. What Xen refuses it refuses, with the same errno or
// GNTST status; an event is masked until it is unmasked; a grant in use cannot
// be taken back; a map with one bad reference fails as a whole; a domain that
// was destroyed stays a zombie until its last page is released. A domain
// owns its memory and can change it, its rings and its grant table at any
// moment, from any process: the simulation does not trust this memory.
//
// [Run] serves two sockets in a directory. hyp.sock takes the calls of the device nodes
// (package wire; package simclient is the client, with the method sets of gntdev.Device,
// evtchn.Device and gntalloc.Device). xenstored.sock is dom0's xenstored socket.
// Everything that a process holds is released when its connections close, so any process,
// the backend included, can be killed and started again at any moment.
//
// A process names its domain, and the simulation does not verify it. The directory is
// private to one user, and everything in it runs as that user; untrusted guests need the
// real Xen.
//
// The parts are in packages of their own: hyp is the hypervisor, dev the
// kernel's device nodes, store the xenstored, toolstack a small xl. This package
// connects them to sockets. None of them depends on netbackd.
package xensim
