// SPDX-License-Identifier: Apache-2.0

// Package daemon holds what the process of any daemon needs besides its work: a log that
// waits for no reader, a control socket, messages to a service manager and its watchdog, and
// limits of the process.
//
// It must not know the work.
package daemon

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/control"
	"github.com/netbackd/netbackd/internal/iouring"
	"github.com/netbackd/netbackd/internal/logsink"
	"github.com/netbackd/netbackd/internal/sdnotify"
)

// Process is the process of a daemon.
type Process struct {
	Log    *zap.Logger
	Notify *sdnotify.Notifier // nil: there is no service manager
	sink   *logsink.Sink
}

// Begin makes the log. The process outlives its terminal and the reader of its log from then
// on. End ends it.
func Begin(f LogFlags) (p *Process, end func(), err error) {
	signal.Ignore(unix.SIGPIPE, unix.SIGHUP, unix.SIGTTOU)
	logsink.Unblock(stderr)
	log, sink, err := newLogger(f)
	if err != nil {
		return nil, nil, err
	}
	restore := zap.RedirectStdLog(log)
	return &Process{Log: log, sink: sink}, func() { restore(); _ = log.Sync() }, nil
}

// LogLost returns the number of lines of the log that were lost.
func (p *Process) LogLost() uint64 { return p.sink.Lost() }

// Pass writes a line of another process, which has the form of the log's lines, to the log.
func (p *Process) Pass(line []byte) {
	_, _ = p.sink.Write(append(line[:len(line):len(line)], '\n')) // losses are counted
}

// WatchHeap keeps the heap small until ctx ends, as Serve does, with the soft limit that limit
// returns, in bytes.
func WatchHeap(ctx context.Context, limit func() int64) { newHeap(limit).watch(ctx) }

// Work holds the parts of a program that [Process.Serve] runs and watches.
type Work struct {
	Listener net.Listener // the control socket; Serve closes it; nil: there is none
	Handler  http.Handler

	Workers func(context.Context) error // waits until every worker has answered
	Control func(context.Context) error // waits until the control loop has answered
	Text    func() string               // the status for the service manager
	Heap    func() int64                // bytes that the settings allow Go's heap at present; nil: any number

	// Run works until ctx ends, and calls ready once.
	Run func(ctx context.Context, ready func()) error
}

// Serve works until ctx ends. Meanwhile it answers at the control socket, and reports to the
// service manager.
func (p *Process) Serve(ctx context.Context, w Work) (err error) {
	clients, err := zap.NewStdLogAt(p.Log, zap.WarnLevel)
	if err != nil {
		return err
	}
	serveCtx, stop := context.WithCancel(ctx)
	defer stop()
	if w.Listener != nil {
		served := make(chan error, 1)
		go func() { served <- control.Serve(serveCtx, w.Listener, w.Handler, clients) }()
		defer func() {
			stop()
			err = errors.Join(err, <-served)
		}()
	}
	var watch sync.WaitGroup
	watch.Go(func() { newHeap(w.Heap).watch(serveCtx) })
	srv := &service{notify: p.Notify, log: p.Log, workers: w.Workers, control: w.Control, text: w.Text}
	err = w.Run(ctx, func() { watch.Go(func() { srv.serve(serveCtx) }) })
	stop()
	watch.Wait() // before srv.stopped, which uses the same fields
	srv.stopped()
	return err
}

// CloseListener closes a control socket, which Serve may have closed already.
func CloseListener(l net.Listener) error {
	err := l.Close()
	if errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

// Resident returns the resident memory of the process in bytes, 0 if it cannot.
func Resident() int64 {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b))
	if len(f) < 2 {
		return 0
	}
	pages, _ := strconv.ParseInt(f[1], 10, 64)
	return pages * int64(os.Getpagesize())
}

// Threads counts the threads of the process, and returns 0 if it cannot.
func Threads() int {
	tasks, _ := os.ReadDir("/proc/self/task")
	return len(tasks)
}

// UringState returns "in use", or the reason why io_uring is not used. wanted is the value of
// --io-uring.
func UringState(wanted bool) string {
	if !wanted {
		return "switched off by --io-uring=false"
	}
	if err := iouring.Supported(); err != nil {
		return err.Error()
	}
	return "in use"
}

// WantFiles is enough for a thousand guests: each queue has some files, and io_uring's file
// tables count as well.
const WantFiles = 65536

// RaiseFileLimit raises the limit on open files as far as allowed. If that is not enough, a
// device fails to connect and reports the error.
func RaiseFileLimit() {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil || l.Cur >= WantFiles {
		return
	}
	most := unix.Rlimit{Cur: WantFiles, Max: max(l.Max, WantFiles)}
	if unix.Setrlimit(unix.RLIMIT_NOFILE, &most) != nil {
		l.Cur = l.Max
		_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &l)
	}
}
