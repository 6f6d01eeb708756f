// SPDX-License-Identifier: Apache-2.0

package gntdev_test

import (
	"fmt"
	"log"

	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/xen"
)

// Two pieces of a packet come out of a guest's pages with one call.
func ExampleDevice_Copy() {
	dev, err := gntdev.Open(gntdev.DefaultPath)
	if err != nil {
		log.Fatal(err)
	}
	defer dev.Close()
	arena, err := gntdev.NewArena(16 * gntdev.PageSize)
	if err != nil {
		log.Fatal(err)
	}
	defer arena.Close()

	segs := make([]gntdev.Segment, 2) // once per queue, then used again
	segs[0].FromGuest(5, 768, 0, arena.Bytes()[:54])
	segs[1].FromGuest(5, 769, 128, arena.Bytes()[54:][:1446])
	if err := dev.Copy(segs); err != nil {
		log.Fatal(err) // nothing is known about any of them
	}
	for i := range segs {
		if err := segs[i].Status().Err(); err != nil {
			fmt.Println("the guest's packet is lost:", err)
			return
		}
	}
	fmt.Println(len(arena.Bytes()[:54+1446]), "bytes")
}

// A ring page is mapped for as long as the guest is connected.
func ExampleDevice_Map() {
	dev, err := gntdev.Open(gntdev.DefaultPath)
	if err != nil {
		log.Fatal(err)
	}
	defer dev.Close()
	ring, err := dev.Map(5, []xen.Gref{520}, gntdev.ReadWrite)
	if err != nil {
		log.Fatal(err) // names the ref and what Xen thinks of it
	}
	defer ring.Unmap()
	fmt.Println(len(ring.Bytes()), "bytes")
}
