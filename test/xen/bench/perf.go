// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// callCounter counts the system calls of all threads of a process. Counting adds a little
// to the cost of each call.
type callCounter struct{ fds []int }

func countCalls(pid int) (*callCounter, error) {
	const tracing = "/sys/kernel/tracing"
	if err := unix.Mount("tracefs", tracing, "tracefs", 0, ""); err != nil && err != unix.EBUSY {
		return nil, fmt.Errorf("tracefs: %w", err)
	}
	text, err := os.ReadFile(tracing + "/events/raw_syscalls/sys_enter/id")
	if err != nil {
		return nil, err
	}
	id, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return nil, err
	}
	tasks, err := threads(pid)
	if err != nil {
		return nil, err
	}
	c := &callCounter{}
	for _, task := range tasks {
		tid, err := strconv.Atoi(filepath.Base(task))
		if err != nil {
			return nil, err
		}
		attr := unix.PerfEventAttr{Type: unix.PERF_TYPE_TRACEPOINT, Size: unix.PERF_ATTR_SIZE_VER1, Config: id}
		fd, err := unix.PerfEventOpen(&attr, tid, -1, -1, unix.PERF_FLAG_FD_CLOEXEC)
		if err != nil {
			return nil, fmt.Errorf("perf_event_open of thread %d: %w", tid, err)
		}
		c.fds = append(c.fds, fd)
	}
	return c, nil
}

func (c *callCounter) read() (n uint64, err error) {
	var b [8]byte
	for _, fd := range c.fds {
		if _, err := unix.Read(fd, b[:]); err != nil {
			return 0, err
		}
		n += binary.NativeEndian.Uint64(b[:])
	}
	return n, nil
}

func (c *callCounter) close() {
	for _, fd := range c.fds {
		_ = unix.Close(fd)
	}
}

// threads lists the directories of a process's threads.
func threads(pid int) ([]string, error) {
	list, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	if err != nil || len(list) == 0 {
		return nil, fmt.Errorf("process %d has no threads", pid)
	}
	return list, nil
}

// threadsRan returns the time in ns for which the threads of a process have run. It misses
// the time of a running thread since the last tick.
func threadsRan(pid int) (ns uint64, err error) {
	list, err := threads(pid)
	if err != nil {
		return 0, err
	}
	for _, dir := range list {
		text, err := os.ReadFile(dir + "/schedstat")
		if err != nil {
			return 0, err
		}
		first, _, _ := strings.Cut(string(text), " ")
		n, err := strconv.ParseUint(first, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s/schedstat: %w", dir, err)
		}
		ns += n
	}
	return ns, nil
}

// kernelCounts holds a kernel's counters from /proc/stat.
type kernelCounts struct{ Interrupts, Switches uint64 }

func readKernel() (k kernelCounts, err error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return k, err
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "intr":
			k.Interrupts, err = strconv.ParseUint(f[1], 10, 64)
		case "ctxt":
			k.Switches, err = strconv.ParseUint(f[1], 10, 64)
		}
		if err != nil {
			return k, err
		}
	}
	return k, nil
}

// readInterrupts returns the number of this kernel's interrupts by device.
func readInterrupts() (map[string]uint64, error) {
	text, err := os.ReadFile("/proc/interrupts")
	return parseInterrupts(string(text)), err
}

// parseInterrupts parses /proc/interrupts. It adds the numbers of all processors. The name of an
// interrupt is the last word of its line, or the first if the line has no more.
func parseInterrupts(text string) map[string]uint64 {
	counts := map[string]uint64{}
	var cpus int
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if cpus == 0 {
			cpus = len(f)
			continue
		}
		if len(f) < 2 || !strings.HasSuffix(f[0], ":") {
			continue
		}
		name := strings.TrimSuffix(f[0], ":")
		var n uint64
		fields := 0
		for _, v := range f[1:min(len(f), cpus+1)] {
			c, err := strconv.ParseUint(v, 10, 64)
			if err != nil {
				break
			}
			n += c
			fields++
		}
		if fields+1 < len(f) {
			name = f[len(f)-1]
		}
		if n > 0 {
			counts[name] += n
		}
	}
	return counts
}

const kernelCountsLen = 16

func (k kernelCounts) append(b []byte) []byte {
	b = binary.NativeEndian.AppendUint64(b, k.Interrupts)
	return binary.NativeEndian.AppendUint64(b, k.Switches)
}

func parseKernel(b []byte) kernelCounts {
	return kernelCounts{binary.NativeEndian.Uint64(b), binary.NativeEndian.Uint64(b[8:])}
}
