// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bytes"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// diffFrames compares frames, and explains a difference.
func diffFrames(want, got [][]byte) string {
	if slices.EqualFunc(want, got, bytes.Equal) {
		return ""
	}
	return "frames (-want +got):\n" + cmp.Diff(want, got)
}

func vframes(got []vgot) (frames [][]byte) {
	for _, p := range got {
		frames = append(frames, p.Frame)
	}
	return frames
}

// TestVirtRx delivers packets of all sizes to buffers of all shapes.
func TestVirtRx(t *testing.T) {
	buffers := [][]int{{2048}, {1526}, {12, 1514}, {70000}, {4, 5, 1, 300, 4000}, {65562}}
	inFormats(t, allModes, vFormats, func(t *testing.T, m mode, o vOptions) {
		for _, buffer := range buffers {
			o.buffer = buffer
			b := newVbed(t, m, o)
			g := b.guest()
			var want, got [][]byte
			for _, n := range []int{18, 60, 1000, 1460, 1472, 2000, 2006, 2007, 3000, 9000, 18, 30000, 60000, 65000} {
				g.post(64)
				frame := udp(n, uint16(n))
				want = append(want, frame)
				b.host.sendPlain(frame)
				b.settle()
				got = append(got, vframes(g.received())...)
			}
			if diff := diffFrames(want, got); diff != "" {
				t.Fatalf("buffers of %v: %s", buffer, diff)
			}
			if err := b.breach(); err != nil || len(b.warned) > 0 {
				t.Error(err, b.warned)
			}
			b.disconnect()
		}
	})
}
