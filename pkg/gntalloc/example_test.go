// SPDX-License-Identifier: Apache-2.0

package gntalloc_test

import (
	"fmt"
	"log"

	"github.com/netbackd/netbackd/pkg/gntalloc"
)

// A frontend grants dom0 a page for a ring and tells it the ref.
func ExampleDevice_Alloc() {
	dev, err := gntalloc.Open(gntalloc.DefaultPath)
	if err != nil {
		log.Fatal(err)
	}
	defer dev.Close()
	ring, err := dev.Alloc(0, 1, true)
	if err != nil {
		log.Fatal(err)
	}
	defer ring.Free()
	fmt.Println("tx-ring-ref", ring.Refs()[0], "of", len(ring.Bytes()), "bytes")
}
