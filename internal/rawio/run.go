// SPDX-License-Identifier: Apache-2.0

//go:build amd64 || arm64

package rawio

// run makes n calls, or fewer if one results in less than least and least is not
// 0. It returns how many it made before that one.
//
//go:noescape
func run(trap, fd uintptr, calls *Call, n, least uintptr) (done uintptr)
