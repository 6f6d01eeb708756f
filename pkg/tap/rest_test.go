// SPDX-License-Identifier: Apache-2.0

package tap

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/netns"
)

// waiting counts the frames that wait in the queues, and takes them.
func waiting(d *Device) (n int) {
	b := make([]byte, VnetHdrLen+MaxFrame)
	for i := range d.Queues() {
		for {
			if _, err := d.Queue(i).Read(b); err != nil {
				break
			}
			n++
		}
	}
	return n
}

// TestRest: neither what the host had sent when a device went to rest, nor what it
// sends while it rests, is there when it is used again; what it sends then is.
func TestRest(t *testing.T) {
	netns.NeedTUN(t)
	for what, cfg := range map[string]Config{
		"one of two queues": {Queues: 2},
		"one of one":        {Queues: 1},
		"single":            {Queues: 1, Single: true},
	} {
		t.Run(what, func(t *testing.T) {
			cfg.Name, cfg.VnetHdr, cfg.Persist = "vif1.0", true, true
			d := newTAPUp(t, cfg)
			host := openPacket(t, d.Index(), false)
			frame := tcpFrame(4, 100)
			for range 3 {
				for range 10 {
					host.send(t, frame)
				}
				must(t, d.Rest())
				must(t, d.Rest())
				// The host does not know yet, and sends on.
				for range 10 {
					host.send(t, frame)
				}
				if d.Queues() != cfg.Queues {
					t.Errorf("it has %d queues", d.Queues())
				}
				if _, err := d.Name(); err != nil {
					t.Error(err)
				}
				must(t, d.Use(cfg.Queues))
				if n := waiting(d); n != 0 {
					t.Errorf("%d frames from before it rested, or meanwhile", n)
				}
				for range 3 {
					host.send(t, frame)
				}
				if n := waiting(d); n != 3 {
					t.Errorf("%d frames of 3 after it rested", n)
				}
				if _, err := d.Queue(0).Write(plainly(d, frame)); err != nil {
					t.Error(err)
				}
				if diff := cmp.Diff(frame, host.recv(t)); diff != "" {
					t.Errorf("written (-want +got):\n%s", diff)
				}
			}
			must(t, d.Rest())
			must(t, d.SetCarrier(false))
			must(t, d.SetQueues(1))
			must(t, d.SetCarrier(true))
			must(t, d.Rest())

			// A successor finds it at rest, by its name or with the queue that was kept.
			kept, err := unix.Dup(d.Queue(0).FD())
			must(t, err)
			must(t, d.CloseKeep())
			d, err = Adopt(Config{VnetHdr: true, Persist: true}, []int{kept})
			must(t, err)
			must(t, d.Use(cfg.Queues))
			host.send(t, frame)
			if n := waiting(d); n != 1 {
				t.Errorf("%d frames of 1 with the queue that was kept", n)
			}
			must(t, d.Rest())
			must(t, d.CloseKeep())
			d = newTAP(t, cfg)
			host.send(t, frame)
			if n := waiting(d); n != 1 {
				t.Errorf("%d frames of 1 after it was opened again", n)
			}
			must(t, d.Close())
			if err := d.Rest(); !errors.Is(err, ErrClosed) {
				t.Errorf("rest of a closed device: %v", err)
			}
		})
	}
}
