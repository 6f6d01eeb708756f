// SPDX-License-Identifier: Apache-2.0

package xensim_test

import (
	"unsafe"

	"github.com/netbackd/netbackd/internal/lab/xensim/wire"
)

var probed = wire.Probed

// probe returns the address of the word that a client shows.
func probe() uint64 { return uint64(uintptr(unsafe.Pointer(&probed))) }
