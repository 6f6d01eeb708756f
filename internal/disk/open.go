// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Open opens the store that o names and takes its lock, for which it waits until ctx is
// done. Errors are of type *Error.
func Open(ctx context.Context, o Options) (*Disk, error) {
	if o.NullSize > 0 {
		return newNull(&o), nil
	}
	o.ReadOnly = o.ReadOnly || o.CDROM
	d := &Disk{id: Identity{Path: o.Path}, fd: -1, readOnly: o.ReadOnly, sectorMost: o.SectorSize}
	if err := d.identify(); err != nil {
		return nil, err
	}
	if err := d.openLocked(ctx, &o); err != nil {
		return nil, err
	}
	err := d.measure()
	if dev := d.loopDevice(); err == nil && dev != "" {
		err = &Error{Path: o.Path, Reason: ReasonInUse, Hint: "attached to " + dev + ": losetup --detach ends that"}
	}
	if err != nil {
		_ = d.Close() // nothing was written, and err says more
		return nil, err
	}
	return d, nil
}

// identify finds out what the path names, without an effect on it: opening some devices
// has one.
func (d *Disk) identify() error {
	fd, err := unix.Open(d.id.Path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return openError(d.id.Path, err)
	}
	var st unix.Stat_t
	err = errors.Join(unix.Fstat(fd, &st), unix.Close(fd))
	if err != nil {
		return openError(d.id.Path, err)
	}
	return d.setIdentity(&st)
}

// setIdentity takes the numbers of the file, and refuses files that are no disks.
func (d *Disk) setIdentity(st *unix.Stat_t) error {
	d.id.Device, d.id.Inode = st.Dev, st.Ino
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		d.id.Backing = KindFile
	case unix.S_IFBLK:
		d.id.Backing = KindBlock
		d.id.Major, d.id.Minor = unix.Major(st.Rdev), unix.Minor(st.Rdev)
	case unix.S_IFDIR:
		return &Error{Path: d.id.Path, Reason: ReasonDirectory, Hint: "name a raw image or a block device"}
	default:
		return &Error{Path: d.id.Path, Reason: ReasonKind, Hint: "name a raw image or a block device"}
	}
	return nil
}

// openFile opens the file once, with O_DIRECT if the cache mode wants it and the file
// takes it.
func (d *Disk) openFile(o *Options) error {
	flags := unix.O_CLOEXEC | unix.O_LARGEFILE
	switch {
	case o.ReadOnly:
		flags |= unix.O_RDONLY
	case d.id.Backing == KindBlock:
		flags |= unix.O_RDWR | unix.O_EXCL
	default:
		flags |= unix.O_RDWR
	}
	d.direct, d.bufferedWhy = false, ""
	if o.Cache == CacheDirect || o.Cache == CacheAuto && d.id.Backing == KindBlock {
		fd, err := unix.Open(d.id.Path, flags|unix.O_DIRECT, 0)
		if !errors.Is(err, unix.EINVAL) {
			d.fd, d.direct = fd, err == nil
			return d.sameFile(err)
		}
		d.bufferedWhy = "the file system has no O_DIRECT"
	}
	fd, err := unix.Open(d.id.Path, flags, 0)
	d.fd = fd
	return d.sameFile(err)
}

// sameFile checks that the file just opened, unless with err, is the one identified.
func (d *Disk) sameFile(err error) error {
	if err != nil {
		d.fd = -1
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(d.fd, &st); err != nil {
		return err
	}
	if st.Dev != d.id.Device || st.Ino != d.id.Inode {
		return errReplaced
	}
	return nil
}

// errReplaced means that the path names another file than before.
var errReplaced = errors.New("the file was replaced while it was opened")

// openError explains the error of an open(2).
func openError(path string, err error) *Error {
	e := &Error{Path: path, Err: err}
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		e.Reason, e.Hint = ReasonNotFound, "check target= of the disk in the guest's configuration"
		if strings.HasPrefix(path, "/tmp/") || strings.HasPrefix(path, "/var/tmp/") {
			e.Hint += "; the unit of blkbackd has a /tmp and a /var/tmp of its own (PrivateTmp=)"
		}
	case errors.Is(err, unix.EROFS):
		e.Reason, e.Hint = ReasonReadOnly, "serve it with access=ro, or make it writable"
	case errors.Is(err, os.ErrPermission):
		e.Reason, e.Hint = ReasonPermission, "check owner and mode of the file, and the sandbox of the unit"
	case errors.Is(err, unix.ENOMEDIUM), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		e.Reason, e.Hint = ReasonNoMedium, "attach the device or insert the medium"
	case errors.Is(err, unix.ETXTBSY):
		e.Reason, e.Hint = ReasonInUse, "the host uses it as swap or runs it as a program"
	case errors.Is(err, unix.EBUSY):
		e.Reason = ReasonInUse
	}
	return e
}

// sizeHint says how to make a file's size whole sectors.
func sizeHint(kind Kind, path string, size, unit uint64) string {
	if kind != KindFile {
		return ""
	}
	return fmt.Sprintf("truncate -s %%%d %s makes it %d bytes", unit, path, (size/unit+1)*unit)
}
