// SPDX-License-Identifier: Apache-2.0

// Package device has the parts from which the life of one device of a back end, of any class,
// is made: a mailbox for the goroutine that owns the device, bounds of the work
// that the guest can cause, watches, the error node, the record for a successor, and the
// revisions of the status.
//
// The package knows the conventions of xenbus. It must not know a class of devices, or the
// set of them.
package device
