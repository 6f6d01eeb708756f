// SPDX-License-Identifier: Apache-2.0

package crowd

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Usage has the resources that a process, and those that it has started, have used since their
// start, and their present memory.
type Usage struct {
	PIDs     []int // the process, then those that it has started
	Threads  map[int]Thread
	Memory   Memory
	Switches uint64        // of all their threads that have not ended: each one is a wake, or the loss of a processor
	CPU      time.Duration // of those threads
}

// Thread is the part of one thread.
type Thread struct {
	Name     string
	Switches uint64
	CPU      time.Duration
}

// Memory is the resident memory of a process in bytes, by the kernel's kinds.
type Memory struct {
	Anon  int64 // heap, stacks, buffers
	File  int64 // mapped files: the program, journals on a disk
	Shmem int64 // the guests' rings on an embedded Xen, journals on a tmpfs
	Page  int64 // page tables
}

// All returns all resident memory.
func (m Memory) All() int64 { return m.Anon + m.File + m.Shmem }

// Read reads the usage of a process, and of those that it has started.
func Read(pid int) (Usage, error) {
	u := Usage{Threads: map[int]Thread{}}
	var err error
	if u.PIDs, err = family(pid); err != nil {
		return u, err
	}
	for i, p := range u.PIDs {
		err := u.add(p)
		if err != nil && (i == 0 || !errors.Is(err, os.ErrProcessDone)) {
			return u, err
		}
	}
	return u, nil
}

// family returns a process and those that it has started, by the parents of all processes.
func family(pid int) ([]int, error) {
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	children := map[int][]int{}
	for _, path := range files {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // it has just ended
		}
		words := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:])) // the name before may have any character
		if len(words) < 2 {
			return nil, fmt.Errorf("%s: no parent", path)
		}
		parent, err := strconv.Atoi(words[1])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		child, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			return nil, err
		}
		children[parent] = append(children[parent], child)
	}
	all := []int{pid}
	for i := 0; i < len(all); i++ { // all grows meanwhile
		all = append(all, children[all[i]]...)
	}
	return all, nil
}

// add adds the usage of one process. It returns os.ErrProcessDone if it has ended.
func (u *Usage) add(pid int) error {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	if err != nil || len(tasks) == 0 {
		return fmt.Errorf("process %d: %w", pid, os.ErrProcessDone)
	}
	for _, dir := range tasks {
		tid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			return err
		}
		t, err := readThread(dir)
		if os.IsNotExist(err) {
			continue // it has just ended
		}
		if err != nil {
			return err
		}
		u.Threads[tid] = t
		u.Switches += t.Switches
		u.CPU += t.CPU
	}
	m, err := readMemory(pid)
	if os.IsNotExist(err) {
		return fmt.Errorf("process %d: %w", pid, os.ErrProcessDone)
	}
	u.Memory = Memory{u.Memory.Anon + m.Anon, u.Memory.File + m.File, u.Memory.Shmem + m.Shmem, u.Memory.Page + m.Page}
	return err
}

// readThread reads the usage of one thread from its directory in proc(5).
func readThread(dir string) (t Thread, err error) {
	words, err := fields(dir + "/status")
	if err != nil {
		return t, err
	}
	t.Name = words["Name"]
	for _, key := range []string{"voluntary_ctxt_switches", "nonvoluntary_ctxt_switches"} {
		n, err := strconv.ParseUint(words[key], 10, 64)
		if err != nil {
			return t, fmt.Errorf("%s/status: %s: %w", dir, key, err)
		}
		t.Switches += n
	}
	b, err := os.ReadFile(dir + "/schedstat") // nanoseconds that it ran, that it waited, slices
	if err != nil {
		return t, err
	}
	ran, _, _ := strings.Cut(string(b), " ")
	ns, err := strconv.ParseInt(ran, 10, 64)
	t.CPU = time.Duration(ns)
	return t, err
}

// readMemory reads the memory of a process.
func readMemory(pid int) (m Memory, err error) {
	words, err := fields(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return m, err
	}
	for key, to := range map[string]*int64{"RssAnon": &m.Anon, "RssFile": &m.File, "RssShmem": &m.Shmem, "VmPTE": &m.Page} {
		kib, err := strconv.ParseInt(strings.TrimSuffix(words[key], " kB"), 10, 64)
		if err != nil {
			return m, fmt.Errorf("process %d: %s: %w", pid, key, err)
		}
		*to = kib << 10
	}
	return m, nil
}

// fields reads a file with lines of the form "key: value".
func fields(path string) (map[string]string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	words := map[string]string{}
	for lines := bufio.NewScanner(bytes.NewReader(b)); lines.Scan(); {
		if key, value, ok := strings.Cut(lines.Text(), ":"); ok {
			words[key] = strings.TrimSpace(value)
		}
	}
	return words, nil
}

// Ran describes the threads that ran between two readings.
func Ran(before, after Usage) string {
	var b strings.Builder
	for _, tid := range slices.Sorted(maps.Keys(after.Threads)) {
		was, is := before.Threads[tid], after.Threads[tid]
		if is.Switches != was.Switches {
			fmt.Fprintf(&b, "%d %s: %d times, %v\n", tid, is.Name, is.Switches-was.Switches, is.CPU-was.CPU)
		}
	}
	return b.String()
}
