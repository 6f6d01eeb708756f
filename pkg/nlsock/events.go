// SPDX-License-Identifier: Apache-2.0

package nlsock

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// LinkEvents returns a channel that has a value after changes of interfaces, of the network
// namespace of the calling thread, until stop is called. The values of several changes may be
// one. The channel is closed when the socket fails, or after stop.
func LinkEvents() (events <-chan struct{}, stop func(), err error) {
	s, err := newSocket(unix.NETLINK_ROUTE, unix.RTMGRP_LINK)
	if err != nil {
		return nil, nil, err
	}
	c := make(chan struct{}, 1)
	go func() {
		defer close(c)
		for {
			// With ENOBUFS the kernel has dropped some.
			_, _, err := s.Receive()
			if errors.Is(err, os.ErrClosed) || err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EINTR) {
				return
			}
			select {
			case c <- struct{}{}:
			default:
			}
		}
	}()
	return c, func() {
		s.Close()
		for range c { // ends the goroutine
		}
	}, nil
}
