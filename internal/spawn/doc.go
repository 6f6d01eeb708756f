// SPDX-License-Identifier: Apache-2.0

// Package spawn starts processes of the own program that have nothing but a socket to the
// process that started them, and ends them with it.
//
// [Start] executes /proc/self/exe, so that the child is the same program also while a package
// is upgraded. From its first instruction the child has no capability and cannot gain one.
// It inherits no environment except settings of Go's runtime, no directory, no terminal and
// no files but the socket and its standard error. It is killed when its parent ends for any
// reason.
//
// [Begin] is called first in the child. It does what a process can only do for itself.
//
// The package knows neither the commands of the child nor its messages.
package spawn
