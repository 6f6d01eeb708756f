// SPDX-License-Identifier: Apache-2.0

package gntdev

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/xen"
)

// MaxRefs is the largest number of refs of one Map: the kernel's default for
// /sys/module/xen_gntdev/parameters/limit.
const MaxRefs = 64 * 1024

// maxProbes bounds how many refs of a failed Map are tried one by one to find
// the one at fault. A vif's rings have far fewer.
const maxProbes = 16

// bringInRefs bounds the pages that one call brings in.
const bringInRefs = 256

// Map maps refs of domid side by side. One bad ref fails the whole call, and
// the error names it if it can be found. A mapping takes two grant handles of the
// hypervisor per page in a PV domain, and one elsewhere. All guests share these, so
// callers bound the pages that a guest may make them map.
//
// Map is for pages that are used often, such as rings. For a page that is used once
// Copy is cheaper.
func (d *Device) Map(domid xen.Domid, refs []xen.Gref, prot Prot) (*Mapping, error) {
	if len(refs) == 0 || len(refs) > MaxRefs {
		return nil, &Error{Op: "map", Index: -1, Domid: domid, Err: unix.EINVAL,
			Hint: fmt.Sprintf("%d refs: from 1 to %d can be mapped at once", len(refs), MaxRefs)}
	}
	fd := d.fd.Hold()
	defer d.fd.Release()
	if fd < 0 {
		return nil, &Error{Op: "map", Index: -1, Domid: domid, Err: ErrClosed}
	}
	d.bringIn(fd, domid, refs)
	index, err := d.kernel.mapGrantRef(fd, domid, refs)
	if err != nil {
		return nil, &Error{Op: "map", Index: -1, Domid: domid, Err: err, Hint: recordHint(err, len(refs))}
	}
	count := len(refs) // refs stays the caller's
	mem, err := d.mmap(fd, index, count, prot)
	if err != nil {
		return nil, d.explain(fd, domid, refs, prot, err)
	}
	return NewMapping(mem, func() error { return d.unmap(index, count, mem) }), nil
}

// bringIn copies a byte of each page, so that a page which is paged out comes in. A
// page that is not there makes the kernel try again for up to half a minute, and
// while mmap(2) does that it has the address space of the whole process locked for
// writing (gntdev_mmap in drivers/xen/gntdev.c): no thread can map memory or fault in
// a page meanwhile. A copy waits without that lock. Errors are ignored, because the
// mapping fails for the same reason. The caller holds fd.
func (d *Device) bringIn(fd int, domid xen.Domid, refs []xen.Gref) {
	a, err := NewArena(1)
	if err != nil {
		return
	}
	defer a.Close()
	segs := make([]Segment, min(len(refs), bringInRefs))
	for part := range slices.Chunk(refs, bringInRefs) {
		for i, ref := range part {
			segs[i].FromGuest(domid, ref, 0, a.Bytes()[:1])
		}
		if d.kernel.grantCopy(fd, segs[:len(part)]) != nil {
			return
		}
	}
}

// mmap maps the refs that the kernel has recorded at index. Recording checks nothing,
// mapping checks all refs. The caller holds fd.
func (d *Device) mmap(fd int, index uint64, count int, prot Prot) ([]byte, error) {
	mem, err := d.kernel.mmap(fd, index, count*PageSize, prot)
	if err != nil {
		// The record cannot be mapped a second time and would stay until the
		// device is closed. The mmap error is the one to report.
		_ = d.kernel.unmapGrantRef(fd, index, count)
		return nil, err
	}
	return mem, nil
}

// unmap implements Mapping.Unmap. The memory is unmapped before the record is removed,
// as the header of the ioctl demands. If the device was closed, the kernel has removed
// the record already.
func (d *Device) unmap(index uint64, count int, mem []byte) error {
	err := d.kernel.munmap(mem)
	fd := d.fd.Hold()
	defer d.fd.Release()
	if fd >= 0 {
		if e := d.kernel.unmapGrantRef(fd, index, count); err == nil {
			err = e
		}
	}
	if err != nil {
		return &Error{Op: "unmap", Index: -1, Err: err}
	}
	return nil
}

// explain makes the error of a failed Map. mmap(2) returns EINVAL for every fault of
// any ref. So explain maps the refs one by one until one fails, and copies one byte
// from that one, since a copy has a status. The caller holds fd.
func (d *Device) explain(fd int, domid xen.Domid, refs []xen.Gref, prot Prot, cause error) error {
	e := &Error{Op: "map", Index: -1, Domid: domid, Err: cause}
	for i := range refs[:min(len(refs), maxProbes)] {
		if d.probe(fd, domid, refs[i], prot) == nil {
			continue
		}
		e.Index, e.Ref = i, refs[i]
		e.Status = d.probeStatus(fd, domid, refs[i])
		if e.Status == StatusOkay && prot == ReadWrite && d.probe(fd, domid, refs[i], ReadOnly) == nil {
			e.Status = StatusPermissionDenied
			e.Hint = "the guest granted this page read-only"
		}
		return e
	}
	if len(refs) <= maxProbes {
		e.Hint = "each ref maps alone: the hypervisor may be out of grant handles (gnttab_max_maptrack_frames=)"
	}
	return e
}

// probe maps one ref and unmaps it at once.
func (d *Device) probe(fd int, domid xen.Domid, ref xen.Gref, prot Prot) error {
	index, err := d.kernel.mapGrantRef(fd, domid, []xen.Gref{ref})
	if err != nil {
		return err
	}
	mem, err := d.mmap(fd, index, 1, prot)
	if err != nil {
		return err
	}
	_ = d.kernel.munmap(mem)
	_ = d.kernel.unmapGrantRef(fd, index, 1)
	return nil
}

// probeStatus returns the status of a copy of one byte from a ref, or StatusOkay if
// the copy could not be made.
func (d *Device) probeStatus(fd int, domid xen.Domid, ref xen.Gref) Status {
	a, err := NewArena(1)
	if err != nil {
		return StatusOkay
	}
	defer a.Close()
	var seg [1]Segment
	seg[0].FromGuest(domid, ref, 0, a.Bytes()[:1])
	if d.kernel.grantCopy(fd, seg[:]) != nil {
		return StatusOkay
	}
	return seg[0].status
}
