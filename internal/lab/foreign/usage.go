// SPDX-License-Identifier: Apache-2.0

package foreign

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Usage is what a process has used since its start.
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
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	if err != nil || len(tasks) == 0 {
		return u, fmt.Errorf("usage of process %d: %w", pid, os.ErrProcessDone)
	}
	for _, task := range tasks {
		// Nanoseconds on a processor, nanoseconds of waiting for one, time slices.
		if b, err := os.ReadFile(task + "/schedstat"); err == nil {
			ns, _, _ := strings.Cut(string(b), " ")
			n, err := strconv.ParseInt(ns, 10, 64)
			if err != nil {
				return u, fmt.Errorf("usage of process %d: %w", pid, err)
			}
			u.CPU += time.Duration(n)
		}
		if b, err := os.ReadFile(task + "/status"); err == nil {
			s := bufio.NewScanner(bytes.NewReader(b))
			for s.Scan() {
				if v, ok := strings.CutPrefix(s.Text(), "voluntary_ctxt_switches:"); ok {
					n, err := strconv.ParseUint(strings.TrimSpace(v), 10, 64)
					if err != nil {
						return u, fmt.Errorf("usage of process %d: %w", pid, err)
					}
					u.Wakes += n
				}
			}
		}
	}
	return u, nil
}
