// SPDX-License-Identifier: Apache-2.0

package netif

import "unsafe"

// The compiler checks the sizes of netif.h: for a struct of another size one of the
// two differences is a negative constant, which does not fit a uint.
const (
	_ = uint(unsafe.Sizeof(TxRequest{})-12) + uint(12-unsafe.Sizeof(TxRequest{}))
	_ = uint(unsafe.Sizeof(TxResponse{})-4) + uint(4-unsafe.Sizeof(TxResponse{}))
	_ = uint(unsafe.Sizeof(RxRequest{})-8) + uint(8-unsafe.Sizeof(RxRequest{}))
	_ = uint(unsafe.Sizeof(RxResponse{})-8) + uint(8-unsafe.Sizeof(RxResponse{}))
	_ = uint(unsafe.Sizeof(ExtraInfo{})-8) + uint(8-unsafe.Sizeof(ExtraInfo{}))
	_ = uint(unsafe.Sizeof(CtrlRequest{})-16) + uint(16-unsafe.Sizeof(CtrlRequest{}))
	_ = uint(unsafe.Sizeof(CtrlResponse{})-12) + uint(12-unsafe.Sizeof(CtrlResponse{}))
	_ = uint(unsafe.Sizeof(GrefEntry{})-8) + uint(8-unsafe.Sizeof(GrefEntry{}))
)
