// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"
)

// ErrUnavailable is wrapped by the errors for a private network that this machine or this
// user cannot make. The message names the remedy.
var ErrUnavailable = errors.New("private network unavailable")

// tunPath is the node behind every TAP device.
const tunPath = "/dev/net/tun"

// CheckTUN returns nil if TAP devices can be opened here. Else the error wraps
// [ErrUnavailable] and names the remedy.
func CheckTUN() error {
	fd, err := unix.Open(tunPath, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err == nil {
		return unix.Close(fd)
	}
	return explainTUN(err)
}

func explainTUN(err error) error {
	hint := "see open(2)"
	switch {
	case errors.Is(err, fs.ErrNotExist):
		hint = "load the driver with `modprobe tun`, or, in a container, pass the device in"
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		hint = "this kernel has no TUN driver: `modprobe tun`, or build it with CONFIG_TUN"
	case errors.Is(err, fs.ErrPermission):
		hint = "run as root or `chmod 666 " + tunPath + "`"
	}
	return fmt.Errorf("%w: open %s: %w: %s", ErrUnavailable, tunPath, err, hint)
}

// explainClone turns the kernel's errors for a new namespace into errors that name the
// remedy. It returns other errors, and nil, unchanged.
func explainClone(err error) error {
	var hint string
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		hint = "run as root, or allow user namespaces " +
			"(sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0)"
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EUSERS):
		hint = "the limit is reached: see sysctl user.max_net_namespaces and user.max_user_namespaces"
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS):
		hint = "this kernel lacks CONFIG_NET_NS or CONFIG_USER_NS"
	default:
		return err
	}
	return fmt.Errorf("%w: new namespace: %w: %s", ErrUnavailable, err, hint)
}
