// SPDX-License-Identifier: Apache-2.0

package toeplitz

import "golang.org/x/sys/cpu"

// haveAssembly reports whether the processor has the instructions, and the kernel
// saves their registers: Intel since Ice Lake, AMD since Zen 4.
var haveAssembly = cpu.X86.HasAVX512F && cpu.X86.HasAVX512BW && cpu.X86.HasAVX512VBMI && cpu.X86.HasAVX512GFNI

// hashMatrices returns the hash of 1 <= n <= MaxKey bytes at input.
//
//go:noescape
func hashMatrices(matrices *[MaxKey]uint64, input *byte, n int) uint32
