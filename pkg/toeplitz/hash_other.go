// SPDX-License-Identifier: Apache-2.0

//go:build !amd64

package toeplitz

const haveAssembly = false

func hashMatrices(*[MaxKey]uint64, *byte, int) uint32 {
	panic("toeplitz: no assembly on this architecture")
}
