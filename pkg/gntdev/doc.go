// SPDX-License-Identifier: Apache-2.0

// Package gntdev uses pages that other Xen domains have granted to this one, through
// Linux's /dev/xen/gntdev: it copies to and from them ([Device.Copy], many at
// once) and maps them ([Device.Map]).
//
// It knows the device's ioctls, the grant statuses and the memory that copies
// need on our side ([Arena]). It knows nothing of rings, of xenstore or of the
// contents of the pages.
//
// The guest can change a granted page at any time. Copied bytes do not change. Bytes
// of a [Mapping] must be read once, then checked, then used.
package gntdev
