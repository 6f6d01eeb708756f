// SPDX-License-Identifier: Apache-2.0

// Package devices holds the set of devices that a back end serves in its domain. A Set
// watches the domain's backend directories of one or two classes in xenstore, starts a
// [Device] for each directory that appears there and is the program's to serve, passes
// events on to it, and keeps the connection to xenstore.
//
// Where the kernel has a driver for the same devices, the Set decides which of them the
// program serves, and takes them from the driver and gives them back.
//
// The package knows ids and directories of devices. What the devices do, and what their
// status has in it, is known to the [Kind] alone.
package devices
