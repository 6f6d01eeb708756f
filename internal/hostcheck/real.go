// SPDX-License-Identifier: Apache-2.0

package hostcheck

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/iouring"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// AnswerTimeout bounds the time in which xenstored and the daemon must answer.
const AnswerTimeout = 2 * time.Second

// This returns the machine that a program runs on. daemon asks the running daemon for its
// version.
func This(program, version string, daemon func(context.Context) (string, error)) Machine {
	return Machine{
		Program: program, Version: version, Root: "/",
		Open: openDevice, Xenstore: askXenstore, Modprobe: modprobe, Uring: iouring.Supported,
		Daemon: func(ctx context.Context) (string, error) {
			ctx, cancel := context.WithTimeout(ctx, AnswerTimeout)
			defer cancel()
			return daemon(ctx)
		},
	}
}

// openDevice opens a device for reading and writing, and closes it.
func openDevice(path string) error {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// askXenstore returns nil if xenstored answers.
func askXenstore(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, AnswerTimeout, errors.New("no answer in time"))
	defer cancel()
	c, err := xenstore.Open(ctx)
	if err == nil {
		err = errors.Join(askDomid(ctx, c), c.Close())
	}
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return cause
	}
	return err
}

// askDomid reads this domain's number, which every domain may read. A missing node also
// counts as an answer, because dom0 may have none.
func askDomid(ctx context.Context, c *xenstore.Client) error {
	_, err := c.Read(ctx, "domid")
	if errors.Is(err, xenstore.ErrNotExist) {
		return nil
	}
	return err
}

// modprobe runs modprobe and returns its output. It returns fs.ErrNotExist if there is
// none.
func modprobe(ctx context.Context, arguments ...string) (string, error) {
	path, err := exec.LookPath("modprobe")
	if err != nil {
		// Some users have no sbin directory in their path.
		if path = "/sbin/modprobe"; !errors.Is(err, exec.ErrNotFound) {
			return "", err
		}
		if _, err := os.Stat(path); err != nil {
			return "", fs.ErrNotExist
		}
	}
	var out bytes.Buffer
	c := exec.CommandContext(ctx, path, arguments...)
	c.Stdout = &out
	err = c.Run()
	return out.String(), err
}
