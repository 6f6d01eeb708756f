// SPDX-License-Identifier: Apache-2.0

package confinetest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// CheckRights returns an error if a thread of a process has or can gain a right: a
// capability that is not in keep, or a system call beyond a filter.
func CheckRights(pid int, keep ...uint) error {
	const none = "0000000000000000"
	kept := uint64(0)
	for _, c := range keep {
		kept |= 1 << c
	}
	set := fmt.Sprintf("%016x", kept)
	return errors.Join(CheckFilter(pid),
		check(pid, map[string]string{"CapInh": none, "CapPrm": set, "CapEff": set, "CapAmb": none}))
}

// CheckFilter returns an error if a thread of a process has no filter of system calls.
func CheckFilter(pid int) error {
	return check(pid, map[string]string{"NoNewPrivs": "1", "Seccomp": "2"})
}

// check compares fields of the status of each thread of a process.
func check(pid int, want map[string]string) error {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(tasks) == 0 {
		return errors.Join(err, fmt.Errorf("process %d has no threads", pid))
	}
	var errs []error
	for _, path := range tasks {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // the thread has ended
		}
		for line := range strings.Lines(string(b)) {
			name, value, _ := strings.Cut(line, ":")
			if v, ok := want[name]; ok && v != strings.TrimSpace(value) {
				errs = append(errs, fmt.Errorf("%s: %s is %q, want %q", path, name, strings.TrimSpace(value), v))
			}
		}
	}
	return errors.Join(errs...)
}

// runtimeFiles matches the files that Go's runtime opens for itself.
const runtimeFiles = `anon_inode:\[(eventpoll|eventfd)\]|/sys/fs/cgroup/.*`

// CheckFiles returns an error for each open file of a process that does not match one of the
// expressions, as a whole. Its standard input, output and error do not count. It needs the
// right to read the files of the process.
func CheckFiles(pid int, allowed ...string) error {
	match, err := regexp.Compile("^(" + strings.Join(append(allowed, runtimeFiles), "|") + ")$")
	if err != nil {
		return err
	}
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range files {
		to, err := os.Readlink(filepath.Join(dir, f.Name()))
		if err != nil || f.Name() == "0" || f.Name() == "1" || f.Name() == "2" {
			continue
		}
		if !match.MatchString(to) {
			errs = append(errs, fmt.Errorf("process %d has %s open", pid, to))
		}
	}
	return errors.Join(errs...)
}
