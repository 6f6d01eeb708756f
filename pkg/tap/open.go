// SPDX-License-Identifier: Apache-2.0

package tap

import (
	"errors"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/nlsock"
)

// openExisting opens the first queue of a device with a vnet header that exists. The library
// would give it another owner. If it was deleted meanwhile, a new one is made.
func openExisting(cfg *Config) (int, error) {
	fd, err := openTUN()
	if err != nil {
		return -1, err
	}
	flags := cfg.flags()
	if cfg.NoCarrier {
		flags |= unix.IFF_NO_CARRIER
	}
	if err := attachByName(fd, cfg.Name, flags); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// openNetlink makes a device with a vnet header and opens its first queue. Whether it persists
// is left as it is.
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
	if err := nlsock.Do(func(h *netlink.Handle) error { return h.LinkAdd(t) }); err != nil {
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
