// SPDX-License-Identifier: Apache-2.0

// Package tracekill kills a process at one of its system calls. A tracer, which is a process of
// its own, follows all threads of the victim by ptrace, counts their system calls, and sends
// SIGKILL when one of them begins or has ended. At the beginning the call is not carried out; at
// the end it is, and the victim never learns its result.
//
// The program that uses it calls [Enter] first in its main function: it is started again as the
// tracer.
package tracekill
