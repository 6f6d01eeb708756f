// SPDX-License-Identifier: Apache-2.0

//go:build !amd64 && !arm64

package prefetch

// Lines does nothing here.
func Lines([]uintptr) {}

// Span does nothing here.
func Span(uintptr, int) {}
