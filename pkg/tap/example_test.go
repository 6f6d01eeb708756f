// SPDX-License-Identifier: Apache-2.0

package tap_test

import (
	"errors"
	"fmt"
	"log"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/tap"
)

// A device with one queue, whose frames are read until it is deleted.
func Example() {
	dev, err := tap.Create(tap.Config{
		Name:    "tap-example",
		VnetHdr: true,
		Offload: tap.Offload{Csum: true, TSO4: true, TSO6: true},
	})
	if err != nil {
		log.Fatal(err) // says what to do about it
	}
	defer func() {
		if err := dev.Close(); err != nil {
			log.Print(err)
		}
	}()

	queue := dev.Queue(0)
	buf := make([]byte, tap.VnetHdrLen+tap.MaxFrame)
	poll := []unix.PollFd{{Fd: int32(queue.FD()), Events: unix.POLLIN}}
	for {
		n, err := queue.Read(buf)
		switch err {
		case nil:
			var hdr tap.VnetHdr
			hdr.Decode(buf)
			fmt.Println(n-tap.VnetHdrLen, "bytes, to be cut at", hdr.GSOSize)
		case tap.ErrAgain:
			if _, err := unix.Poll(poll, -1); err != nil && err != unix.EINTR {
				log.Fatal(err)
			}
		default: // EBADFD: the device was deleted
			return
		}
	}
}

// A device that survives the daemon: the successor finds it in the same bridge.
func ExampleDevice_CloseKeep() {
	cfg := tap.Config{Name: "tap-example", Queues: 4, VnetHdr: true, Persist: true}
	dev, err := tap.Create(cfg)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("adopted:", dev.Adopted())
	if err := dev.CloseKeep(); err != nil {
		log.Fatal(err)
	}
}

// Asking what the kernel has takes three answers.
func ExampleProbe() {
	switch err := tap.Probe(tap.VnetHeader); {
	case err == nil:
		fmt.Println("yes")
	case errors.Is(err, tap.ErrNotSupported):
		fmt.Println("no; frames will be plain")
	default:
		fmt.Println("could not find out:", err)
	}
}
