// SPDX-License-Identifier: Apache-2.0

//go:build !race

package dataplane

// raced is whether this binary is slowed down by the race detector.
const raced = false
