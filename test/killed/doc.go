// SPDX-License-Identifier: Apache-2.0

// Package killed kills netbackd and blkbackd again and again, at random instants and at every
// system call in turn, on the embedded Xen and under load, and starts a successor at once. The
// load knows every packet and every sector. docs/restarts.md has the promises and the figures;
// `make kill` is the long run.
package killed
