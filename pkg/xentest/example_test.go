// SPDX-License-Identifier: Apache-2.0

package xentest_test

import (
	"fmt"
	"log"

	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xentest"
)

// A guest grants a page and offers a port. A back end maps the page, copies from it and
// answers the guest's event. In a test, xentest.Start(t, 7) makes the guest.
func Example() {
	guest, err := xentest.New(7)
	if err != nil {
		log.Fatal(err)
	}
	ref, page := guest.Grant(gntdev.ReadWrite)
	copy(page, "hello")
	port := guest.Offer()

	// The back end, with what it would open below /dev/xen.
	grants, err := guest.OpenGntdev()
	if err != nil {
		log.Fatal(err)
	}
	mapping, err := grants.Map(7, []xen.Gref{ref}, gntdev.ReadWrite)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("mapped: %s\n", mapping.Bytes()[:5])

	arena, err := gntdev.NewArena(gntdev.PageSize)
	if err != nil {
		log.Fatal(err)
	}
	segs := make([]gntdev.Segment, 2)
	segs[0].FromGuest(7, ref, 1, arena.Bytes()[:4])
	segs[1].FromGuest(7, ref+1, 0, arena.Bytes()[4:][:4])
	if err := grants.Copy(segs); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("copied: %s\n", arena.Bytes()[:4])
	fmt.Println("the other segment:", segs[1].Status())

	events, err := guest.OpenEvtchn()
	if err != nil {
		log.Fatal(err)
	}
	local, err := events.BindInterdomain(7, port)
	if err != nil {
		log.Fatal(err)
	}
	if err := guest.Send(port); err != nil {
		log.Fatal(err)
	}
	pending := make([]evtchn.Port, 4)
	n, err := events.Pending(pending)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("events:", pending[:n])
	if err := events.Notify(local); err != nil {
		log.Fatal(err)
	}
	fmt.Println("the guest was notified:", guest.Events(port))

	fmt.Println(grants.Close(), events.Close(), arena.Close())
	fmt.Println(guest.Close())
	// Output:
	// mapped: hello
	// copied: ello
	// the other segment: GNTST_bad_gntref
	// events: [1]
	// the guest was notified: 1
	// <nil> <nil> <nil>
	// xentest: left of domain 7: 1 pages mapped, 0 devices open, 0 ports bound
}
