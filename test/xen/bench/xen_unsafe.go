// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// hypervisor reads the run time of domains from Xen, through /dev/xen/privcmd.
type hypervisor struct {
	fd  int
	mem []byte // resident: Xen does not take page faults
	abi uint32 // XEN_SYSCTL_INTERFACE_VERSION
}

const (
	iocHypercall = 0x00305000 // IOCTL_PRIVCMD_HYPERCALL: _IOC(NONE, 'P', 0, 48)

	hypercallSysctl   = 35
	getDomainInfoList = 6

	// struct xen_domctl_getdomaininfo, the same since Xen 4.0 up to here.
	infoDomain  = 0
	infoCPUTime = 56
)

func openHypervisor() (*hypervisor, error) {
	fd, err := unix.Open("/dev/xen/privcmd", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("/dev/xen/privcmd: %w", err)
	}
	mem, err := unix.Mmap(-1, 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	if err != nil {
		return nil, err
	}
	if err := unix.Mlock(mem); err != nil {
		return nil, err
	}
	h := &hypervisor{fd: fd, mem: mem}
	// Xen returns EACCES for any version except its own.
	for h.abi = 0x10; h.abi < 0x20; h.abi++ {
		if _, err = h.ran(); err != unix.EACCES {
			return h, err
		}
	}
	return nil, fmt.Errorf("sysctl of this Xen: %w", err)
}

// cpuTime holds the run time of domains in ns.
type cpuTime struct{ All, Dom0 uint64 }

// ran reads the run time of domains.
func (h *hypervisor) ran() (t cpuTime, err error) {
	call, info := h.mem[:4096], h.mem[4096:]
	for first := uint32(0); ; {
		clear(call[:136])
		binary.NativeEndian.PutUint32(call[0:], getDomainInfoList)
		binary.NativeEndian.PutUint32(call[4:], h.abi)
		binary.NativeEndian.PutUint16(call[8:], uint16(first))
		binary.NativeEndian.PutUint32(call[12:], 1)
		binary.NativeEndian.PutUint64(call[16:], uint64(uintptr(unsafe.Pointer(&info[0]))))
		arg := [6]uint64{hypercallSysctl, uint64(uintptr(unsafe.Pointer(&call[0])))}
		if _, _, e := unix.RawSyscall(unix.SYS_IOCTL, uintptr(h.fd), iocHypercall, uintptr(unsafe.Pointer(&arg))); e != 0 {
			return t, e
		}
		if binary.NativeEndian.Uint32(call[24:]) == 0 {
			return t, nil
		}
		ns, domain := binary.NativeEndian.Uint64(info[infoCPUTime:]), binary.NativeEndian.Uint16(info[infoDomain:])
		t.All += ns
		if domain == 0 {
			t.Dom0 = ns
		}
		first = uint32(domain) + 1
	}
}
