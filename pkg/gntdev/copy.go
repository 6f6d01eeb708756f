// SPDX-License-Identifier: Apache-2.0

package gntdev

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/xen"
)

// Copy carries out all segments with one ioctl. If it returns nil, every segment
// was tried and has its own Status: a bad ref or a revoked grant fails that
// segment only. The guest may change a page before, during and after the copy.
//
// After an error the call has failed as a whole: some segments may have been
// copied, and all have [StatusGeneralError]. A guest cannot cause an error if the
// caller has checked off+n <= PageSize for every segment, on each side that is a gref.
// Callers do that when they parse, because Copy refuses the whole batch.
//
// The kernel passes the hypervisor 16 operations at a time and splits a
// segment at the page ends of local memory, so page-aligned local buffers make
// one operation of one segment. With an own page on our side a segment is always one
// operation, and the kernel pins no page. A segment of length 0 always succeeds. Copy
// allocates nothing.
func (d *Device) Copy(segs []Segment) error {
	if len(segs) == 0 {
		return nil
	}
	if err := Check(segs); err != nil {
		return err
	}
	fd := d.fd.Hold()
	defer d.fd.Release()
	if fd < 0 {
		return &Error{Op: "copy", Index: -1, Err: ErrClosed}
	}
	if err := d.kernel.grantCopy(fd, segs); err != nil {
		// The kernel sets each status to GNTST_okay before it copies, so
		// after a failure it would read as a success.
		for i := range segs {
			segs[i].status = StatusGeneralError
		}
		return &Error{Op: "copy", Index: -1, Err: err, Hint: copyHint(err)}
	}
	return nil
}

// Check returns the error Copy would refuse segs with: a segment that crosses
// the end of a granted page, has no direction or has no memory on our side. Any of
// them would make the kernel fail the whole batch halfway. It is exported for
// other implementations of Copy.
func Check(segs []Segment) error {
	for i := range segs {
		s := &segs[i]
		if s.sound() {
			continue
		}
		domid, ref, _ := s.Foreign()
		return &Error{Op: "copy", Index: i, Domid: domid, Ref: ref, Err: unix.EINVAL, Hint: s.fault()}
	}
	return nil
}

// sound reports whether Copy takes the segment.
func (s *Segment) sound() bool {
	n := uint64(s.len)
	from, to := s.source>>32&0xffff+n, s.dest>>32&0xffff+n // ends in the pages that are grefs
	switch {
	case s.flags == bothGrefs && s.dir == GuestIsDest:
		return s.source>>48 == uint64(xen.DomidSelf) && from <= PageSize && to <= PageSize
	case s.flags == bothGrefs && s.dir == GuestIsSource:
		return s.dest>>48 == uint64(xen.DomidSelf) && from <= PageSize && to <= PageSize
	case s.flags != uint16(s.dir):
		return false
	case s.dir == GuestIsDest:
		return s.source != 0 && to <= PageSize
	}
	return s.dir == GuestIsSource && s.dest != 0 && from <= PageSize
}

// fault returns the reason why Copy refuses a segment that is not sound.
func (s *Segment) fault() string {
	if s.dir != GuestIsSource && s.dir != GuestIsDest || s.flags != bothGrefs && s.flags != uint16(s.dir) {
		return fmt.Sprintf("flags %#x: neither from the guest nor to it", s.flags)
	}
	if _, _, off := s.Foreign(); int(off)+int(s.len) > PageSize {
		return fmt.Sprintf("offset %d and length %d pass the end of the guest's page", off, s.len)
	}
	ours := s.ours()
	if s.flags != bothGrefs {
		return "no local memory"
	}
	if domid := xen.Domid(ours >> 48); domid != xen.DomidSelf {
		return fmt.Sprintf("our side is a page of domain %d", domid)
	}
	return fmt.Sprintf("offset %d and length %d pass the end of our page", uint16(ours>>32), s.len)
}
