// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/bench"
	"github.com/netbackd/netbackd/pkg/netif"
)

// The goals about netbackd's own work, without the calls, are in instructions, since their
// time is small beside that of the calls and differs between processors. Where the processor
// counts cache misses, these have a goal as well. Elsewhere the time of a calibrated loop of
// the same run is the unit: a processor or a memory that is slower is so for both.

// ownInstructions are the most instructions of netbackd for a packet, by the name of the
// batch. They are the most that was counted, and 5 %: a change of the data path shows.
var ownInstructions = map[string]float64{
	"guest to host, 64 B, batch 64":      440,
	"guest to host, 1514 B, batch 64":    636,
	"guest to host, 64 KiB GSO, batch 8": 4600,
	"host to guest, 64 B, batch 128":     364,
	"host to guest, 1514 B, batch 128":   544,
	"host to guest, 64 KiB GSO, batch 8": 3560,
}

// ownGoals adds the goals about netbackd's own work. top prints its functions.
func ownGoals(rep *bench.Report, find func(string) *bench.Result, misses map[string]float64, top bool) error {
	found, err := countSteps()
	if err != nil {
		return err
	}
	for _, c := range countedBatches() {
		s, ok := found[c.name]
		if !ok {
			fmt.Fprintln(os.Stderr, "bench: instructions are not counted here")
			break
		}
		rep.AtMost("P6", c.name+": instructions of netbackd for a packet", float64(s.all)/float64(c.batch), ownInstructions[c.name], false)
		if top {
			fmt.Printf("%s: instructions for a packet, by function\n%s", c.name, s.top(c.batch))
		}
	}
	for _, g := range []struct {
		group string
		batch int
		most  float64
	}{
		{"guest to host, 64 B", 64, 10}, {"host to guest, 64 B", 128, 10},
	} {
		r := find(g.group)
		if len(r.Figures) == 0 {
			continue
		}
		if n, ok := misses[g.group]; ok {
			rep.AtMost("P6", g.group+": cache misses of netbackd for a packet", n, 1, false)
			continue
		}
		own := r.Each(func(ns []float64) float64 { return (ns[0] - ns[1]) / ns[2] },
			fmt.Sprintf("%s, batch %d", staticPlain, g.batch), roomCalls, calibrated)
		rep.AtMost("P6", g.group+": time beyond the room, in calibrated loops", own.Value, g.most, own.Low > g.most != (own.High > g.most))
	}
	return nil
}

// calibrated is the row of a loop with the memory accesses of a ring's least work: a slot of
// three words, a table of grants, a record, a response and its copy in a journal.
const calibrated = "calibrated loop"

// calibration is that loop. Its memory is as large as netbackd's.
type calibration struct {
	ring    [netif.PageSize / 4]uint32
	table   [4 * lanePages]struct{ ref, page uint64 }
	record  [netif.TxRingSize][3]uint64
	journal [netif.PageSize / 4]uint32
	next    uint32
}

// run makes one run: the floor's calls, so that the caches are as behind them, and then the
// loop for as many packets, which alone is timed.
func (c *calibration) run(t *benchTable, b *benchFrame, overhead time.Duration) (took time.Duration, err error) {
	batch := *b
	batch.run = b.batches[0]
	for done := 0; done < b.run; done += batch.run {
		if _, err := t.calls.txRun(&batch, move, overhead); err != nil {
			return 0, err
		}
		start := time.Now()
		c.loop(batch.run)
		took += time.Since(start) - overhead
	}
	return took, nil
}

//go:noinline
func (c *calibration) loop(n int) {
	for i := range uint32(n) {
		at := 16 + (c.next+i)%netif.TxRingSize*3
		ref, where, id := c.ring[at], c.ring[at+1], c.ring[at+2]
		g := &c.table[(ref+i*4)%uint32(len(c.table))]
		c.record[i%netif.TxRingSize] = [3]uint64{g.page, uint64(where), uint64(id)}
		c.ring[at] = id
		c.journal[8+i%netif.TxRingSize] = id
	}
	c.next += uint32(n)
}

// missCounter counts the cache misses of this thread outside of the kernel.
type missCounter struct{ fd int }

// newMissCounter returns nil where the processor, or the hypervisor, does not count them.
func newMissCounter() *missCounter {
	attr := unix.PerfEventAttr{
		Type: unix.PERF_TYPE_HARDWARE, Config: unix.PERF_COUNT_HW_CACHE_MISSES,
		Size: uint32(unix.PERF_ATTR_SIZE_VER1), Bits: unix.PerfBitExcludeKernel | unix.PerfBitExcludeHv,
	}
	fd, err := unix.PerfEventOpen(&attr, 0, -1, -1, unix.PERF_FLAG_FD_CLOEXEC)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench: cache misses are not counted here, a calibrated loop is the unit:", err)
		return nil
	}
	return &missCounter{fd}
}

// read returns the number of misses so far.
func (c *missCounter) read() (uint64, error) {
	var b [8]byte
	if _, err := unix.Read(c.fd, b[:]); err != nil {
		return 0, err
	}
	return binary.NativeEndian.Uint64(b[:]), nil
}

// countMisses returns the cache misses of the lane with static grants for a packet beyond
// those of its floor, by group; nil where they are not counted.
func (t *benchTable) countMisses() (map[string]float64, error) {
	c := newMissCounter()
	if c == nil {
		return nil, nil
	}
	defer unix.Close(c.fd)
	defer runtime.KeepAlive(c)
	found := map[string]float64{}
	for _, tx := range []bool{true, false} {
		b, name := benchFrames()[0], "guest to host, 64 B"
		if !tx {
			b, name = rxFrames()[0], "host to guest, 64 B"
		}
		run := func(lane bool) (n uint64, err error) {
			before, err := c.read()
			if err != nil {
				return 0, err
			}
			for range 50 {
				switch {
				case tx && lane:
					_, err = t.plain.txRun(&b, b.batches[0], 0)
				case tx:
					_, err = t.calls.txRun(&b, move, 0)
				case lane:
					_, err = t.plain.rxRun(&b, t.fill, b.batches[0], 0)
				default:
					_, err = t.calls.rxRun(&b, t.fill, move, 0)
				}
				if err != nil {
					return 0, err
				}
			}
			after, err := c.read()
			return after - before, err
		}
		lane, err := run(true)
		if err != nil {
			return nil, err
		}
		floor, err := run(false)
		if err != nil {
			return nil, err
		}
		found[name] = (float64(lane) - float64(floor)) / float64(50*(b.run+b.warm()))
	}
	return found, nil
}
