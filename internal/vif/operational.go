// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// operationalWait bounds the wait for the kernel to act on a carrier.
const operationalWait = 100 * time.Millisecond

// awaitOperational waits until the kernel has acted on the TAP's carrier, at most
// operationalWait. Only then does a bridge forward, and the first packet of a guest that
// has migrated is the ARP by which the network learns its new place.
//
// Recent kernels, such as 6.18, act on it before they answer RTM_GETLINK for the interface
// (linkwatch_sync_dev in rtnl_getlink). Older ones do it a little later, in a work queue,
// and send an event.
func (v *Vif) awaitOperational() error {
	done, err := v.operational()
	if done || err != nil {
		return err
	}
	w, err := newLinkWatcher(v.tap.Index(), time.Now().Add(operationalWait))
	if err != nil {
		return err
	}
	defer w.close()
	for {
		// This is after newLinkWatcher, so that no event is missed.
		if done, err := v.operational(); done || err != nil {
			return err
		}
		v.work.Turn().Aside(func() { err = w.wait() })
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// operational reports whether the kernel has acted on the TAP's carrier, or will not
// because the interface is down.
func (v *Vif) operational() (bool, error) {
	info, err := v.tap.Info()
	return !info.Up || info.Operational, err
}

// linkWatcher waits for events of one interface in the daemon's network namespace, in Go's
// network poller.
type linkWatcher struct {
	index int
	file  *os.File
	buf   [1 << 14]byte
}

// newLinkWatcher makes a watcher whose wait fails at the deadline.
func newLinkWatcher(index int, deadline time.Time) (*linkWatcher, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("watch interfaces: %w", err)
	}
	w := &linkWatcher{index: index, file: os.NewFile(uintptr(fd), "interfaces")}
	err = errors.Join(
		unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: unix.RTMGRP_LINK}),
		w.file.SetReadDeadline(deadline),
	)
	if err != nil {
		return nil, fmt.Errorf("watch interfaces: %w", errors.Join(err, w.file.Close()))
	}
	return w, nil
}

// wait waits for an event. It also returns if events were lost.
func (w *linkWatcher) wait() error {
	for {
		n, err := w.file.Read(w.buf[:])
		if errors.Is(err, unix.ENOBUFS) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("watch interfaces: %w", err)
		}
		messages, err := syscall.ParseNetlinkMessage(w.buf[:n])
		if err != nil {
			return fmt.Errorf("watch interfaces: %w", err)
		}
		for _, m := range messages {
			if m.Header.Type == unix.RTM_NEWLINK && len(m.Data) >= unix.SizeofIfInfomsg &&
				int(binary.NativeEndian.Uint32(m.Data[4:])) == w.index {
				return nil
			}
		}
	}
}

func (w *linkWatcher) close() { _ = w.file.Close() }
