// SPDX-License-Identifier: Apache-2.0

// Package gntalloc makes pages and grants another Xen domain access to them,
// through Linux's /dev/xen/gntalloc. It is the frontend's side: the other domain maps
// or copies these pages through gntdev. A back end grants pages to its own domain, so
// that a copy between one of them and a guest's page needs only two grefs.
//
// It knows pages and grant references. It knows nothing of rings or of the contents of
// the pages.
package gntalloc
