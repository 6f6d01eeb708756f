// SPDX-License-Identifier: Apache-2.0

package ctrlring

import (
	"sync/atomic"
	"unsafe"

	"github.com/netbackd/netbackd/pkg/netif"
)

// words is the number of indices at the start of a page, in both protocols.
const words = 4

// page is a shared page. The compiler may neither repeat nor split an atomic load, so
// every index is read once.
type page struct {
	mem []byte
	w   *[words]uint32
}

func newPage(b []byte) (page, error) {
	if len(b) != netif.PageSize || uintptr(unsafe.Pointer(&b[0]))%4 != 0 {
		return page{}, errPage
	}
	return page{b, (*[words]uint32)(unsafe.Pointer(&b[0]))}, nil
}

// load reads word i, before everything read after it.
func (p page) load(i int) uint32 { return atomic.LoadUint32(&p.w[i]) }

// publish writes word i, after everything written before it.
func (p page) publish(i int, v uint32) { atomic.StoreUint32(&p.w[i], v) }
