// SPDX-License-Identifier: Apache-2.0

// Package scale tests what a daemon with many vifs costs: netbackd on the embedded Xen, with
// real TAPs, and a process that plays all guests. The programs are built without the race
// detector, whose memory would hide the daemon's.
package scale
