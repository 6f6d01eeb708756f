// SPDX-License-Identifier: Apache-2.0

package dev

import (
	"cmp"
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/xensim/hyp"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/xen"
)

// SegmentSize is sizeof(struct gntdev_grant_copy_segment).
const SegmentSize = 24

// segment is struct gntdev_grant_copy_segment, without the status.
type segment struct {
	source, dest side
	length       int
	fromGrant    bool // GNTCOPY_source_gref: source is a grant, else an address
	toGrant      bool // GNTCOPY_dest_gref
}

// side is a union: an address in the process, or
// { u32 ref; u16 offset; u16 domid }.
type side uint64

func (s side) ref() xen.Gref    { return xen.Gref(s) }
func (s side) offset() int      { return int(uint16(s >> 32)) }
func (s side) domid() xen.Domid { return xen.Domid(s >> 48) }

func parseSegment(b []byte) segment {
	flags := gntdev.Direction(binary.LittleEndian.Uint16(b[18:]))
	return segment{
		source:    side(binary.LittleEndian.Uint64(b[0:])),
		dest:      side(binary.LittleEndian.Uint64(b[8:])),
		length:    int(binary.LittleEndian.Uint16(b[16:])),
		fromGrant: flags&gntdev.GuestIsSource != 0,
		toGrant:   flags&gntdev.GuestIsDest != 0,
	}
}

// valid makes the checks that the kernel makes before it does anything for the segment.
func (s segment) valid() bool {
	switch {
	case !s.fromGrant && !s.toGrant:
		return false
	case s.fromGrant && s.source.offset()+s.length > hyp.PageSize:
		return false
	case s.toGrant && s.dest.offset()+s.length > hyp.PageSize:
		return false
	}
	return true
}

// ops returns the number of hypervisor operations that the kernel makes of the segment: one
// for each page of the process it touches.
func (s segment) ops() int {
	var addr uint64
	switch {
	case s.length == 0:
		return 0
	case !s.fromGrant:
		addr = uint64(s.source)
	case !s.toGrant:
		addr = uint64(s.dest)
	}
	return int((addr%hyp.PageSize + uint64(s.length) + hyp.PageSize - 1) / hyp.PageSize)
}

// maxRun is the number of segments that are pinned at once and moved by one system call.
// It has to stay below the largest number of uses of one reference (128).
const maxRun = 64

// Copier carries out copies for one thread that uses a Gntdev. It gathers segments of the
// same direction into runs. It keeps the order of segments.
type Copier struct {
	g      *Gntdev
	out    transfer // the segments of the run
	grants []hyp.Grant
	in     bool // the run reads the process (its grants are written), else writes it

	owner   *hyp.Domain // of the last segment
	ownerID xen.Domid
	known   bool // owner and ownerID are valid

	fault unix.Errno // ordered by a test: the call fails as a whole

	ops, bytes int
}

// NewCopier returns a Copier for one more thread.
func (g *Gntdev) NewCopier() *Copier { return &Copier{g: g} }

// Copy implements IOCTL_GNTDEV_GRANT_COPY on the segments laid out in segs. It sets a
// status for each. An errno means that the call failed as a whole and no status
// means anything; earlier segments may have been copied.
func (c *Copier) Copy(segs []byte, status []gntdev.Status) unix.Errno {
	c.known, c.fault, c.ops, c.bytes = false, 0, 0, 0
	errno := unix.Errno(0)
	for i := range status {
		s := parseSegment(segs[i*SegmentSize:])
		if !s.valid() {
			errno = unix.EINVAL
			break
		}
		if status[i], errno = c.add(s); errno != 0 {
			break
		}
	}
	if errno == 0 {
		errno = c.flush()
	}
	c.drop()
	c.g.dom.CountCopy(c.ops, c.bytes)
	return cmp.Or(errno, c.fault)
}

func (c *Copier) add(s segment) (gntdev.Status, unix.Errno) {
	if s.length == 0 {
		return gntdev.StatusOkay, 0 // the kernel skips it
	}
	c.ops += s.ops()
	if s.fromGrant && s.toGrant {
		if errno := c.flush(); errno != 0 {
			return 0, errno
		}
		return c.between(s), 0
	}
	if len(c.grants) > 0 && (c.in != s.toGrant || len(c.grants) == maxRun) {
		if errno := c.flush(); errno != 0 {
			return 0, errno
		}
	}
	foreign, local := s.source, uint64(s.dest)
	if s.toGrant {
		foreign, local = s.dest, uint64(s.source)
	}
	grant, st := c.acquire(foreign, s.toGrant)
	if st != gntdev.StatusOkay && len(c.grants) > 0 {
		// Xen releases one segment before it begins the next. After the flush our own
		// uses of the page cannot be the reason for a failure.
		if errno := c.flush(); errno != 0 {
			return 0, errno
		}
		if st == gntdev.StatusGeneralError {
			grant, st = c.acquire(foreign, s.toGrant)
		}
	}
	if st != gntdev.StatusOkay {
		return st, 0
	}
	c.in = s.toGrant
	c.grants = append(c.grants, grant)
	c.out.add(grant.Page()[foreign.offset():][:s.length], local)
	c.bytes += s.length
	return gntdev.StatusOkay, 0
}

// between copies from one grant to another. Xen looks for both domains before it claims
// the first grant.
func (c *Copier) between(s segment) gntdev.Status {
	if !c.find(s.source.domid()) || !c.find(s.dest.domid()) {
		return gntdev.StatusBadDomain
	}
	from, st := c.acquire(s.source, false)
	if st != gntdev.StatusOkay {
		return st
	}
	defer from.Release()
	to, st := c.acquire(s.dest, true)
	if st != gntdev.StatusOkay {
		return st
	}
	defer to.Release()
	copy(to.Page()[s.dest.offset():][:s.length], from.Page()[s.source.offset():][:s.length])
	c.bytes += s.length
	return gntdev.StatusOkay
}

// find makes owner the domain of that number, and reports whether there is one.
func (c *Copier) find(id xen.Domid) bool {
	if !c.known || id != c.ownerID {
		c.owner, c.ownerID, c.known = c.g.hv.Domain(id, c.g.dom.ID()), id, true
	}
	return c.owner != nil
}

func (c *Copier) acquire(s side, write bool) (hyp.Grant, gntdev.Status) {
	if !c.find(s.domid()) {
		return hyp.Grant{}, gntdev.StatusBadDomain
	}
	if c.fault == 0 {
		c.fault = c.owner.StrikeCall(s.ref())
	}
	return c.g.acquire(c.owner, s.ref(), write, hyp.ForCopy)
}

// flush moves the bytes of the run and releases its grants.
func (c *Copier) flush() unix.Errno {
	if len(c.grants) == 0 {
		return 0
	}
	err := c.out.run(c.g.process, c.in)
	c.drop()
	if err != nil {
		return unix.EFAULT
	}
	return 0
}

// drop forgets the run.
func (c *Copier) drop() {
	for _, grant := range c.grants {
		grant.Release()
	}
	c.grants = c.grants[:0]
	c.out = transfer{ours: c.out.ours[:0], theirs: c.out.theirs[:0]}
}
