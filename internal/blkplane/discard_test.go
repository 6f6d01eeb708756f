// SPDX-License-Identifier: Apache-2.0

package blkplane

import (
	"sync"
	"testing"

	"github.com/netbackd/netbackd/internal/lab/powercut"
	"github.com/netbackd/netbackd/pkg/blkif"
)

// gate holds up the first operation that passes it.
type gate struct {
	entered, open chan struct{}
	once          sync.Once
}

func newGate() *gate { return &gate{entered: make(chan struct{}), open: make(chan struct{})} }

func (g *gate) pass() {
	g.once.Do(func() {
		close(g.entered)
		<-g.open
	})
}

// TestCloseEndsDiscards: a close does not wait for discards that have not begun, or for the
// rest of a long one. They stay in the journal, and a successor makes them.
func TestCloseEndsDiscards(t *testing.T) {
	discards, reads := newGate(), []*gate{newGate(), newGate()}
	b := newBed(t, bedConfig{store: hooked(func(o powercut.Op) powercut.Fault {
		switch o.Kind {
		case powercut.Discard:
			discards.pass()
		case powercut.Read:
			reads[o.Off/blkif.PageSize].pass()
		}
		return powercut.Fault{}
	})})
	b.connect()
	b.fill(0, 4, 1)
	if s := b.do(b.request(blkif.OpWrite, 0, 0, 4, 0)); s != blkif.StatusOkay {
		t.Fatalf("write: %v", s)
	}
	one := b.put(blkif.Request{Op: blkif.OpDiscard, Sector: 0, NrSectors: 8})
	two := b.put(blkif.Request{Op: blkif.OpDiscard, Sector: 8, NrSectors: 8})
	for i := range reads {
		b.put(b.request(blkif.OpRead, uint64(8*i), 8+i, 1, 0))
	}
	b.push()
	<-discards.entered
	b.conn.Close()
	for _, g := range reads { // after the second answer the thread has read the command
		<-g.entered
		close(g.open)
		b.take(1)
	}
	close(discards.open)
	b.disconnect()
	if got := b.take(1); len(got) != 1 || got[one].Status != blkif.StatusOkay {
		t.Fatalf("%+v: want that only the first discard has ended", got)
	}
	if b.store.Bytes()[4096] == 0 {
		t.Error("the second discard was made")
	}
	b.connect()
	if got := b.take(1); got[two].Status != blkif.StatusOkay {
		t.Errorf("%+v: want that the successor makes the second discard", got)
	}
	if data := b.store.Bytes(); data[4096] != 0 || data[8192] == 0 {
		t.Error("the successor's discard has another extent")
	}
}
