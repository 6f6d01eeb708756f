// SPDX-License-Identifier: Apache-2.0

package tap

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Feature is a feature of the kernel's TUN driver.
type Feature uint16

// Features for [Probe], by their bits in TUNGETFEATURES.
const (
	// VnetHeader is a VnetHdr in front of each frame.
	VnetHeader Feature = unix.IFF_VNET_HDR
	// MultiQueue is more than one queue per device; Create needs it.
	MultiQueue Feature = unix.IFF_MULTI_QUEUE
	// NoCarrier is creating a device with its carrier off. Create does not depend on
	// it.
	NoCarrier Feature = unix.IFF_NO_CARRIER
)

// String returns the feature's name in the kernel.
func (f Feature) String() string {
	switch f {
	case VnetHeader:
		return "IFF_VNET_HDR"
	case MultiQueue:
		return "IFF_MULTI_QUEUE"
	case NoCarrier:
		return "IFF_NO_CARRIER"
	}
	return fmt.Sprintf("unknown(%#x)", uint16(f))
}

// Probe returns nil if the kernel has a feature, an error that wraps [ErrNotSupported]
// if it does not, and another error if that could not be found out. It makes no
// device. Offloads cannot be probed without a device.
func Probe(f Feature) error {
	has, err := features()
	if err != nil {
		return fail("probe", f.String(), err)
	}
	if has&f != f {
		return fail("probe", f.String(), ErrNotSupported)
	}
	return nil
}

func features() (Feature, error) {
	fd, err := openTUN()
	if err != nil {
		return 0, err
	}
	bits, err := unix.IoctlGetUint32(fd, unix.TUNGETFEATURES)
	if err != nil {
		err = fmt.Errorf("%s is not the TUN driver: %w", tunPath, err)
	}
	return Feature(bits), errors.Join(err, unix.Close(fd))
}

// usoSince is the first version of Linux whose TAP devices take VnetGSOUDP.
var usoSince = [2]int{6, 2}

// TakesUSO reports whether TAP devices take frames that are to be cut into datagrams
// (VnetGSOUDP), by the version of the kernel. A device can be asked with
// [Device.SetOffload], but only by a change of its offloads.
func TakesUSO() bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	return atLeast(unix.ByteSliceToString(u.Release[:]), usoSince)
}

// atLeast reports whether a kernel's release is of a version or of a later one.
func atLeast(release string, version [2]int) bool {
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return false
	}
	return major > version[0] || major == version[0] && minor >= version[1]
}
