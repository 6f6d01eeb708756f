// SPDX-License-Identifier: Apache-2.0

package diskio

import (
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// results carries completions from the threads of pools to the engine's thread.
type results struct {
	event int // eventfd, readable while there are completions
	count atomic.Int32

	mu   sync.Mutex
	list fifo

	one  [8]byte // written to the eventfd
	read [8]byte // read from it by the engine's thread
}

func newResults(room int) (*results, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	r := &results{event: fd, list: newFIFO(room)}
	binary.NativeEndian.PutUint64(r.one[:], 1)
	return r, nil
}

// put adds a completion. The first one makes the eventfd readable.
func (r *results) put(c Completion) {
	r.mu.Lock()
	r.list.put(c)
	first := r.list.n == 1
	r.count.Store(int32(r.list.n))
	r.mu.Unlock()
	if first {
		// It can fail only when the counter is at its end, and then it is readable.
		_, _ = unix.Write(r.event, r.one[:])
	}
}

// waiting returns the number of completions to take.
func (r *results) waiting() int { return int(r.count.Load()) }

// take removes completions into dst and returns their number. If it takes the last one,
// the next one makes the eventfd readable anew.
func (r *results) take(dst []Completion) int {
	if r.count.Load() == 0 || len(dst) == 0 {
		return 0
	}
	r.mu.Lock()
	n := r.list.take(dst)
	r.count.Store(int32(r.list.n))
	r.mu.Unlock()
	return n
}

// clear makes the eventfd unreadable, until the next first completion.
func (r *results) clear() {
	_, _ = unix.Read(r.event, r.read[:])
}

func (r *results) close() error { return unix.Close(r.event) }

// pool runs operations on a bounded number of threads, which it starts when they are
// needed first.
type pool struct {
	done    *results
	ops     chan op
	max     int
	started int
	stop    atomic.Bool // ends discards
	stopped func() bool
	threads sync.WaitGroup
}

func newPool(done *results, entries, threads int) *pool {
	p := &pool{done: done, ops: make(chan op, entries), max: threads}
	p.stopped = p.stop.Load
	return p
}

// put starts an operation, or has it wait for a thread. No more than the engine's entries
// are put and not taken, so the channel has room.
func (p *pool) put(o op) {
	if p.started < p.max {
		p.started++
		p.threads.Go(p.work)
	}
	p.ops <- o
}

func (p *pool) work() {
	for o := range p.ops {
		res := o.run(p.stopped)
		p.done.put(Completion{User: o.user, Res: res})
	}
}

// close ends the threads, which have no operation under way.
func (p *pool) close() {
	close(p.ops)
	p.threads.Wait()
}
