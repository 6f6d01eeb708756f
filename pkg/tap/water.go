// SPDX-License-Identifier: Apache-2.0

package tap

import (
	"errors"
	"io/fs"
	"os"
	"syscall"

	"github.com/songgao/water"
	"golang.org/x/sys/unix"
)

// Package water opens the devices without a vnet header. This file holds the defence
// against its faults: it opens /dev/net/tun without close-on-exec, and it does not close
// the descriptor when the kernel refuses the device. So a program that is started
// meanwhile could inherit a queue, and each refusal would leak one.

// openWater opens the first queue of a device without a vnet header. It sets whether the
// device persists, because water cannot leave that as it is.
func openWater(cfg *Config, persist bool) (int, error) {
	// No program is started before the descriptor is duplicated with close-on-exec. So no
	// child inherits it, and there is no other descriptor like the one that water may
	// leak: closeForgotten finds it.
	syscall.ForkLock.Lock()
	defer syscall.ForkLock.Unlock()

	ifce, err := water.New(water.Config{
		DeviceType: water.TAP,
		PlatformSpecificParams: water.PlatformSpecificParams{
			Name:       cfg.Name,
			Persist:    persist,
			MultiQueue: !cfg.Single,
		},
	})
	if err != nil {
		return -1, errors.Join(err, closeForgotten())
	}
	f, ok := ifce.ReadWriteCloser.(*os.File)
	if !ok {
		return -1, errors.Join(errors.ErrUnsupported, ifce.Close())
	}
	fd, err := takeFD(f)
	return fd, errors.Join(err, f.Close())
}

// closeForgotten closes queues that belong to no device and would be inherited. Only water
// opens such queues, and leaks them. The caller holds syscall.ForkLock.
func closeForgotten() error {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if errors.Is(err, fs.ErrNotExist) || target != tunPath {
			continue
		}
		fd, ok := atoi(e.Name())
		if !ok {
			continue
		}
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if err != nil || flags&unix.FD_CLOEXEC != 0 {
			continue
		}
		if _, err := ifName(fd); errors.Is(err, unix.EBADFD) {
			errs = append(errs, unix.Close(fd))
		}
	}
	return errors.Join(errs...)
}
