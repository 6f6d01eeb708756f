// SPDX-License-Identifier: Apache-2.0

//go:build amd64 || arm64

package prefetch

// Lines asks the processor to read the cache lines with these addresses.
//
//go:noescape
func Lines(addrs []uintptr)

// Span asks the processor to read a number of cache lines in a row, from that with addr on.
//
//go:noescape
func Span(addr uintptr, lines int)
