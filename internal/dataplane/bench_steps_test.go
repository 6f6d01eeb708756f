// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/xen"
)

// helpCounted is a helper that makes turns between two SIGSTOPs, for a tracer that counts
// their instructions.
const helpCounted = "counted"

func init() { helpers[helpCounted] = countedChild }

// counted is a batch whose instructions are counted. The turns of a batch execute the same
// instructions regardless of what the machine does meanwhile, so the number is that of the program:
// neither the processor, nor the kernel, nor load changes it. Only the random multiplier of
// the table of static grants does, by up to 5 %. It needs no
// performance counters, which virtual machines often lack.
type counted struct {
	name  string
	tx    bool
	frame benchFrame
	batch int
}

// countedBatches returns the batches, in the order in which the child makes them.
func countedBatches() (all []counted) {
	for _, tx := range []bool{true, false} {
		frames := benchFrames()
		dir := "guest to host"
		if !tx {
			frames, dir = rxFrames()[:3], "host to guest"
		}
		for _, b := range frames {
			all = append(all, counted{fmt.Sprintf("%s, %s, batch %d", dir, b.name, b.batches[0]), tx, b, b.batches[0]})
		}
	}
	return all
}

// countedWarm is the number of runs before the batch that is counted: the estimates of the
// queue's reader have settled, and nothing is allocated for the first time.
const countedWarm = 8

// countedChild makes each of countedBatches with the pages of the guest as static grants and
// with system calls, between two stops.
func countedChild() error {
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		return errors.New("not on the main thread, the only one that is traced")
	}
	d, err := tap.Create(tap.Config{Name: "counted", VnetHdr: true, Offload: tap.Offload{Csum: true, TSO4: true, TSO6: true}})
	if err != nil {
		return err
	}
	defer d.Close()
	if err := netns.Up("counted"); err != nil {
		return err
	}
	h, err := newFiller(d.Index())
	if err != nil {
		return err
	}
	guest := newFront(benchTB{}, testDomid)
	guest.back = guest.mapped(append([]xen.Gref{ringRef, ringRef + 1}, refs(0, 2*frontPages)...)...)
	l := newLane(staticPlain, d, false, static, guest)
	stop := func() error { return unix.Tgkill(unix.Getpid(), unix.Gettid(), unix.SIGSTOP) }
	for _, c := range countedBatches() {
		b := c.frame
		b.run = c.batch
		for range countedWarm {
			if c.tx {
				_, err = l.txRun(&b, c.batch, 0)
			} else {
				_, err = l.rxRun(&b, h, c.batch, 0)
			}
			if err != nil {
				return err
			}
		}
		if err := l.ready(h, &c); err != nil {
			return err
		}
		if err := stop(); err != nil {
			return err
		}
		for l.w.sched.waits() {
			l.w.round()
		}
		if err := stop(); err != nil {
			return err
		}
	}
	return nil
}

// ready makes the packets of a batch and schedules the queue. The batch is one of the many
// that the coalescer does not look at, as it has merged nothing lately.
func (l *lane) ready(h *filler, c *counted) error {
	if c.tx {
		l.queue().coalescer.skip = 1
		l.takeTx()
		l.putTx(&c.frame, c.batch)
	} else {
		l.repost()
		if err := h.fill(&c.frame, c.batch); err != nil {
			return err
		}
		l.queue().reader.run.expected, l.queue().reader.run.previous = l.hist[c.batch][0], l.hist[c.batch][1]
		l.queue().tapIn.ready = true
	}
	l.w.sched.schedule(l.queue())
	return nil
}

// steps are the instructions of a batch, all and by function.
type steps struct {
	all int
	at  map[string]int
}

// countSteps single-steps a child through countedBatches. It returns nil where this process
// may not trace, and on processors on which a step is not always one instruction.
func countSteps() (found map[string]steps, err error) {
	if runtime.GOARCH != "amd64" {
		return nil, nil
	}
	pid, err := syscall.ForkExec("/proc/self/exe", os.Args[:1], &syscall.ProcAttr{
		Env:   append(os.Environ(), envHelper+"="+helpCounted, "GODEBUG=asyncpreemptoff=1", "GOGC=off"),
		Files: []uintptr{0, 1, 2},
		Sys:   &syscall.SysProcAttr{Ptrace: true, Pdeathsig: syscall.SIGKILL},
	})
	if errors.Is(err, unix.EPERM) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	c := traced{pid: pid}
	defer c.kill()
	if _, err := c.wait(); err != nil { // for its exec
		return nil, err
	}
	found = map[string]steps{}
	for _, b := range countedBatches() {
		if err := c.run(); err != nil {
			return nil, err
		}
		s, err := c.count()
		if err != nil {
			return nil, err
		}
		found[b.name] = s
	}
	return found, nil
}

// traced is a child that the calling thread traces.
type traced struct{ pid int }

// wait returns the signal at which the child stopped.
func (c traced) wait() (unix.Signal, error) {
	var ws unix.WaitStatus
	for {
		_, err := unix.Wait4(c.pid, &ws, 0, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 0, err
		case !ws.Stopped():
			return 0, fmt.Errorf("the child ended: %#x", ws)
		default:
			return ws.StopSignal(), nil
		}
	}
}

// run lets the child run until it stops itself.
func (c traced) run() error {
	for sig := 0; ; {
		if err := unix.PtraceCont(c.pid, sig); err != nil {
			return err
		}
		s, err := c.wait()
		if err != nil || s == unix.SIGSTOP {
			return err
		}
		sig = int(s)
	}
}

// count steps the child until it stops itself. It does not count the call that does so.
func (c traced) count() (s steps, err error) {
	s.at = map[string]int{}
	var regs unix.PtraceRegs
	pcs := map[uint64]int{}
	for {
		if err := unix.PtraceSingleStep(c.pid); err != nil {
			return s, err
		}
		sig, err := c.wait()
		if err != nil {
			return s, err
		}
		if sig == unix.SIGSTOP {
			break
		}
		if err := unix.PtraceGetRegs(c.pid, &regs); err != nil {
			return s, err
		}
		pcs[pcOf(&regs)]++
	}
	for pc, n := range pcs {
		name := "?"
		if f := runtime.FuncForPC(uintptr(pc)); f != nil { // the child is the same program
			name = f.Name()
		}
		if ours(name) {
			s.all += n
			s.at[name] += n
		}
	}
	return s, nil
}

// ours reports whether a function is part of a turn: not of the helper itself, nor of Go's
// scheduler, which a thread that is stopped after each instruction hears from.
func ours(name string) bool {
	switch {
	case strings.HasPrefix(name, "runtime."):
		return strings.HasPrefix(name, "runtime.mem") // memmove and the like
	case strings.HasPrefix(name, "internal/runtime/atomic"), strings.HasPrefix(name, "internal/runtime/maps"):
		return false
	}
	return strings.Contains(name, ".") && // not the scheduler's assembly
		!strings.Contains(name, "countedChild") && !strings.Contains(name, "Tgkill")
}

// kill ends the child.
func (c traced) kill() {
	_ = unix.Kill(c.pid, unix.SIGKILL)
	var ws unix.WaitStatus
	for {
		if _, err := unix.Wait4(c.pid, &ws, 0, nil); err != unix.EINTR && (err != nil || ws.Exited() || ws.Signaled()) {
			return
		}
	}
}

// top returns the functions with the most instructions, for each of n packets.
func (s steps) top(n int) string {
	names := make([]string, 0, len(s.at))
	for name := range s.at {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int { return s.at[b] - s.at[a] })
	var out strings.Builder
	for _, name := range names[:min(len(names), 20)] {
		fmt.Fprintf(&out, "  %8.1f  %s\n", float64(s.at[name])/float64(n), name)
	}
	return out.String()
}
