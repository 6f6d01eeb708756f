// SPDX-License-Identifier: Apache-2.0

package prober

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// none is an empty set of capabilities in /proc.
const none = "0000000000000000"

// CheckRights returns an error if a thread of a process has or can gain a right: a
// capability, or a system call beyond a filter.
func CheckRights(pid int) error {
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
		has := map[string]string{}
		for line := range strings.Lines(string(b)) {
			name, value, _ := strings.Cut(line, ":")
			has[name] = strings.TrimSpace(value)
		}
		for name, want := range map[string]string{
			"CapInh": none, "CapPrm": none, "CapEff": none, "CapAmb": none, "NoNewPrivs": "1", "Seccomp": "2",
		} {
			if has[name] != want {
				errs = append(errs, fmt.Errorf("%s: %s is %q, want %q", path, name, has[name], want))
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
