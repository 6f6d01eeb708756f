// SPDX-License-Identifier: Apache-2.0

//go:build amd64 || arm64

package rawio

// run makes the calls, of which there is one at least. If least is not 0 it ends with
// one that results in less, or in more than most. It returns how many it made, but
// for one that results in less.
//
//go:noescape
func run(trap, fd uintptr, calls []Call, least, most int) (done int)
