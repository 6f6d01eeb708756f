// SPDX-License-Identifier: Apache-2.0

// Package faults makes every call of a daemon to its host fail, one after the other, and
// checks that no failure does more harm than it has to.
//
// The daemon is the real one, on the embedded Xen with real TAPs and files. A first run
// counts its system calls by phase (start and takeover, connect, traffic, detach) and kind:
// the call, its request or message, and the kind of its file. Then each of them fails, with
// each error that it can have, while a guest goes through that phase and another guest looks
// on. See docs/faults.md for what is checked, and for the failures that are not injected.
//
// FAULTS=long runs all of them (make faults), FAULTS=100 a sample of 100 for each class, and
// FAULTS_ONLY those whose line has a text in it. The sample is another one for each
// FAULTS_SEED.
package faults
