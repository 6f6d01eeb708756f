// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// recheck is the time between two looks without an event. There is none when a process that
// has bound its socket, which is an event, listens a moment later, unless it changes the mode.
const recheck = time.Second

// Await waits until a process listens at the socket, or until ctx ends. The directory of
// the socket need not exist, but its parent must.
func (c *Client) Await(ctx context.Context) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("wait for %s: %w", c.path, err)
	}
	events := os.NewFile(uintptr(fd), "inotify")
	defer func() { _ = events.Close() }()
	defer context.AfterFunc(ctx, func() { _ = events.SetReadDeadline(time.Unix(1, 0)) })()
	dir := filepath.Dir(c.path)
	if err := watchDir(fd, filepath.Dir(dir)); err != nil {
		return fmt.Errorf("wait for %s: %w", c.path, err)
	}
	var buf [4096]byte
	for {
		// The directory may exist by now, or may have been replaced.
		if err := watchDir(fd, dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("wait for %s: %w", c.path, err)
		}
		if c.listens(ctx) {
			return nil
		}
		if ctx.Err() == nil {
			_ = events.SetReadDeadline(time.Now().Add(recheck))
		}
		if _, err := events.Read(buf[:]); err != nil && (ctx.Err() != nil || !errors.Is(err, os.ErrDeadlineExceeded)) {
			if ctx.Err() != nil {
				err = ctx.Err()
			}
			return fmt.Errorf("wait for %s: %w", c.path, err)
		}
	}
}

// watchDir has an inotify instance send an event when a file in dir is made or changes its
// mode. Listen changes the mode of the socket once a process listens.
func watchDir(inotify int, dir string) error {
	_, err := unix.InotifyAddWatch(inotify, dir, unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_ATTRIB|unix.IN_DELETE_SELF)
	return err
}

// listens reports whether a process listens at the socket.
func (c *Client) listens(ctx context.Context) bool {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", c.path)
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}
