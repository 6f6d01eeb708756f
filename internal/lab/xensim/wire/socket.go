// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// AtSocket calls f with the address of the socket name in dir. The address uses a
// descriptor of dir, since a socket's address has room for only 108 bytes, fewer than some
// temporary directories' paths.
func AtSocket(dir, name string, f func(unix.Sockaddr) error) error {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	defer unix.Close(fd)
	if err := f(&unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/%s", fd, name)}); err != nil {
		return fmt.Errorf("%s/%s: %w", dir, name, err)
	}
	return nil
}

// Connect connects to the socket name in dir, of the given type.
func Connect(dir, name string, typ int) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, typ|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	err = AtSocket(dir, name, func(addr unix.Sockaddr) error {
		for {
			if err := unix.Connect(fd, addr); err != unix.EINTR {
				return err
			}
		}
	})
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}
