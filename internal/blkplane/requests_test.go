// SPDX-License-Identifier: Apache-2.0

package blkplane

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/netbackd/netbackd/pkg/blkif"
)

// TestReadBack: what is written is on the disk and is read back, for each number of
// segments, protocol and order of the ring.
func TestReadBack(t *testing.T) {
	for _, proto := range blkif.Protocols() {
		for order := range blkif.MaxOrder + 1 {
			t.Run(fmt.Sprintf("%v-order%d", proto, order), func(t *testing.T) {
				b := newBed(t, bedConfig{order: order, proto: proto, pages: 2 * 4096, sectors: 65536})
				b.connect()
				for _, pages := range []int{1, 2, 11, 12, 128, 129, 256, 512, 513, 4096} {
					want := b.fill(0, pages, pages)
					if st := b.do(b.request(blkif.OpWrite, 64, 0, pages, 0)); st != blkif.StatusOkay {
						t.Fatalf("write of %d pages: %v", pages, st)
					}
					if got := b.store.Bytes()[64*512:][:len(want)]; !bytes.Equal(got, want) {
						t.Fatalf("write of %d pages: the disk has other data", pages)
					}
					if st := b.do(b.request(blkif.OpRead, 64, 4096, pages, 1)); st != blkif.StatusOkay {
						t.Fatalf("read of %d pages: %v", pages, st)
					}
					if got := b.page(4096, pages); !bytes.Equal(got, want) {
						t.Fatalf("read of %d pages: other data", pages)
					}
				}
				b.drain()
				b.disconnect()
			})
		}
	}
}
