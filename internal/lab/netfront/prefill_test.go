// SPDX-License-Identifier: Apache-2.0

package netfront

import (
	"bytes"
	"errors"
	"testing"

	"github.com/netbackd/netbackd/pkg/netif"
)

func TestPrefilledPagesAreSentAsTheyAre(t *testing.T) {
	q, b := newPair(t, strictConfig(), false)
	head := tcpFrame(0)
	q.Prefill(head)
	gso := Meta{CsumBlank: true, DataValidated: true, GSOType: netif.GSOTCPv4, GSOSize: 1448}
	sent := 0
	// More packets than pages: the pages are used again.
	for range 3 {
		for _, c := range []struct {
			size int
			meta Meta
		}{{64, Meta{}}, {1514, Meta{DataValidated: true}}, {netif.MaxTxSize, gso}} {
			for {
				err := q.SendPrefilled(c.size, c.meta)
				if errors.Is(err, ErrFull) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				sent++
			}
			if err := q.Flush(); err != nil {
				t.Fatal(err)
			}
			seen := b.takeTx()
			frames := b.frames(seen)
			if len(frames) != sent {
				t.Errorf("%d frames of %d bytes came, %d were sent", len(frames), c.size, sent)
			}
			for _, f := range frames {
				if len(f) != c.size || !bytes.HasPrefix(f, head) {
					t.Fatalf("a frame has %d bytes and begins with % x; want %d, % x", len(f), f[:len(head)], c.size, head)
				}
			}
			b.answerTx(seen, netif.StatusOkay)
			if _, err := q.Reap(); err != nil {
				t.Fatal(err)
			}
			sent = 0
		}
	}
	for _, size := range []int{-1, 0, netif.MaxTxSize + 1} {
		if err := q.SendPrefilled(size, Meta{}); err == nil || errors.Is(err, ErrFull) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
	noViolations(t, q)
}
