// SPDX-License-Identifier: Apache-2.0

// Package blkscenario tests blkbackd as a whole: the real program, on the embedded Xen, with
// guests whose disks are checked to the byte. There is nothing in it but tests. With
// BLKBACKD_LAB_ISOLATE=shared, guest or group all of them run with disk processes.
package blkscenario
