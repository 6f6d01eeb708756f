// SPDX-License-Identifier: Apache-2.0

package spawn

import (
	"bufio"
	"errors"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

const (
	// maxLine bounds a line of a child, in bytes. Longer ones come in parts.
	maxLine = 8 << 10

	// logRate and logBurst bound the bytes of a child's log, per second and at once. The
	// stacks of a crash fit into a burst.
	logRate, logBurst = 64 << 10, 1 << 20
)

// relay passes the lines of a child on. Lines beyond the rate are dropped and counted: a child
// that was taken over cannot fill the log.
type relay struct {
	lost atomic.Uint64
	done chan struct{}
}

func newRelay(r *os.File, log func([]byte)) *relay {
	a := &relay{done: make(chan struct{})}
	go func() {
		defer close(a.done)
		defer r.Close()
		a.copy(r, log)
	}()
	return a
}

// wait waits until the child's end of the pipe is closed and all lines were passed on.
func (a *relay) wait() { <-a.done }

func (a *relay) copy(r *os.File, log func([]byte)) {
	limit := rate.NewLimiter(logRate, logBurst)
	lines := bufio.NewReaderSize(r, maxLine)
	for {
		line, err := lines.ReadSlice('\n')
		if n := len(line); n > 0 && line[n-1] == '\n' {
			line = line[:n-1]
		}
		if len(line) > 0 {
			if limit.AllowN(time.Now(), len(line)+1) {
				clean(line)
				log(line)
			} else {
				a.lost.Add(1)
			}
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
	}
}

// clean replaces control characters, which could change a terminal that shows the log.
func clean(line []byte) {
	for i, b := range line {
		if b < ' ' && b != '\t' || b == 0x7f {
			line[i] = '?'
		}
	}
}
