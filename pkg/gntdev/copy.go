// SPDX-License-Identifier: Apache-2.0

package gntdev

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Copy carries out all segments with one ioctl. If it returns nil, every segment
// was tried and has its own Status: a bad ref or a revoked grant fails that
// segment only. The guest may change a page before, during and after the copy.
//
// After an error the call has failed as a whole: some segments may have been
// copied, and all have [StatusGeneralError]. A guest cannot cause an error if the
// caller has checked off+n <= PageSize for every segment. Callers do that when they
// parse, because Copy refuses the whole batch.
//
// The kernel passes the hypervisor 16 operations at a time and splits a
// segment at the page ends of local memory, so page-aligned local buffers make
// one operation of one segment. A segment of length 0 always succeeds. Copy
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
// the end of the guest's page, has no direction or has no local memory. Any of
// them would make the kernel fail the whole batch halfway. It is exported for
// other implementations of Copy.
func Check(segs []Segment) error {
	for i := range segs {
		s := &segs[i]
		if hint := s.fault(); hint != "" {
			domid, ref, _ := s.Foreign()
			return &Error{Op: "copy", Index: i, Domid: domid, Ref: ref, Err: unix.EINVAL, Hint: hint}
		}
	}
	return nil
}

// fault returns the reason why Copy refuses the segment, or "".
func (s *Segment) fault() string {
	if s.flags != GuestIsSource && s.flags != GuestIsDest {
		return fmt.Sprintf("flags %#x: neither from the guest nor to it", uint16(s.flags))
	}
	if _, _, off := s.Foreign(); int(off)+int(s.len) > PageSize {
		return fmt.Sprintf("offset %d and length %d pass the end of the guest's page", off, s.len)
	}
	if s.Local() == 0 {
		return "no local memory"
	}
	return ""
}
