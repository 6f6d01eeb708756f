// SPDX-License-Identifier: Apache-2.0

// Package xensim is an embedded Xen: a process that plays the hypervisor, the
// Linux kernel of each domain and xenstored, so that backends and frontends
// made for /dev/xen/* run, each as a process of its own, on any Linux.
//
// It is as strict as Xen. What Xen refuses it refuses, with the same errno or
// GNTST status; an event is masked until it is unmasked; a grant in use cannot
// be taken back; a map with one bad reference fails as a whole; a domain that
// was destroyed stays a zombie until the last page of it is let go. A domain
// owns its memory and can change it, its rings and its grant table at any
// moment, from any process: the simulation trusts no word of it.
//
// [Run] serves two sockets in a directory. hyp.sock takes hypercalls and what
// Linux makes of them (package wire; package simclient is the client, with the
// method sets of gntdev.Device, evtchn.Device and gntalloc.Device).
// xenstored.sock is dom0's xenstored socket. Everything a process holds goes
// when its connections close, so any process, backend included, can be killed
// and started again at any moment.
//
// A process says which domain it belongs to and is believed. The directory is
// private to one user, and everything in it runs as that user; guests that must
// not be trusted need the real Xen.
//
// The parts are in packages of their own: hyp is the hypervisor, dev the
// kernel's device nodes, store the xenstored, toolstack a small xl. Here is what
// ties them to sockets. None of them knows of netbackd.
package xensim
