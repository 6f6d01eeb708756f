// SPDX-License-Identifier: Apache-2.0

package evtchn_test

import (
	"errors"
	"log"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/evtchn"
)

// A back end binds the port a guest offered and serves it.
func Example() {
	dev, err := evtchn.Open(evtchn.DefaultPath)
	if err != nil {
		log.Fatal(err)
	}
	defer dev.Close()
	port, err := dev.BindInterdomain(5, 8)
	if err != nil {
		log.Fatal(err)
	}
	ports := []evtchn.Port{port}
	buf := make([]evtchn.Port, 16)
	fds := []unix.PollFd{{Fd: int32(dev.FD()), Events: unix.POLLIN}}
	for {
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			log.Fatal(err)
		}
		n, err := dev.Pending(buf)
		switch {
		case errors.Is(err, evtchn.ErrOverflow):
			// Any port may have had an event, and be masked.
			if err := dev.Reset(); err != nil {
				log.Fatal(err)
			}
			n = copy(buf, ports)
		case err != nil:
			log.Fatal(err)
		}
		// Look at the rings of buf[:n] here, then listen again.
		if err := dev.Unmask(buf[:n]); err != nil {
			log.Fatal(err)
		}
		if err := dev.Notify(port); err != nil {
			log.Fatal(err)
		}
	}
}
