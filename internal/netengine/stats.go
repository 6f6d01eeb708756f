// SPDX-License-Identifier: Apache-2.0

package netengine

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/dataplane"
)

// statsSize is the size of the memory of a link's counters, in bytes. Pages of queues that it
// does not have take no memory.
const statsSize = (maxQueues*dataplane.StatsSize + 4095) &^ 4095

// counts is the broker's view of the counters of a link. A packet process writes them, so they
// outlive it.
type counts struct{ mem []byte } // read-only

// newCounts makes memory for counters, and returns its file for a packet process. The process
// cannot change its size.
func newCounts() (*counts, int, error) {
	fd, err := unix.MemfdCreate("counters", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, -1, fmt.Errorf("memory of counters: %w", err)
	}
	err = unix.Ftruncate(fd, int64(statsSize))
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
	}
	var mem []byte
	if err == nil {
		mem, err = unix.Mmap(fd, 0, statsSize, unix.PROT_READ, unix.MAP_SHARED)
	}
	if err != nil {
		return nil, -1, errors.Join(fmt.Errorf("memory of counters: %w", err), unix.Close(fd))
	}
	return &counts{mem: mem}, fd, nil
}

// close unmaps the memory. The connections have ended.
func (c *counts) close() { _ = unix.Munmap(c.mem) }

// connCounts are the counters of one connection. It is a [Counting].
type connCounts struct {
	base [][dataplane.NumCounters]uint64 // by queue, of the connections before

	mu     sync.Mutex // guards all below
	counts *counts    // nil: the connection has ended
	final  [dataplane.NumCounters]uint64
}

// begin begins a connection of so many queues.
func (c *counts) begin(queues int) *connCounts {
	n := &connCounts{counts: c, base: make([][dataplane.NumCounters]uint64, queues)}
	for i := range n.base {
		n.base[i] = dataplane.StatsIn(c.mem, queues)[i].Snapshot()
	}
	return n
}

// queue returns the counters of queue i. Preconditions: mu held; the connection has not ended.
func (c *connCounts) queue(i int) [dataplane.NumCounters]uint64 {
	n := dataplane.StatsIn(c.counts.mem, len(c.base))[i].Snapshot()
	for k := range n {
		n[k] -= min(c.base[i][k], n[k])
	}
	return n
}

// fill fills in the counters of queues.
func (c *connCounts) fill(queues []QueueStatus) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range queues {
		queues[i].Counters = c.queue(i)
	}
}

// Counters implements [Counting].
func (c *connCounts) Counters() (sum [dataplane.NumCounters]uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.counts == nil {
		return c.final
	}
	for i := range c.base {
		n := c.queue(i)
		AddCounters(&sum, &n)
	}
	return sum
}

// end ends the connection, and returns its counters.
func (c *connCounts) end() [dataplane.NumCounters]uint64 {
	sum := c.Counters()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.final, c.counts = sum, nil
	return sum
}
