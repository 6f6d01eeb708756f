// SPDX-License-Identifier: Apache-2.0

package tracekill

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// blockedAfter is the number of calls that other threads make while one that is to be killed at
// its end does not end.
const blockedAfter = 300

// options of the trace: calls are told from signals, new threads are traced, and the execution
// of a program is told.
const options = unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_TRACEEXEC

// tracer follows the threads of the victims. All but result belongs to one OS thread.
type tracer struct {
	order   Order
	count   bool         // calls are counted
	threads map[int]int  // process of each thread
	inside  map[int]Call // the call that each thread is in
	target  int          // the thread that is to be killed at the end of its call, 0 if none
	left    int          // calls of other threads until it is killed within

	mu     sync.Mutex // guards all below
	result Result
	seen   map[Call]int
}

// trace carries out an order and ends the process.
func trace(o Order) {
	runtime.LockOSThread()
	t := &tracer{order: o, count: !o.Starting, threads: map[int]int{}, inside: map[int]Call{}, seen: map[Call]int{}}
	for _, pid := range o.PIDs {
		if err := t.attach(pid); err != nil {
			report(Result{Error: err.Error()})
		}
	}
	_, _ = os.Stdout.WriteString(readyLine)
	go t.abandon()
	for {
		if err := t.step(); err != nil {
			t.end(func(r *Result) { r.Error = err.Error() })
		}
	}
}

// abandon ends the tracer when its input ends.
func (t *tracer) abandon() {
	var b [1]byte
	_, _ = os.Stdin.Read(b[:])
	t.end(func(*Result) {})
}

// end reports the result.
func (t *tracer) end(f func(*Result)) {
	t.mu.Lock() // for good: the process ends
	for c, n := range t.seen {
		t.result.Seen = append(t.result.Seen, Seen{c, n})
	}
	f(&t.result)
	report(t.result)
}

// attach seizes all threads of a process and stops them once.
func (t *tracer) attach(pid int) error {
	if t.order.Starting {
		if err := stopped(pid); err != nil {
			return err
		}
	}
	for again := true; again; { // until no thread has begun another meanwhile
		again = false
		tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		if err != nil {
			return err
		}
		for _, e := range tasks {
			tid, err := strconv.Atoi(e.Name())
			if err != nil {
				return err
			}
			if _, known := t.threads[tid]; known {
				continue
			}
			_, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(tid), 0, options, 0, 0)
			switch errno {
			case 0:
				again = true
				t.threads[tid] = pid
				if !t.order.Starting {
					_ = unix.PtraceInterrupt(tid) // ESRCH: it has ended
				}
			case unix.EPERM: // a new thread, which is traced already
				t.threads[tid] = pid
			case unix.ESRCH:
			default:
				return fmt.Errorf("seize thread %d: %w", tid, errno)
			}
		}
	}
	if t.order.Starting {
		return unix.Kill(pid, unix.SIGCONT)
	}
	return nil
}

// stopped waits until a process has stopped itself.
func stopped(pid int) error {
	for begin := time.Now(); time.Since(begin) < 10*time.Second; time.Sleep(100 * time.Microsecond) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return err
		}
		if i := bytes.LastIndexByte(b, ')'); i >= 0 && i+2 < len(b) && b[i+2] == 'T' {
			return nil
		}
	}
	return errors.New("the victim did not stop itself")
}

// step waits for one thread to stop, acts on it, and lets it go on.
func (t *tracer) step() error {
	var ws unix.WaitStatus
	tid, err := unix.Wait4(-1, &ws, unix.WALL, nil)
	switch {
	case err == unix.EINTR:
		return nil
	case err == unix.ECHILD:
		return errors.New("the victim has ended")
	case err != nil:
		return fmt.Errorf("wait: %w", err)
	case !ws.Stopped():
		delete(t.threads, tid)
		delete(t.inside, tid)
		return nil
	}
	if _, known := t.threads[tid]; !known {
		t.threads[tid] = t.process(tid)
	}
	event := int(ws) >> 16
	switch sig := ws.StopSignal(); {
	case sig == unix.SIGTRAP|0x80:
		t.syscall(tid)
		return resume(tid, 0)
	case event == unix.PTRACE_EVENT_EXEC:
		t.count = true
		return resume(tid, 0)
	case event == unix.PTRACE_EVENT_STOP && (sig == unix.SIGSTOP || sig == unix.SIGTSTP):
		return gone(ptrace(unix.PTRACE_LISTEN, tid))
	case event != 0:
		return resume(tid, 0)
	default:
		return resume(tid, int(sig))
	}
}

// process returns the process of a thread that a traced one has started.
func (t *tracer) process(tid int) int {
	if len(t.order.PIDs) == 1 {
		return t.order.PIDs[0]
	}
	for _, pid := range t.order.PIDs {
		if _, err := os.Stat(fmt.Sprintf("/proc/%d/task/%d", pid, tid)); err == nil {
			return pid
		}
	}
	return 0
}

// syscall acts on a thread at the beginning or the end of a call.
func (t *tracer) syscall(tid int) {
	info, err := getSyscallInfo(tid)
	if err != nil || !t.count {
		return
	}
	switch info.op {
	case opEntry:
		c := Call{NR: int(info.nr)}
		if c.NR == unix.SYS_IOCTL {
			c.Request = uint32(info.args[1])
		}
		t.inside[tid] = c
		t.enter(tid, c)
	case opExit:
		if tid == t.target && t.order.Steps > 0 {
			t.instructions(tid)
		}
		if tid == t.target {
			t.kill(tid, "exit")
		}
		delete(t.inside, tid)
	}
}

// enter counts a call that begins.
func (t *tracer) enter(tid int, c Call) {
	if c.runtime() {
		return
	}
	t.mu.Lock()
	t.result.Calls++
	n := t.result.Calls
	t.seen[c]++
	if t.order.Kind != nil {
		n = 0 // of another kind
		if c == *t.order.Kind {
			n = t.seen[c]
		}
	}
	t.mu.Unlock()
	switch {
	case t.target != 0:
		if t.left--; t.left <= 0 {
			t.kill(t.target, "inside")
		}
	case n != t.order.Call:
	case t.order.Exit:
		t.target, t.left = tid, blockedAfter
	default:
		t.kill(tid, "entry")
	}
}

// instructions lets a thread carry out some instructions, and kills its process. Other threads that
// stop meanwhile stay so.
func (t *tracer) instructions(tid int) {
	sig := 0
	for range t.order.Steps {
		_, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SINGLESTEP, uintptr(tid), 0, uintptr(sig), 0, 0)
		var ws unix.WaitStatus
		_, err := unix.Wait4(tid, &ws, unix.WALL, nil)
		for err == unix.EINTR {
			_, err = unix.Wait4(tid, &ws, unix.WALL, nil)
		}
		if errno != 0 || err != nil || !ws.Stopped() {
			break
		}
		if sig = int(ws.StopSignal()); ws.StopSignal() == unix.SIGTRAP || int(ws)>>16 != 0 {
			sig = 0
		}
	}
	t.kill(tid, "after")
}

// kill kills the process of a thread, and ends the tracer.
func (t *tracer) kill(tid int, when string) {
	pid := t.threads[tid]
	at := time.Now()
	err := unix.Kill(pid, unix.SIGKILL)
	t.end(func(r *Result) {
		if err != nil {
			r.Error = err.Error()
		}
		r.Died, r.PID, r.At = err == nil, pid, at.UnixNano()
		r.Point = Point{Call: t.inside[tid], When: when}
	})
}

func ptrace(request, tid int) error {
	if _, _, errno := unix.Syscall6(unix.SYS_PTRACE, uintptr(request), uintptr(tid), 0, 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// resume lets a thread go on to its next call, with a signal.
func resume(tid, sig int) error { return gone(unix.PtraceSyscall(tid, sig)) }

// gone turns the error of a thread that was killed meanwhile into nil.
func gone(err error) error {
	if err == unix.ESRCH {
		return nil
	}
	return err
}
