// SPDX-License-Identifier: Apache-2.0

package blkengine

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/blkplane"
)

// shownSize returns the size of the memory of what is shown of so many queues, in bytes.
func shownSize(queues int) int { return (queues*blkplane.ShownSize + 4095) &^ 4095 }

// shown has the counters and gauges of the queues of one connection, in memory that a disk
// process writes. So they outlive the process.
type shown struct {
	mu     sync.Mutex       // guards all below
	mem    []byte           // read-only; nil: the connection has ended
	queues []blkplane.Shown // there, or a copy of the last values
}

// newShown makes memory, and returns its file for a disk process. The process cannot change its
// size.
func newShown(queues int) (*shown, int, error) {
	fd, err := unix.MemfdCreate("queues", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, -1, fmt.Errorf("memory of counters: %w", err)
	}
	err = unix.Ftruncate(fd, int64(shownSize(queues)))
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
	}
	var mem []byte
	if err == nil {
		mem, err = unix.Mmap(fd, 0, shownSize(queues), unix.PROT_READ, unix.MAP_SHARED)
	}
	if err != nil {
		return nil, -1, errors.Join(fmt.Errorf("memory of counters: %w", err), unix.Close(fd))
	}
	return &shown{mem: mem, queues: blkplane.ShownIn(mem, queues)}, fd, nil
}

// end keeps the last values and unmaps the memory.
func (s *shown) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mem == nil {
		return
	}
	last := make([]byte, len(s.mem))
	copy(last, s.mem)
	_ = unix.Munmap(s.mem)
	s.mem, s.queues = nil, blkplane.ShownIn(last, len(s.queues))
}

// counters returns the counters of queue i.
func (s *shown) counters(i int) [blkplane.NumCounters]uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.queues[i].Counters()
}

// status returns a snapshot of queue i of so many slots.
func (s *shown) status(i int, slots uint32, adopted bool) blkplane.QueueStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.queues[i].Status(slots, adopted)
}
