// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// loadMeter measures how long a worker's thread has wanted a processor: it ran, or was ready to
// run. The pool reads it, rarely. The worker does nothing for it.
type loadMeter struct {
	tid  atomic.Int32            // thread ID of the worker; 0: it does not run yet
	file atomic.Pointer[os.File] // of the delayFile; nil: there is none

	// These belong to watchTurns.
	total func() time.Duration // nil: read; tests set it
	last  time.Duration        // as read for the last sample
}

// read returns the time in which the thread has wanted a processor, and 0 if it is not known.
// Without the file of waits it is the time that it ran.
func (m *loadMeter) read() time.Duration {
	if m.total != nil {
		return m.total()
	}
	if f := m.file.Load(); f != nil {
		var b [96]byte
		if n, _ := f.ReadAt(b[:], 0); n > 0 { // an error comes with the end of the file
			ran, waited := parseTimes(b[:n])
			return ran + waited
		}
	}
	var t unix.Timespec
	tid := m.tid.Load()
	if tid == 0 || unix.ClockGettime(threadClock(tid), &t) != nil {
		return 0
	}
	return time.Duration(t.Nano())
}

// sample returns the part of a processor that the thread has wanted since the last call, took
// ago.
func (m *loadMeter) sample(took time.Duration) float64 {
	before := m.last
	m.last = m.read()
	return min(max(float64(m.last-before)/float64(max(took, 1)), 0), 1)
}

// threadClock returns the number of the clock of a thread's processor time (CPUCLOCK_SCHED in
// include/linux/posix-timers.h).
func threadClock(tid int32) int32 { return ^tid<<3 | 4 | 2 }
