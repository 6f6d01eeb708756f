// SPDX-License-Identifier: Apache-2.0

//go:build amd64 || arm64

package rawio

// run makes the calls, of which there is one at least. If least is not 0 it ends with
// one that results in less. It returns how many it made before that one.
//
//go:noescape
func run(trap, fd uintptr, calls []Call, least int) (done int)
