// SPDX-License-Identifier: Apache-2.0

package blkengine

import (
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/blkplane"
	"github.com/netbackd/netbackd/internal/disk"
	"github.com/netbackd/netbackd/internal/lab/fuzzloop"
	"github.com/netbackd/netbackd/internal/procs"
	"github.com/netbackd/netbackd/internal/procwire"
	"github.com/netbackd/netbackd/pkg/blkif"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/xen"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// largest is the largest connection that a message may describe.
func largest() connecting {
	c := connecting{
		number: 1 << 31, domid: 7, name: "vbd-7-51712", journals: true,
		cfg:  Config{Protocol: 2, ReadOnly: true, MaxSegments: 4096, Persistent: true, NoDiscard: true, Weight: 16},
		disk: disk.Description{Path: "vbd-7-51712", Backing: disk.KindBlock, Direct: true, SectorSize: 4096, PhysicalSize: 4096, Sectors: 1 << 60, Major: 8},
	}
	for i := range MaxQueues {
		q := blkplane.QueueConfig{Port: evtchn.Port(i + 1)}
		for k := range maxRefs {
			q.Refs = append(q.Refs, xen.Gref(1<<31+i*maxRefs+k))
		}
		c.cfg.Queues = append(c.cfg.Queues, q)
	}
	return c
}

// TestConnecting: a process reads what the broker writes, and the largest connection fits into a
// message.
func TestConnecting(t *testing.T) {
	want := largest()
	var w procwire.Writer
	want.put(&w)
	var got connecting
	r := procwire.NewReader(w.Bytes())
	got.take(r)
	if err := r.End(); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(connecting{}), cmp.FilterPath(func(p cmp.Path) bool {
		switch p.Last().String() {
		case ".Disk", ".Notice", ".Died":
			return true
		}
		return false
	}, cmp.Ignore())); d != "" {
		t.Error(d)
	}
	rule := toProcess()[kindConnect]
	want.disk.ReadOnly = false // it has files for flushes
	if n := want.files(eventFiles); n > rule.Ask.MaxFiles || len(w.Bytes())+4 > rule.Ask.Body || n > procwire.MaxFiles {
		t.Errorf("%d bytes and %d files: %+v", len(w.Bytes())+4, n, rule.Ask)
	}
}

// TestCauses: the errors that a vbd acts on are the same on the other side.
func TestCauses(t *testing.T) {
	for _, cause := range []error{blkif.ErrOverrun, blkplane.ErrThreads, blkplane.ErrServed, blkplane.ErrJournal, unix.ENOSPC} {
		var w procwire.Writer
		causes.Put(&w, fmt.Errorf("queue 1: %w", cause))
		r := procwire.NewReader(w.Bytes())
		if err := causes.Take(r); !errors.Is(err, cause) || r.End() != nil {
			t.Errorf("%v became %v", cause, err)
		}
	}
}

// FuzzMessagesOfADiskProcess: whatever a process says is refused, or within bounds. A guest may
// write these messages.
func FuzzMessagesOfADiskProcess(f *testing.F) {
	seed := func(which uint8, put func(*procwire.Writer)) {
		var w procwire.Writer
		put(&w)
		f.Add(which, w.Bytes())
	}
	seed(0, func(w *procwire.Writer) { causes.Put(w, fmt.Errorf("x: %w", unix.EINVAL)) })
	seed(1, func(w *procwire.Writer) { putNotice(w, &blkplane.Notice{Queue: 1, Err: errors.New("breach")}) })
	seed(2, func(w *procwire.Writer) { procs.PutJSON(w, &Ready{Uring: "in use"}) })
	seed(3, func(w *procwire.Writer) { procs.PutJSON(w, &Health{Queues: 2}) })
	seed(4, func(w *procwire.Writer) { putStamp(w, xen.NewStamp()) })
	fuzzloop.Fuzz(f, func(t *testing.T, which uint8, b []byte) {
		const queues = 4
		r := procwire.NewReader(b)
		switch which % 5 {
		case 0:
			if err := causes.Take(r); err != nil && len(err.Error()) > procs.MaxText {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
		case 1:
			n := takeNotice(r, queues)
			if n.Queue >= queues || n.Kind > blkplane.Held || int(n.Reason) >= int(blkplane.NumCounters) {
				t.Errorf("notice %+v", n)
			}
		case 2:
			if v := takeReady(r); len(v.Uring) > 2*procs.MaxText {
				t.Errorf("%d bytes", len(v.Uring))
			}
		case 3:
			if h := takeHealth(r); r.End() == nil && (h.Queues < 0 || h.Maps < 0) {
				t.Errorf("health %+v", h)
			}
		case 4:
			takeStamp(r)
		}
	})
}
