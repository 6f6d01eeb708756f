// SPDX-License-Identifier: Apache-2.0

package blkcheck

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Limit returns the hard limit of a resource of this process.
func Limit(resource int) (uint64, error) {
	var l unix.Rlimit
	err := unix.Getrlimit(resource, &l)
	return l.Max, err
}

// names of file systems by their magic numbers, and whether they are of a server.
var fileSystems = map[int64]struct {
	name    string
	network bool
}{
	unix.EXT4_SUPER_MAGIC:  {"ext4", false},
	unix.XFS_SUPER_MAGIC:   {"xfs", false},
	unix.BTRFS_SUPER_MAGIC: {"btrfs", false},
	unix.TMPFS_MAGIC:       {"tmpfs", false},
	unix.NFS_SUPER_MAGIC:   {"NFS", true},
	unix.SMB2_SUPER_MAGIC:  {"SMB", true},
	unix.CEPH_SUPER_MAGIC:  {"CephFS", true},
	0x2fc12fc1:             {"ZFS", false},
	unix.FUSE_SUPER_MAGIC:  {"FUSE", false},
}

// TryStore makes a file in a directory of disks, tries what blkbackd needs, and removes the
// file.
func TryStore(dir string) (f StoreFacts, err error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return f, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	kind := fileSystems[fs.Type]
	if f.FileSystem, f.Network = kind.name, kind.network; kind.name == "" {
		f.FileSystem = fmt.Sprintf("the file system %#x", fs.Type)
	}
	file, err := os.CreateTemp(dir, ".blkbackd-check-*")
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, file.Close(), os.Remove(file.Name())) }()
	const size = 1 << 16
	if _, err := file.Write(make([]byte, size)); err != nil {
		return f, err
	}
	if f.Lock, err = locks(file); err != nil {
		return f, err
	}
	fd, derr := unix.Open(file.Name(), unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if f.Direct = derr == nil; f.Direct {
		err = unix.Close(fd)
	}
	f.Punch = unix.Fallocate(int(file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, size) == nil
	return f, err
}

// locks reports whether a second lock of a file is refused while the first one is held.
func locks(file *os.File) (bool, error) {
	second, err := os.Open(file.Name())
	if err != nil {
		return false, err
	}
	defer second.Close()
	if unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		return false, nil
	}
	return unix.Flock(int(second.Fd()), unix.LOCK_EX|unix.LOCK_NB) == unix.EWOULDBLOCK, nil
}
