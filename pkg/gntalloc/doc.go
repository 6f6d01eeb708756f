// SPDX-License-Identifier: Apache-2.0

// Package gntalloc makes pages and grants another Xen domain access to them,
// through Linux's /dev/xen/gntalloc. It is the frontend's side: what one domain
// allocates here, the other maps or copies through gntdev.
//
// It knows pages and grant references. It knows nothing of rings or of what is
// in the pages.
package gntalloc
