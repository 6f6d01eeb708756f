// SPDX-License-Identifier: Apache-2.0

package tap

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"github.com/songgao/water"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// openNetlink opens the first queue of a device with a vnet header.
// Whether it persists is left as it is.
func openNetlink(cfg *Config) (int, error) {
	t := &netlink.Tuntap{
		LinkAttrs:  netlink.LinkAttrs{Name: cfg.Name},
		Mode:       netlink.TUNTAP_MODE_TAP,
		Flags:      netlink.TuntapFlag(cfg.flags() &^ unix.IFF_TAP),
		NonPersist: true, // which here means: leave it
		Queues:     1,
		// The library always sets an owner, and leaks the queue when
		// that fails. It cannot fail for ids which this process has.
		Owner: uint32(os.Geteuid()),
		Group: uint32(os.Getegid()),
	}
	if cfg.NoCarrier {
		t.Flags |= unix.IFF_NO_CARRIER
	}
	if err := netlink.LinkAdd(t); err != nil {
		return -1, errnoOf(err)
	}
	fd, err := takeFD(t.Fds[0])
	for _, f := range t.Fds {
		err = errors.Join(err, f.Close())
	}
	return fd, err
}

// errnoOf recovers the errno from an error of netlink's Tuntap code, which only
// prints it. An error it cannot tell stays as it is.
func errnoOf(err error) error {
	for _, e := range []unix.Errno{unix.EPERM, unix.EBUSY, unix.EINVAL, unix.E2BIG, unix.ENOMEM, unix.EEXIST} {
		if strings.HasSuffix(err.Error(), "errno "+e.Error()) {
			return e
		}
	}
	return err
}

// openWater opens the first queue of a device without a vnet header. Whether it
// persists is set, for the library cannot leave it as it is.
func openWater(cfg *Config, persist bool) (int, error) {
	// The library opens without close-on-exec, so nothing may be started
	// until the descriptor is ours, and it forgets the descriptor when the
	// kernel refuses the device. The lock makes both harmless: no child can
	// inherit it, and there is no other descriptor like it to be mistaken for
	// the forgotten one.
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

// takeFD returns a descriptor of our own for an open file, non-blocking and
// close-on-exec. f is to be closed, which takes it out of the runtime's poller.
// (f.Fd would make it blocking.)
func takeFD(f *os.File) (int, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd, dupErr := -1, error(nil)
	if err := conn.Control(func(theirs uintptr) {
		fd, dupErr = unix.FcntlInt(theirs, unix.F_DUPFD_CLOEXEC, 0)
	}); err != nil {
		return -1, err
	}
	if dupErr != nil {
		return -1, dupErr
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// closeForgotten closes queues that belong to no device and would be inherited:
// such as only package water opens, and only forgets.
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
