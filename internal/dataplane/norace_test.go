// SPDX-License-Identifier: Apache-2.0

//go:build !race

package dataplane

// raced is set if this binary has the race detector, which slows it down.
const raced = false
