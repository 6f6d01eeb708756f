// SPDX-License-Identifier: Apache-2.0

// Package gntdev uses the pages other Xen domains granted to this one, through
// Linux's /dev/xen/gntdev: it copies to and from them ([Device.Copy], many at
// once) and maps them ([Device.Map]).
//
// It knows the device's ioctls, the grant statuses and the memory that copies
// need on our side ([Arena]). It knows nothing of rings, of xenstore or of
// what is in the pages.
//
// Everything in a granted page can change at any time. Copied bytes stay what
// they are; bytes of a [Mapping] are to be read once, then checked, then used.
package gntdev
