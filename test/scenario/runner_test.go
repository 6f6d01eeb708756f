// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
)

// Each test runs in a process and a network namespace of its own. Most tests wait most of
// the time, so a few run at the same time.

// first names the longest tests, which begin before all others.
var first = []string{"TestEveryStateHasAnAnswer", "TestScriptsOfBothXens", "TestVhostSilentFrontEnds"}

// alone matches tests that compare speeds, or that hold a lock of the whole kernel.
// They run last, one by one.
var alone = regexp.MustCompile(`Costly|Storm|SlowCop|ThreadsAre|Rate|AtOnce|HoldsUp`)

// sideBySide returns the number of tests that run at the same time.
func sideBySide() int { return min(2*runtime.NumCPU(), 4) }

// runEach runs every test that the arguments select, each by a process of exe.
func runEach(exe string, args []string) error {
	args = slices.DeleteFunc(slices.Clone(args), func(a string) bool {
		return strings.HasPrefix(a, "-test.testlogfile") // the file of this process
	})
	names, err := selected(exe, flag.Lookup("test.run").Value.String(), flag.Lookup("test.skip").Value.String())
	if err != nil {
		return err
	}
	slices.SortStableFunc(names, func(a, b string) int { return rank(a) - rank(b) })
	var mu sync.Mutex // guards stdout and failed
	failed := 0
	one := func(name string) {
		cmd := exec.Command(exe, append(slices.Clone(args), "-test.run="+pattern(name))...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		out, err := cmd.CombinedOutput()
		mu.Lock()
		defer mu.Unlock()
		_, _ = os.Stdout.Write(withoutVerdict(out))
		if err != nil {
			failed++
			if !errors.As(err, new(*exec.ExitError)) {
				fmt.Println(err)
			}
		}
	}
	next := make(chan string)
	var wg sync.WaitGroup
	for range sideBySide() {
		wg.Go(func() {
			for name := range next {
				one(name)
			}
		})
	}
	var last []string
	for _, name := range names {
		if alone.MatchString(name) {
			last = append(last, name)
		} else {
			next <- name
		}
	}
	close(next)
	wg.Wait()
	for _, name := range last {
		one(name)
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d tests failed", failed, len(names))
	}
	return nil
}

// rank returns a test's place in the order of starts.
func rank(name string) int {
	if i := slices.Index(first, name); i >= 0 {
		return i
	}
	return len(first)
}

// selected lists the tests that a pattern of -run selects and one of -skip does not.
func selected(exe, run, skip string) ([]string, error) {
	top, _, _ := strings.Cut(run, "/")
	if top == "" {
		top = "."
	}
	out, err := exec.Command(exe, "-test.list="+top).Output()
	if err != nil {
		return nil, fmt.Errorf("list the tests: %w", err)
	}
	var names []string
	for _, name := range strings.Fields(string(out)) {
		if strings.HasPrefix(name, "Test") && (skip == "" || strings.Contains(skip, "/") || !regexp.MustCompile(skip).MatchString(name)) {
			names = append(names, name)
		}
	}
	return names, nil
}

// pattern returns the pattern of -run for one test, with the part for its subtests.
func pattern(name string) string {
	_, sub, found := strings.Cut(flag.Lookup("test.run").Value.String(), "/")
	if found {
		return "^" + name + "$/" + sub
	}
	return "^" + name + "$"
}

// withoutVerdict removes the line PASS or FAIL at the end of a test process's output: this
// process prints one for all of them.
func withoutVerdict(out []byte) []byte {
	trimmed := bytes.TrimRight(out, "\n")
	i := bytes.LastIndexByte(trimmed, '\n') + 1
	switch strings.TrimPrefix(string(trimmed[i:]), "\x16") {
	case "PASS", "FAIL":
		return out[:i]
	}
	return out
}
