// SPDX-License-Identifier: Apache-2.0

// Package systrace sees the system calls of a program of the lab before they run, and can
// make them fail, wait, or return other data, or kill the program in their place. It is for
// tests of what a daemon does when the host fails it.
//
// It uses seccomp's user notifications (Linux 5.0, 5.19 for programs in Go, whose threads
// often get signals). The filter is installed by the program itself before it starts: the
// program's main calls [Enter] first. All threads and children are traced as well. Calls
// that are not asked for run at full speed.
//
// A [Tracer] gives each [Call] to a handler, which answers with a [Verdict]. [Call.Kind]
// names what the call is: its name, its request or message, and the kind of its file.
package systrace
