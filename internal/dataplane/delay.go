// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// delayFile reads the time for which one thread has been ready to run and has waited for a
// processor. The zero value is not open.
type delayFile struct {
	file *os.File // nil: not open
	buf  [96]byte
	last time.Duration
}

// open opens the file of the calling thread. Kernels without CONFIG_SCHED_INFO have none.
func (d *delayFile) open() error {
	f, err := os.Open("/proc/thread-self/schedstat")
	if err != nil {
		return fmt.Errorf("waits for a processor are not known: %w", err)
	}
	d.file = f
	return nil
}

// read returns that time. If it cannot be read, the thread seems to have waited long.
func (d *delayFile) read() time.Duration {
	n, err := unix.Pread(int(d.file.Fd()), d.buf[:], 0)
	if err != nil {
		d.last += time.Hour
		return d.last
	}
	d.last = parseDelay(d.buf[:n])
	return d.last
}

// close closes the file, if it is open.
func (d *delayFile) close() {
	if d.file != nil {
		_ = d.file.Close()
		d.file = nil
	}
}

// parseDelay returns the second number of b, in nanoseconds. The first is the time on a
// processor, the third a count.
func parseDelay(b []byte) (ns time.Duration) {
	fields := 0
	for _, c := range b {
		switch {
		case c == ' ':
			fields++
		case fields == 1 && c >= '0' && c <= '9':
			ns = 10*ns + time.Duration(c-'0')
		}
	}
	return ns
}
