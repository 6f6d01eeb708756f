// SPDX-License-Identifier: Apache-2.0

package dataplane

import "golang.org/x/sys/unix"

// pcOf returns the address of the next instruction.
func pcOf(r *unix.PtraceRegs) uint64 { return r.Rip }
