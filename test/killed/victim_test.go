// SPDX-License-Identifier: Apache-2.0

package killed

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// victim says which process of the daemon is killed. A daemon with --isolate has packet processes,
// its children; without it there is one process, which is both.
var victim = flag.String("victim", "broker", "`process` to kill: broker, packet or both")

// isolated reports whether the daemon has packet processes.
func isolated() bool { return strings.Contains(*daemonArgs, "--isolate") }

// daemonArgs are more arguments for every daemon.
var daemonArgs = flag.String("daemon", "", "more `arguments` for the daemon, such as --isolate=shared")

// victims returns the processes that are to be killed.
func (b *bed) victims() (pids []int) {
	b.t.Helper()
	if *victim != "packet" || !isolated() {
		pids = append(pids, b.Daemon().PID())
	}
	if *victim != "broker" && isolated() {
		pids = append(pids, children(b.Daemon().PID())...)
	}
	if len(pids) == 0 {
		b.t.Fatal("there is no victim")
	}
	return pids
}

// replace starts a successor of a daemon that has died. The daemon itself replaces a packet
// process.
func (b *bed) replace() {
	b.t.Helper()
	if *victim == "packet" && isolated() {
		return
	}
	<-b.Daemon().Done()
	b.must(b.start())
}

// children returns the processes that a process has started.
func children(pid int) (pids []int) {
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return nil
	}
	for _, t := range tasks {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", pid, t.Name()))
		if err != nil {
			continue
		}
		for _, f := range strings.Fields(string(b)) {
			if n, err := strconv.Atoi(f); err == nil {
				pids = append(pids, n)
			}
		}
	}
	return pids
}

// ended reports whether a process is gone, or waits to be reaped.
func ended(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	i := bytes.LastIndexByte(b, ')')
	return i < 0 || i+2 >= len(b) || b[i+2] == 'Z'
}
