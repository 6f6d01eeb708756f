// SPDX-License-Identifier: Apache-2.0

package tap

import (
	"os"

	"golang.org/x/sys/unix"
)

const tunPath = "/dev/net/tun"

// Flags of ours that tell devices apart (linux/if_tun.h).
const (
	flagsPlain = unix.IFF_TAP | unix.IFF_MULTI_QUEUE | unix.IFF_NO_PI
	flagsVnet  = flagsPlain | unix.IFF_VNET_HDR
)

// openTUN opens a queue that belongs to no device yet.
func openTUN() (int, error) {
	fd, err := unix.Open(tunPath, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, withHint(&os.PathError{Op: "open", Path: tunPath, Err: err}, openHint(err))
	}
	return fd, nil
}

// ifName asks a queue for the present name of its device. It fails with EBADFD
// once the device has been deleted.
func ifName(fd int) (string, error) {
	ifr, err := unix.NewIfreq("")
	if err != nil {
		return "", err
	}
	if err := unix.IoctlIfreq(fd, unix.TUNGETIFF, ifr); err != nil {
		return "", err
	}
	return ifr.Name(), nil
}

// attachByName makes fd a queue of the device called name (TUNSETIFF).
func attachByName(fd int, name string, flags uint16) error {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	ifr.SetUint16(flags)
	return unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
}

// isDetached asks whether a queue was taken away from the host (Use).
func isDetached(fd int) (bool, error) {
	ifr, err := unix.NewIfreq("")
	if err != nil {
		return false, err
	}
	if err := unix.IoctlIfreq(fd, unix.TUNGETIFF, ifr); err != nil {
		return false, err
	}
	return ifr.Uint16()&unix.IFF_DETACH_QUEUE != 0, nil
}

// setAttached gives a queue to the host, or takes it away without closing it
// (TUNSETQUEUE). The queue keeps its device either way.
func setAttached(fd int, attached bool) error {
	ifr, err := unix.NewIfreq("")
	if err != nil {
		return err
	}
	if attached {
		ifr.SetUint16(unix.IFF_ATTACH_QUEUE)
	} else {
		ifr.SetUint16(unix.IFF_DETACH_QUEUE)
	}
	return unix.IoctlIfreq(fd, unix.TUNSETQUEUE, ifr)
}

// setPersist makes the device outlive its last queue, or not.
func setPersist(fd int, on bool) error {
	return unix.IoctlSetInt(fd, unix.TUNSETPERSIST, boolInt(on))
}

func setCarrier(fd int, on bool) error {
	return unix.IoctlSetPointerInt(fd, unix.TUNSETCARRIER, boolInt(on))
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// Ioctls returns the numbers of the ioctls that a Device makes once it exists, for filters of
// system calls.
func Ioctls() []uint32 {
	return []uint32{unix.TUNGETIFF, unix.TUNSETQUEUE, unix.TUNSETCARRIER, unix.TUNSETOFFLOAD, unix.TUNSETPERSIST,
		unix.TUNGETDEVNETNS, unix.TUNSETSTEERINGEBPF, unix.TUNSETTXFILTER, unix.TUNGETFEATURES}
}
