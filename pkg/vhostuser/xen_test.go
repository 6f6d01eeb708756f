// SPDX-License-Identifier: Apache-2.0

package vhostuser

import (
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/virtqueue"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xentest"
)

// xenMapper has the grants of a guest in memory, and foreign pages in its own.
type xenMapper struct {
	Kernel
	guest   *xentest.Guest
	foreign []string // what was mapped
}

func (m *xenMapper) Grants(int) (Grants, error) { return m.guest.OpenGntdev() }

func (m *xenMapper) Foreign(_ int, domid xen.Domid, gfn uint64, n int) (Mapping, error) {
	m.foreign = append(m.foreign, fmt.Sprintf("%d: %d pages from %#x", domid, n, gfn))
	mem := make([]byte, n*pageSize)
	return &mapping{part: mem}, nil
}

func newXenBed(t *testing.T) (*bed, *xenMapper) {
	m := &xenMapper{guest: xentest.Start(t, 5)}
	b := newBed(t, func(c *BackendConfig) { c.Mapper = m })
	b.negotiate()
	return b, m
}

// stop ends the session before the guest does.
func (b *bed) stop() {
	b.t.Helper()
	b.must(b.f.Close())
	b.must(b.end())
}

// TestGrantRegions is the front end of xen-vhost-frontend: regions for the parts of rings,
// not page-aligned, and gaps that are not mapped, all with the user address 0.
func TestGrantRegions(t *testing.T) {
	for _, flags := range []uint32{RegionGrant | RegionNoAdvance, RegionGrant | RegionNoAdvanceRust} {
		t.Run(fmt.Sprintf("flags %#x", flags), func(t *testing.T) {
			b, m := newXenBed(t)
			const first = 100
			pages := m.guest.GrantRun(first, 8, gntdev.ReadWrite)
			base := uint64(grantBit | first*pageSize)
			avail, used, total := virtqueue.SplitOffsets(8)
			at := base + 0x1fc0 // across two pages
			fd := memfd(t, 1)
			b.must(b.f.SetMemory([]Region{
				{Guest: base, Size: 0x1fc0, Flags: flags, Domid: 5},
				{Guest: at, Size: uint64(total), Flags: flags, Domid: 5},
				{Guest: base + 0x3000, Size: 0x5000, Flags: flags, Domid: 5},
			}, []int{fd, fd, fd}))
			if m.guest.Usage().Pages != 0 {
				t.Error("pages are mapped before they are used")
			}
			b.must(b.f.StartRing(VringAddr{Descriptor: at, Available: at + uint64(avail), Used: at + uint64(used)}, 8, 0, -1, -1))
			r := b.rec.ring(0)
			r.Desc.Mem[0], r.Used.Mem[0] = 42, 43
			if pages[0x1fc0] != 42 || pages[0x1fc0+used] != 43 {
				t.Error("the ring is elsewhere")
			}
			region, kind, grants := b.rec.memory().Region(2)
			if region.Domid != 5 || kind != KindGrantCopy || grants == nil || Gref(region.Guest) != first+3 {
				t.Errorf("region %+v, %v", region, kind)
			}
			if b.rec.memory().Memory().Bytes(base, 1) != nil {
				t.Error("a buffer is mapped")
			}
			if _, err := b.f.StopRing(0); err != nil {
				t.Error(err)
			}
			if n := m.guest.Usage().Pages; n != 0 {
				t.Errorf("%d pages are mapped after the ring was stopped", n)
			}
			b.stop()
		})
	}
}

// TestGrantRegionInAdvance is mapped as a whole and unmapped with the table.
func TestGrantRegionInAdvance(t *testing.T) {
	b, m := newXenBed(t)
	pages := m.guest.GrantRun(100, 4, gntdev.ReadWrite)
	r := Region{Guest: 100*pageSize + 8, Size: 3 * pageSize, User: 0x5000, Flags: RegionGrant, Domid: 5}
	b.must(b.f.SetMemory([]Region{r}, []int{memfd(t, 1)}))
	if n := m.guest.Usage().Pages; n != 4 {
		t.Errorf("%d pages are mapped", n)
	}
	p, err := b.rec.memory().Find(0x5010, 1)
	b.must(err)
	p.Mem[0] = 42
	if pages[0x18] != 42 || p.Guest != 100*pageSize+0x18 {
		t.Errorf("part at %#x", p.Guest)
	}
	b.must(b.f.SetMemory(nil, nil))
	if u := m.guest.Usage(); u.Pages != 0 || u.Devices != 0 {
		t.Errorf("still in use: %+v", u)
	}
	b.stop()
}

// TestGrantThatCannotBeMapped is refused, and what was mapped before it is unmapped.
func TestGrantThatCannotBeMapped(t *testing.T) {
	b, m := newXenBed(t)
	m.guest.GrantRun(100, 1, gntdev.ReadWrite)
	fd := memfd(t, 1)
	err := b.f.SetMemory([]Region{
		{Guest: 100 * pageSize, Size: pageSize, Flags: RegionGrant, Domid: 5},
		{Guest: 200 * pageSize, Size: pageSize, User: 0x10000, Flags: RegionGrant, Domid: 5},
	}, []int{fd, fd})
	if !errors.Is(err, ErrRefused) {
		t.Errorf("error %v", err)
	}
	var e *gntdev.Error
	if err := b.end(); !errors.As(err, &e) || e.Ref != 200 {
		t.Errorf("the session ends with %v", err)
	}
}

// TestForeignRegion has ring addresses that are guest addresses, as QEMU's proposal.
func TestForeignRegion(t *testing.T) {
	b, m := newXenBed(t)
	b.must(b.f.SetMemory([]Region{{Guest: 0x40000800, Size: 0x4000, User: 0x1234, Flags: RegionForeign, Domid: 5}}, []int{memfd(t, 1)}))
	b.rec.took() // the back end's goroutine has mapped it
	if len(m.foreign) != 1 || m.foreign[0] != "5: 5 pages from 0x40000" {
		t.Errorf("mapped %q", m.foreign)
	}
	at := uint64(0x40001000)
	b.must(b.f.StartRing(VringAddr{Descriptor: at, Available: at + 128, Used: at + 256}, 8, 0, -1, -1))
	if r := b.rec.ring(0); r.Desc.Guest != at {
		t.Errorf("descriptors at %#x", r.Desc.Guest)
	}
	b.stop()
}

// TestForeignRegionsWithoutUserAddresses: those that overlap are not searched.
func TestForeignRegionsWithoutUserAddresses(t *testing.T) {
	b, _ := newXenBed(t)
	fd := memfd(t, 1)
	b.must(b.f.SetMemory([]Region{
		{Guest: 0, Size: 0x4000, Flags: RegionForeign, Domid: 5},
		{Guest: 0x10000, Size: 0x20000, Flags: RegionForeign, Domid: 5},
	}, []int{fd, fd}))
	if p, err := b.rec.memory().Find(0x11000, 1); err != nil || p.Guest != 0x11000 {
		t.Errorf("part at %#x, %v", p.Guest, err)
	}
	b.stop()
}

// TestGuestAddressesOfSharedMemory: only Xen's front ends send these for rings.
func TestGuestAddressesOfSharedMemory(t *testing.T) {
	table, err := newTable([]*mapped{{Region: guestRegion, bytes: make([]byte, guestSize)}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := table.Find(guestAddr, 1); !errors.Is(err, ErrAddress) {
		t.Errorf("error %v", err)
	}
	if p, err := table.Find(guestUser+1, 1); err != nil || p.Guest != guestAddr+1 {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestTooLargeRegions(t *testing.T) {
	for _, r := range []Region{
		{Guest: 0, Size: (maxForeignPages + 1) * pageSize, Flags: RegionForeign},
		{Guest: 0, Size: 1 << 63, Flags: RegionForeign},
		{Guest: 0, Size: (gntdev.MaxRefs + 1) * pageSize, Flags: RegionGrant},
	} {
		m := &xenMapper{guest: xentest.Start(t, 5)}
		if _, err := openRegion(m, r, -1); !errors.Is(err, ErrRegionRange) {
			t.Errorf("%+v: %v", r, err)
		}
	}
}

// TestPageErrors: a page that the kernel could not map fails the region, though the call
// succeeded.
func TestPageErrors(t *testing.T) {
	if err := pageErrors(7, []int32{0, 0}); err != nil {
		t.Error(err)
	}
	if err := pageErrors(7, []int32{0, -int32(unix.EINVAL), -int32(unix.ENOENT)}); !errors.Is(err, unix.EINVAL) {
		t.Errorf("error %v", err)
	}
}

// TestKernelForeign: the call goes to the device, which is none here.
func TestKernelForeign(t *testing.T) {
	mem := make([]byte, pageSize)
	if err := mapBatch(memfd(t, 1), 5, 7, mem, make([]int32, 1)); err != unix.ENOTTY {
		t.Errorf("error %v", err)
	}
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(null)
	if _, err := (Kernel{}).Foreign(null, 5, 7, 1); err == nil {
		t.Error("the null device has foreign pages")
	}
}

// TestSharedAcrossBlocks maps an offset that is not page-aligned.
func TestSharedAcrossBlocks(t *testing.T) {
	fd := memfd(t, 3*pageSize)
	if _, err := unix.Pwrite(fd, []byte("here"), pageSize+100); err != nil {
		t.Fatal(err)
	}
	m, err := Kernel{}.Shared(fd, pageSize+100, pageSize)
	if err != nil {
		t.Fatal(err)
	}
	if got := m.Bytes(); string(got[:4]) != "here" || len(got) != pageSize {
		t.Errorf("%d bytes, %q", len(got), got[:4])
	}
	if err := errors.Join(m.Unmap(), m.Unmap()); err != nil {
		t.Error(err)
	}
}
