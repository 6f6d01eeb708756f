// SPDX-License-Identifier: Apache-2.0

// Package logsink writes a log without ever waiting for its reader. Lines go into a buffer,
// and a goroutine writes them to the file. With a full pipe, a journal that hangs, a
// terminal that has hung up or a full disk, lines are lost. They are counted, and their
// number is written as soon as the log accepts lines again. A caller never waits.
//
// The package knows bytes that end in newlines. It does not know their content.
package logsink

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// bufferSize bounds the bytes that wait for the reader. It holds about two
	// thousand lines.
	bufferSize = 256 << 10

	// syncTime bounds the time that Sync waits for the reader.
	syncTime = 500 * time.Millisecond
)

// errFull is the cause of the loss of lines that did not fit the buffer.
var errFull = errors.New("the reader of the log did not keep up")

// Note makes the line that reports lost lines and the cause.
type Note func(lines uint64, cause error) []byte

// Sink is a zapcore.WriteSyncer that never blocks. It is safe for concurrent use.
type Sink struct {
	fd   int
	note Note

	wake chan struct{} // holds one: there is work
	lost atomic.Uint64 // lines lost since the start

	mu      sync.Mutex // guards all below
	buf     []byte     // whole lines that wait
	dropped uint64     // lines that did not fit since buf was taken
	waiters []chan struct{}
}

// New starts a sink for the open file fd, which the caller still owns. The sink lives as
// long as the process: its goroutine may be within a write that never ends.
func New(fd int, note Note) *Sink {
	s := &Sink{fd: fd, note: note, wake: make(chan struct{}, 1)}
	go s.run()
	return s
}

// Lost returns the number of lines lost so far.
func (s *Sink) Lost() uint64 { return s.lost.Load() }

// Write copies one or more whole lines and returns at once. Lines that do not fit the
// buffer are lost, which is not an error.
func (s *Sink) Write(lines []byte) (int, error) {
	s.mu.Lock()
	if len(s.buf)+len(lines) > bufferSize {
		n := countLines(lines)
		s.dropped += n
		s.lost.Add(n)
	} else {
		s.buf = append(s.buf, lines...)
	}
	s.mu.Unlock()
	s.rouse()
	return len(lines), nil
}

// Sync waits until the lines written before have been passed on or lost, but not
// longer than half a second. It returns an error if that was not long enough.
func (s *Sink) Sync() error {
	done := make(chan struct{})
	s.mu.Lock()
	s.waiters = append(s.waiters, done)
	s.mu.Unlock()
	s.rouse()
	t := time.NewTimer(syncTime)
	defer t.Stop()
	select {
	case <-done:
		return nil
	case <-t.C:
		return errFull
	}
}

// rouse wakes the goroutine. It never blocks.
func (s *Sink) rouse() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// loss counts lost lines that were not reported yet.
type loss struct {
	lines uint64
	cause error
	torn  bool // the file ends within a line
}

func (l *loss) add(lines uint64, cause error) {
	if lines > 0 {
		l.lines += lines
		l.cause = cause
	}
}

// run writes the lines that wait. It never returns.
func (s *Sink) run() {
	var untold loss
	var spare []byte
	for range s.wake {
		s.mu.Lock()
		lines, dropped, waiters := s.buf, s.dropped, s.waiters
		s.buf, s.dropped, s.waiters = spare[:0], 0, nil
		s.mu.Unlock()
		s.pass(lines, dropped, &untold)
		for _, w := range waiters {
			close(w)
		}
		spare = lines
	}
}

// pass writes lines and reports losses: earlier ones before the lines, and after them the
// dropped lines, which came later and did not fit the buffer.
func (s *Sink) pass(lines []byte, dropped uint64, untold *loss) {
	if len(lines) > 0 {
		s.tell(untold)
		if n, err := writeAll(s.fd, lines); err != nil {
			lost := countLines(lines[n:])
			s.lost.Add(lost)
			untold.add(lost, err)
			untold.add(dropped, errFull)
			untold.torn = untold.torn && n == 0 || n > 0 && lines[n-1] != '\n'
			return
		}
	}
	untold.add(dropped, errFull)
	s.tell(untold)
}

// tell writes the note of losses, if there are any. If that fails, they stay unreported.
func (s *Sink) tell(untold *loss) {
	if untold.lines == 0 {
		return
	}
	note := s.note(untold.lines, untold.cause)
	if untold.torn {
		note = append([]byte{'\n'}, note...)
	}
	n, err := writeAll(s.fd, note)
	if err == nil {
		*untold = loss{}
		return
	}
	untold.torn = untold.torn && n == 0 || n > 0 && note[n-1] != '\n'
}

// writeAll writes b to fd without a time limit, and returns the number of bytes written. It
// also waits for a file that another process has made non-blocking.
func writeAll(fd int, b []byte) (n int, err error) {
	for n < len(b) {
		m, err := unix.Write(fd, b[n:])
		switch {
		case err == unix.EAGAIN:
			ready := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
			if _, err := unix.Poll(ready, -1); err != nil && err != unix.EINTR {
				return n, err
			}
		case err == unix.EINTR:
		case err != nil:
			return n, err
		default:
			n += m
		}
	}
	return n, nil
}

func countLines(b []byte) uint64 { return uint64(bytes.Count(b, []byte{'\n'})) }

// Last writes the last message of a process that ends. It waits for the reader for at most
// the given time.
func Last(fd int, within time.Duration, format string, v ...any) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = writeAll(fd, fmt.Appendf(nil, format, v...))
	}()
	t := time.NewTimer(within)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
	}
}
