// SPDX-License-Identifier: Apache-2.0

package gntdev

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/internal/xendev"
	"github.com/netbackd/netbackd/pkg/xen"
)

// fake is a kernel with one guest. It fails as the real one does, and writes
// down every call. It stands below the Device, whose double is [xentest.Gntdev]: the tests
// here are of the system calls that the Device makes.
type fake struct {
	domid xen.Domid
	bad   []xen.Gref // neither copied nor mapped
	ro    []xen.Gref // granted read-only

	mapErr, mmapErr, munmapErr, copyErr error

	calls   []string
	records map[uint64][]xen.Gref
	next    uint64
	mapped  int
}

var _ kernel = (*fake)(nil)

func newFake() *fake { return &fake{domid: 7, records: map[uint64][]xen.Gref{}} }

// device is a Device on the fake, with a descriptor no file has.
func (f *fake) device() *Device { return &Device{kernel: f, fd: xendev.New(1 << 20)} }

func (f *fake) log(format string, args ...any) {
	f.calls = append(f.calls, fmt.Sprintf(format, args...))
}

func (f *fake) grantCopy(_ int, segs []Segment) error {
	f.log("copy %d", len(segs))
	for i := range segs {
		domid, ref, _ := segs[i].Foreign()
		switch {
		case domid != f.domid:
			segs[i].status = StatusBadDomain
		case slices.Contains(f.bad, ref):
			segs[i].status = StatusBadGntref
		case slices.Contains(f.ro, ref) && segs[i].Direction() == GuestIsDest:
			segs[i].status = StatusGeneralError
		default:
			segs[i].status = StatusOkay
		}
	}
	return f.copyErr
}

func (f *fake) mapGrantRef(_ int, domid xen.Domid, refs []xen.Gref) (uint64, error) {
	f.log("map %d %v", domid, refs)
	if f.mapErr != nil {
		return 0, f.mapErr
	}
	f.next += 0x10000
	if domid != f.domid {
		refs = f.bad
	}
	f.records[f.next] = slices.Clone(refs)
	return f.next, nil
}

func (f *fake) mmap(_ int, index uint64, length int, prot Prot) ([]byte, error) {
	f.log("mmap %#x %d %v", index, length, prot)
	refs, ok := f.records[index]
	if !ok || f.mmapErr != nil {
		return nil, f.mmapErr
	}
	for _, ref := range refs {
		if slices.Contains(f.bad, ref) || slices.Contains(f.ro, ref) && prot == ReadWrite {
			return nil, unix.EINVAL
		}
	}
	f.mapped++
	return make([]byte, length), nil
}

func (f *fake) munmap(mem []byte) error {
	f.log("munmap %d", len(mem))
	f.mapped--
	return f.munmapErr
}

func (f *fake) unmapGrantRef(_ int, index uint64, count int) error {
	f.log("unmap %#x %d", index, count)
	if refs, ok := f.records[index]; !ok || len(refs) != count {
		return unix.ENOENT
	}
	delete(f.records, index)
	return nil
}

func (f *fake) close(int) error {
	f.log("close")
	return nil
}

// firstError returns an error that names the first segment that failed.
func firstError(segs []Segment) error {
	for i := range segs {
		s := &segs[i]
		if s.status != StatusOkay {
			domid, ref, _ := s.Foreign()
			return &Error{Op: "copy", Index: i, Domid: domid, Ref: ref, Status: s.status}
		}
	}
	return nil
}
