// SPDX-License-Identifier: Apache-2.0

package netengine

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/ctrlserver"
	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/lab/fuzzloop"
	"github.com/netbackd/netbackd/internal/offload"
	"github.com/netbackd/netbackd/internal/procs"
	"github.com/netbackd/netbackd/internal/procwire"
	"github.com/netbackd/netbackd/internal/steer"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/toeplitz"
)

// body encodes a body and returns a reader of it, which must be at its end after the test.
func body(t testing.TB, put func(*procwire.Writer)) *procwire.Reader {
	var w procwire.Writer
	put(&w)
	r := procwire.NewReader(w.Bytes())
	t.Cleanup(func() {
		if err := r.End(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// TestRoundTrips: decoders return what was encoded.
func TestRoundTrips(t *testing.T) {
	same := func(want, got any) {
		t.Helper()
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
	set := setup{eventFiles: 2, pages: true, pageLimit: -1, workers: 7, noUring: true}
	var gotSet setup
	gotSet.take(body(t, set.put))
	same(true, set == gotSet)

	rings := &Rings{
		Queues:   []ctrlserver.Rings{{TxGref: 1, RxGref: 2, TxPort: 3, RxPort: 4}, {TxGref: 1<<32 - 1, RxGref: 5, TxPort: 6, RxPort: 6}},
		Control:  &ctrlserver.ControlRing{Gref: 9, Port: 10},
		Journals: []int{1, 2},
	}
	gotRings, journals := takeRings(body(t, func(w *procwire.Writer) { putRings(w, rings) }))
	same(true, journals)
	same(rings.Queues, gotRings.Queues)
	same(rings.Control, gotRings.Control)

	found := Found{Stamp: netif.NewStamp(), Known: true}
	same(found, takeFound(body(t, func(w *procwire.Writer) { putFound(w, &found) })))

	serving := &Serving{
		Guest: offload.Guest{CsumIPv4: true, GSOTCPv6: true}, SG: true, VnetHdr: true, Mcast: true,
		Coalesce: dataplane.CoalesceAll, Headroom: 256, Drain: time.Second, Stall: 3 * time.Minute,
		Stalled: []bool{false, true},
		Control: &Control{Offered: ctrlserver.Slot, StaticGrants: 512, NoBPF: errors.New("no BPF here")},
	}
	got, records, record := takeServing(body(t, func(w *procwire.Writer) { putServing(w, serving, []byte("record")) }))
	same("no BPF here", got.Control.NoBPF.Error())
	same(false, records)
	same("record", string(record))
	got.Control.NoBPF, serving.Control.NoBPF = nil, nil
	same(serving, got)

	status := Status{
		Queues: []QueueStatus{{
			QueueState: dataplane.QueueState{
				Tx: netif.RingState{ReqProd: 1, ReqCons: 2, RspProd: 3, ReqEvent: 4, RspEvent: 5}, Backlog: 6, BacklogBytes: 7,
				Stalled: true, Uring: true, OwnPages: 8, Worker: 9, Static: 10, StaticInUse: 11,
			},
			StaticMax: 12,
		}},
		Control: &ctrlserver.Status{Protocol: "slot", Types: []string{"ipv4"}, Mapping: []uint16{1, 0}, KeyBytes: 40, Messages: 5},
		Mcast:   [][6]byte{{1, 0, 0x5e, 1, 2, 3}}, Mapped: 3, Ports: 2,
	}
	same(status, takeStatus(body(t, func(w *procwire.Writer) { putStatus(w, &status) })))

	hasher, err := toeplitz.New([]byte("a key"))
	if err != nil {
		t.Fatal(err)
	}
	config := &steer.Config{Types: 3, Hasher: hasher, Mapping: toeplitz.NewMapping(4)}
	if err := errors.Join(config.Mapping.SetSize(3), config.Mapping.Set(0, []uint32{3, 0, 1})); err != nil {
		t.Fatal(err)
	}
	gotConfig := takeSteering(body(t, func(w *procwire.Writer) { putSteering(w, config) }), 4)
	same(config.Mapping.Table(), gotConfig.Mapping.Table())
	same(config.Hasher.Key(), gotConfig.Hasher.Key())
	same(config.Types, gotConfig.Types)
	same(true, takeSteering(body(t, func(w *procwire.Writer) { putSteering(w, nil) }), 4) == nil)

	notice := Notice{Kind: dataplane.Breach, Queue: 1, Err: errors.New("overflow")}
	gotNotice := takeNotice(body(t, func(w *procwire.Writer) { putNotice(w, &notice) }), 2)
	same("overflow", gotNotice.Err.Error())
	same(notice.Queue, gotNotice.Queue)
}

// TestErrorsKeepTheirCauses: an error of a packet process has the causes that a vif asks for.
func TestErrorsKeepTheirCauses(t *testing.T) {
	for _, err := range []error{
		nil, errors.New("plain"), fmt.Errorf("queue 1: map tx ring: %w", unix.ENOMEM), dataplane.ErrClosed, fmt.Errorf("%w: oops", ErrFault),
		fmt.Errorf("queue 0: %w", evtchn.BindError("bind", 7, 8, unix.EINVAL)), errors.New("line\nend \x1b and " + strings.Repeat("x", 2*procs.MaxText)),
	} {
		got := takeError(body(t, func(w *procwire.Writer) { putError(w, err) }))
		if (got == nil) != (err == nil) {
			t.Errorf("%v became %v", err, got)
			continue
		}
		for _, cause := range []error{unix.ENOMEM, unix.EINVAL, dataplane.ErrClosed, ErrFault} {
			if errors.Is(err, cause) != errors.Is(got, cause) {
				t.Errorf("%v became %v, which differs about %v", err, got, cause)
			}
		}
		var a, b *evtchn.Error
		if errors.As(err, &a) != errors.As(got, &b) || a != nil && a.Op != b.Op {
			t.Errorf("%v became %v", err, got)
		}
		if got != nil && (strings.ContainsAny(got.Error(), "\n\x1b") || len(got.Error()) > procs.MaxText) {
			t.Errorf("%q is not clean", got)
		}
	}
}

// FuzzMessagesOfAProcess: the broker's decoders take no more than they allow, and what they
// accept is made of the same bytes again. A guest may write these messages.
func FuzzMessagesOfAProcess(f *testing.F) {
	seed := func(which uint8, put func(*procwire.Writer)) {
		var w procwire.Writer
		put(&w)
		f.Add(which, w.Bytes())
	}
	hasher, _ := toeplitz.New([]byte("key"))
	seed(0, func(w *procwire.Writer) { putError(w, fmt.Errorf("x: %w", unix.EINVAL)) })
	seed(1, func(w *procwire.Writer) { putFound(w, &Found{Stamp: netif.NewStamp(), Known: true}) })
	seed(2, func(w *procwire.Writer) {
		putStatus(w, &Status{Queues: make([]QueueStatus, 2), Mcast: make([][6]byte, 1), Control: &ctrlserver.Status{Protocol: "slot"}})
	})
	seed(3, func(w *procwire.Writer) {
		putSteering(w, &steer.Config{Types: 3, Hasher: hasher, Mapping: toeplitz.NewMapping(4)})
	})
	seed(4, func(w *procwire.Writer) { putNotice(w, &Notice{Queue: 1, Err: errors.New("breach")}) })
	seed(5, func(w *procwire.Writer) { procs.PutJSON(w, &Ready{Workers: 2, Uring: "in use"}) })
	seed(6, func(w *procwire.Writer) { procs.PutJSON(w, &Health{Classes: []string{"normal"}}) })
	fuzzloop.Fuzz(f, func(t *testing.T, which uint8, b []byte) {
		const queues = 4
		r := procwire.NewReader(b)
		var again func(*procwire.Writer)
		switch which % 7 {
		case 0:
			if err := takeError(r); err != nil && len(err.Error()) > procs.MaxText {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
		case 1:
			found := takeFound(r)
			again = func(w *procwire.Writer) { putFound(w, &found) }
		case 2:
			s := takeStatus(r)
			if len(s.Queues) > maxQueues || len(s.Mcast) > maxMcast || s.Control != nil && len(s.Control.Error) > procs.MaxText {
				t.Errorf("status %+v", s)
			}
		case 3:
			c := takeSteering(r, queues)
			if c != nil && r.End() == nil {
				for h := range uint32(2 * toeplitz.MaxMapping) {
					if q := c.Mapping.Queue(h); q >= queues {
						t.Errorf("queue %d", q)
					}
				}
			}
			again = func(w *procwire.Writer) { putSteering(w, c) }
		case 4:
			if n := takeNotice(r, queues); n.Queue >= queues || n.Kind > dataplane.Coalescing && r.End() == nil {
				t.Errorf("notice %+v", n)
			}
		case 5:
			var s Ready
			takeReady(r, &s)
		case 6:
			var s Health
			takeHealth(r, &s)
		}
		if again == nil || r.End() != nil {
			return
		}
		var w procwire.Writer
		again(&w)
		if !bytes.Equal(w.Bytes(), b) {
			t.Errorf("%x was read as a value that is %x", b, w.Bytes())
		}
	})
}
