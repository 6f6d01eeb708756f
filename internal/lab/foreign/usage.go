// SPDX-License-Identifier: Apache-2.0

package foreign

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Usage holds the resources that a process has used since its start.
type Usage struct {
	CPU   time.Duration // of all threads, in user and kernel mode
	Wakes uint64        // how often a thread slept and was woken: voluntary context switches
}

// Sub returns what was used since u was before.
func (u Usage) Sub(before Usage) Usage {
	return Usage{u.CPU - before.CPU, u.Wakes - before.Wakes}
}

// UsageOf reads the usage of a process. A thread that has ended is not part of it.
func UsageOf(pid int) (u Usage, err error) {
	threads, err := Threads(pid)
	for _, t := range threads {
		u.CPU += t.CPU
		u.Wakes += t.Wakes
	}
	return u, err
}

// Threads reads the usage of each thread of a process, by its id.
func Threads(pid int) (map[int]Usage, error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	if err != nil || len(tasks) == 0 {
		return nil, fmt.Errorf("usage of process %d: %w", pid, os.ErrProcessDone)
	}
	threads := map[int]Usage{}
	for _, task := range tasks {
		id, err := strconv.Atoi(filepath.Base(task))
		if err != nil {
			return nil, err
		}
		// Nanoseconds on a processor, nanoseconds of waiting for one, time slices.
		times, err := os.ReadFile(task + "/schedstat")
		if err != nil {
			continue // it has ended
		}
		status, err := os.ReadFile(task + "/status")
		if err != nil {
			continue
		}
		first, _, _ := strings.Cut(string(times), " ")
		ns, err := strconv.ParseInt(first, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("usage of process %d: %w", pid, err)
		}
		_, after, _ := strings.Cut(string(status), "\nvoluntary_ctxt_switches:")
		line, _, _ := strings.Cut(after, "\n")
		wakes, err := strconv.ParseUint(strings.TrimSpace(line), 10, 64)
		if err != nil {
			return nil, fmt.Errorf("usage of process %d: %w", pid, err)
		}
		threads[id] = Usage{time.Duration(ns), wakes}
	}
	return threads, nil
}
