// SPDX-License-Identifier: Apache-2.0

// Package vhost tests netbackd's vhost-user devices with the front ends of others: DPDK's
// testpmd, and QEMU of two Debian releases with a guest of Debian's kernel. The script build
// fetches them. testdata has their messages as they were recorded.
package vhost
