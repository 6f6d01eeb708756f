// SPDX-License-Identifier: Apache-2.0

//go:build amd64 || arm64

package rawio

// run makes the calls, at least one. If least is not 0 it ends with a call whose result
// is less than least, or more than most. It returns the number of calls made, without
// one whose result is less than least.
//
//go:noescape
func run(trap, fd uintptr, calls []Call, least, most int) (done int)
