// SPDX-License-Identifier: Apache-2.0

package netif

import "github.com/netbackd/netbackd/pkg/xen"

// Stamp identifies one connection in the header of each of its rings.
type Stamp = xen.Stamp

const _ = uint(wRing - xen.StampWord - xen.StampWords) // it fits

// NewStamp makes a stamp that no ring has. It is never zero.
func NewStamp() Stamp { return xen.NewStamp() }

// Header holds the words of a ring's header that record its service so far.
type Header struct {
	RspProd Index // of the next response; 0 in a ring that was just made
	Stamp   Stamp
}

// ReadHeader reads the header of the ring in page, each word once.
func ReadHeader(page []byte) (h Header, err error) {
	p, err := newPage(page)
	if err != nil {
		return h, err
	}
	h.RspProd = Index(p.load(wRspProd))
	for i := range h.Stamp {
		h.Stamp[i] = p.load(xen.StampWord + uint32(i))
	}
	return h, nil
}

// WriteStamp writes a stamp to the ring in page.
func WriteStamp(page []byte, s Stamp) error {
	p, err := newPage(page)
	if err != nil {
		return err
	}
	for i, w := range s {
		p.publish(xen.StampWord+uint32(i), w)
	}
	return nil
}
