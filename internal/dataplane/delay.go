// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// delayFile reads the time for which one thread has run, and that for which it has been ready
// to run and has waited for a processor. The zero value is not open.
type delayFile struct {
	file        *os.File // nil: not open
	buf         [96]byte
	ran, waited time.Duration // as last read
}

// open opens the file of the calling thread, unless it is open. Kernels without
// CONFIG_SCHED_INFO have none.
func (d *delayFile) open() error {
	if d.file != nil {
		return nil
	}
	f, err := os.Open("/proc/thread-self/schedstat")
	if err != nil {
		return fmt.Errorf("waits for a processor are not known: %w", err)
	}
	d.file = f
	return nil
}

// read returns these times. If they cannot be read, the thread seems to have waited long.
func (d *delayFile) read() (ran, waited time.Duration) {
	n, err := unix.Pread(int(d.file.Fd()), d.buf[:], 0)
	if err != nil {
		d.waited += time.Hour
	} else {
		d.ran, d.waited = parseTimes(d.buf[:n])
	}
	return d.ran, d.waited
}

// close closes the file, if it is open.
func (d *delayFile) close() {
	if d.file != nil {
		_ = d.file.Close()
		d.file = nil
	}
}

// parseTimes returns the first two numbers of b, in nanoseconds: the time on a processor, and
// that of waits for one. The third is a count.
func parseTimes(b []byte) (ran, waited time.Duration) {
	var n [3]time.Duration
	fields := 0
	for _, c := range b {
		switch {
		case c == ' ':
			fields++
		case fields < len(n) && c >= '0' && c <= '9':
			n[fields] = 10*n[fields] + time.Duration(c-'0')
		}
	}
	return n[0], n[1]
}
