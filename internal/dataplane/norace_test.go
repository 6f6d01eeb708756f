// SPDX-License-Identifier: Apache-2.0

//go:build !race

package dataplane

// raced says that the race detector slows this binary down.
const raced = false
