// SPDX-License-Identifier: Apache-2.0

// Package xenbus holds the conventions by which the two ends of a Xen device find
// each other in xenstore: the states of a device, the names and the directories of
// devices, and keys with their types.
//
// Each end of a device has a directory in xenstore, writes what it offers into it,
// and announces its progress in the node "state". The other end watches that node:
//
//	/local/domain/0/backend/vif/3/0    the back end of domain 3's first vif
//	/local/domain/3/device/vif/0       its frontend
//
// A back end of any class reads the keys that its frontend has published with a Reader:
// each key has a type and limits, and the first wrong one is an error that names it.
//
// The package does not speak to xenstored; see package xenstore.
package xenbus
