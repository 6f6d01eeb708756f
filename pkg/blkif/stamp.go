// SPDX-License-Identifier: Apache-2.0

package blkif

import "github.com/netbackd/netbackd/pkg/xen"

const _ = uint(wRing - xen.StampWord - xen.StampWords) // the stamp fits the header

// Header holds the words of a ring's header that record its service so far.
type Header struct {
	RspProd Index // of the next response; 0 in a ring that was just made
	Stamp   xen.Stamp
}

// ReadHeader reads the header of the ring in mem, each word once.
func ReadHeader(mem []byte) (h Header, err error) {
	w, err := words(mem)
	if err != nil {
		return h, err
	}
	r := ring{w: w}
	h.RspProd = Index(r.load(wRspProd))
	for i := range h.Stamp {
		h.Stamp[i] = r.load(xen.StampWord + uint32(i))
	}
	return h, nil
}

// WriteStamp writes a stamp to the ring in mem.
func WriteStamp(mem []byte, s xen.Stamp) error {
	w, err := words(mem)
	if err != nil {
		return err
	}
	r := ring{w: w}
	for i, v := range s {
		r.publish(xen.StampWord+uint32(i), v)
	}
	return nil
}
