// SPDX-License-Identifier: Apache-2.0

package dataplane

import "testing"

// TestVirtTx sends packets of all sizes and layouts, and compares them at the host.
func TestVirtTx(t *testing.T) {
	inFormats(t, allModes, vFormats, func(t *testing.T, m mode, o vOptions) {
		b := newVbed(t, m, o)
		g := b.guest()
		for _, n := range []int{18, 60, 1000, 1400, 2000, 2006, 2007, 3000, 9000, 30000, 60000} {
			frame := udp(n, uint16(n))
			size := len(frame)
			layouts := []vsent{
				{frame: frame},
				{frame: frame, alone: true},
				{frame: frame, parts: []int{1, 13, size - 14}},
				{frame: frame, alone: true, parts: []int{10, size - 10}},
			}
			if size > 300 {
				layouts = append(layouts, vsent{frame: frame, parts: []int{100, 100, size - 200}})
			}
			var want [][]byte
			for _, p := range layouts {
				want = append(want, p.frame)
			}
			g.send(layouts...)
			b.settle()
			if n := g.sent(); n != len(layouts) {
				t.Fatalf("%d bytes: %d chains came back, want %d", size, n, len(layouts))
			}
			if diff := diffFrames(want, b.host.frames()); diff != "" {
				t.Fatalf("%d bytes: %s", size, diff)
			}
		}
		if err := b.breach(); err != nil || len(b.warned) > 0 {
			t.Error(err, b.warned)
		}
		if n := eventCount(g.tx.call); n == 0 {
			t.Error("the guest was not notified")
		}
	})
}
