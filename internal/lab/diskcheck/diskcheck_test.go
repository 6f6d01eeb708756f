// SPDX-License-Identifier: Apache-2.0

package diskcheck_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/netbackd/netbackd/internal/lab/blkfront"
	"github.com/netbackd/netbackd/internal/lab/blkfront/blktest"
	"github.com/netbackd/netbackd/internal/lab/diskcheck"
	"github.com/netbackd/netbackd/internal/lab/xenfront"
	"github.com/netbackd/netbackd/pkg/blkif"
	"github.com/netbackd/netbackd/pkg/xentest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const sectors = 4099 // the last page is not whole

// disk is a queue with a backend in memory.
type disk struct {
	*blkfront.Queue
	back *blktest.Backend
	m    *diskcheck.Model
	r    *diskcheck.Runner
}

func newDisk(t *testing.T) *disk {
	t.Helper()
	g := xentest.Start(t, 1)
	host := xenfront.Host{Pages: g.Gntalloc(), Events: func() (xenfront.Events, error) { return g.OpenGuestEvtchn() }}
	q, err := blkfront.NewQueue(host, 0, blkfront.Config{Indirect: 256, Pages: 512, Strict: true})
	if err != nil {
		t.Fatal(err)
	}
	grants, err := g.OpenGntdev()
	if err != nil {
		t.Fatal(err)
	}
	events, err := g.OpenEvtchn()
	if err != nil {
		t.Fatal(err)
	}
	d := &disk{Queue: q, m: diskcheck.NewModel(sectors, 42)}
	d.r = diskcheck.NewRunner(d.m, 0, sectors, 0)
	d.back = &blktest.Backend{Grants: grants, Events: events, Domid: 1, Disk: make([]byte, sectors*blkif.SectorSize),
		Limits: blkif.Limits{Sectors: sectors, MaxSegments: 256, Discard: true}}
	if err := d.back.Start(q); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(d.back.Stop(), q.Close()); err != nil {
			t.Error(err)
		}
		events.Close()
		grants.Close()
	})
	return d
}

func (d *disk) readAt(b []byte, off int64) (int, error) { return copy(b, d.back.Disk[off:]), nil }

var mixed = diskcheck.Load{Requests: 2000, Depth: 16, MaxSegments: 40, Reads: 40, Flushes: 5, Barriers: 5, Discards: 5, Parts: true, Seed: 1}

func TestAGoodDiskHasNoDifference(t *testing.T) {
	for name, l := range map[string]diskcheck.Load{
		"random":     mixed,
		"sequential": {Requests: 300, Depth: 8, MinSegments: 11, Sequential: true, Reads: 50},
		"direct":     {Requests: 300, Depth: 8, MaxSegments: 40, Direct: true},
		"for a time": {Duration: 20 * time.Millisecond, MinSegments: 256, Reads: 50},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDisk(t)
			res, err := d.r.Run(t.Context(), d.Queue, l)
			if err != nil {
				t.Fatal(err)
			}
			if l.Requests > 0 && res.Requests != uint64(l.Requests) || res.Errors > 0 || res.Unanswered > 0 || res.Stats.Answers != res.Requests || res.Rate() <= 0 {
				t.Errorf("result %+v", res)
			}
			if l.Direct != (res.Stats.Indirect == 0) && name != "sequential" {
				t.Errorf("%d indirect requests", res.Stats.Indirect)
			}
			if p := res.Latency.Quantile(0.5); p <= 0 || p > res.Latency.Quantile(0.99) || res.Latency.Quantile(1) < res.Stats.Slowest*8/10 {
				t.Errorf("latency: half %v, slowest %v of %v", p, res.Latency.Quantile(1), res.Stats.Slowest)
			}
			if err := d.r.Scan(t.Context(), d.Queue); err != nil {
				t.Error(err)
			}
			if err := d.m.Check(d.readAt); err != nil {
				t.Error(err)
			}
			if v := d.Violations(); len(v) > 0 {
				t.Errorf("violations %v", v)
			}
		})
	}
}

func TestEveryDifferenceIsFound(t *testing.T) {
	for name, harm := range map[string]func(disk []byte){
		"a bit":              func(b []byte) { b[1000*512+511] ^= 1 },
		"zeros":              func(b []byte) { clear(b[1000*512 : 1001*512]) },
		"another sector":     func(b []byte) { copy(b[1000*512:], b[1001*512:1002*512]) },
		"half a sector":      func(b []byte) { copy(b[1000*512+256:1001*512], b[1001*512+256:]) },
		"zeros at its start": func(b []byte) { clear(b[1000*512 : 1000*512+256]) },
		"the last sector":    func(b []byte) { b[sectors*512-1] ^= 1 },
	} {
		t.Run(name, func(t *testing.T) {
			d := newDisk(t)
			if _, err := d.r.Fill(t.Context(), d.Queue, diskcheck.Load{Depth: 4, MinSegments: 64}); err != nil {
				t.Fatal(err)
			}
			if err := d.r.Scan(t.Context(), d.Queue); err != nil {
				t.Fatal(err)
			}
			harm(d.back.Disk)
			var e *diskcheck.Error
			if err := d.r.Scan(t.Context(), d.Queue); !errors.As(err, &e) {
				t.Errorf("the scan found %v", err)
			}
			if err := d.m.Check(d.readAt); !errors.As(err, &e) {
				t.Errorf("the check found %v", err)
			}
		})
	}
}

// TestALostWriteIsFound: the old generation of a sector is whole, but not the newest.
func TestALostWriteIsFound(t *testing.T) {
	d := newDisk(t)
	fill := func() {
		t.Helper()
		if _, err := d.r.Fill(t.Context(), d.Queue, diskcheck.Load{Depth: 4, MinSegments: 64}); err != nil {
			t.Fatal(err)
		}
	}
	fill()
	old := bytes.Clone(d.back.Disk[512 : 2*512])
	fill()
	copy(d.back.Disk[512:], old)
	if err := d.r.Scan(t.Context(), d.Queue); err == nil || !strings.Contains(err.Error(), "sector 1: generation") {
		t.Errorf("the scan found %v", err)
	}
}

// TestAnUnfinishedReadIsFound: the backend answers without having written the page.
func TestAnUnfinishedReadIsFound(t *testing.T) {
	d := newDisk(t)
	if _, err := d.r.Run(t.Context(), d.Queue, diskcheck.Load{Requests: 50, MinSegments: 8}); err != nil {
		t.Fatal(err)
	}
	d.back.Limits.Sectors = 8 // reads fail, and are answered with okay
	d.back.Answer = func(_ *blkif.Request, good blkif.Response) []blkif.Response {
		good.Status = blkif.StatusOkay
		return []blkif.Response{good}
	}
	if err := d.r.Scan(t.Context(), d.Queue); err == nil {
		t.Error("the scan found nothing")
	}
}

// TestWritesWithoutAnswerMayBeThereOrNot checks both cases, and that the first read decides.
func TestWritesWithoutAnswerMayBeThereOrNot(t *testing.T) {
	d := newDisk(t)
	d.back.Answer = func(*blkif.Request, blkif.Response) []blkif.Response { return nil }
	before := bytes.Clone(d.back.Disk)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	res, err := d.r.Run(ctx, d.Queue, diskcheck.Load{Depth: 8, MinSegments: 4})
	if !errors.Is(err, context.DeadlineExceeded) || res.Unanswered != 8 || d.r.Unanswered() != 8 {
		t.Fatalf("%+v, %v", res, err)
	}
	d.r.Abandon()
	if err := d.back.Stop(); err != nil {
		t.Error(err)
	}
	if n := d.m.Uncertain(); n != 8*4*8 {
		t.Errorf("%d sectors are uncertain", n)
	}
	after := bytes.Clone(d.back.Disk)
	half := append(bytes.Clone(before[:sectors/2*512]), after[sectors/2*512:]...)
	if err := d.m.Check(bytes.NewReader(half).ReadAt); err != nil {
		t.Error(err)
	}
	if n := d.m.Uncertain(); n != 0 {
		t.Errorf("%d sectors are uncertain after they were read", n)
	}
	if err := d.m.Check(bytes.NewReader(after).ReadAt); err == nil {
		t.Error("a sector may change after it was read")
	}
}

// TestWritesThatFailMayBeThereOrNot lets the disk refuse some requests.
func TestWritesThatFailMayBeThereOrNot(t *testing.T) {
	d := newDisk(t)
	d.back.Answer = func(r *blkif.Request, good blkif.Response) []blkif.Response {
		if r.ID>>9%3 == 0 {
			good.Status = blkif.StatusError
		}
		return []blkif.Response{good}
	}
	if _, err := d.r.Run(t.Context(), d.Queue, mixed); !errors.Is(err, diskcheck.ErrRefused) {
		t.Errorf("%v", err)
	}
	l := mixed
	l.Refused = true
	res, err := d.r.Run(t.Context(), d.Queue, l)
	if err != nil || res.Errors == 0 {
		t.Fatalf("%+v, %v", res, err)
	}
	if err := d.m.Check(d.readAt); err != nil {
		t.Error(err)
	}
}

func TestStopEndsALoad(t *testing.T) {
	d := newDisk(t)
	ended := make(chan error)
	go func() {
		_, err := d.r.Run(t.Context(), d.Queue, diskcheck.Load{MinSegments: 1})
		ended <- err
	}()
	d.r.Stop()
	d.Wake()
	if err := <-ended; err != nil || d.r.Unanswered() != 0 {
		t.Errorf("%v", err)
	}
}

func TestResizedModel(t *testing.T) {
	d := newDisk(t)
	if _, err := d.r.Fill(t.Context(), d.Queue, diskcheck.Load{Depth: 4, MinSegments: 64}); err != nil {
		t.Fatal(err)
	}
	d.m.Resize(sectors + 8)
	d.back.Disk = append(d.back.Disk, make([]byte, 8*512)...)
	if err := d.m.Check(d.readAt); err != nil {
		t.Error(err)
	}
	d.m.Resize(8)
	if err := d.m.Check(d.readAt); err != nil || d.m.Sectors() != 8 {
		t.Error(err)
	}
}
