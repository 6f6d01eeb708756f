// SPDX-License-Identifier: Apache-2.0

package killed

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// victim says which process of the daemon is killed at random instants, unless the test has its own.
// The daemon has packet processes, its children; with --isolate=none there is one process, which is
// both.
var victim = flag.String("victim", "broker", "`process` to kill: broker, packet or both")

// isolated reports whether the daemon has packet processes.
func isolated() bool { return !strings.Contains(*daemonArgs, "--isolate=none") }

// packetLife is the least life of a packet process that is killed: one that dies soon after its
// start, several times in a row, is not replaced at once.
const packetLife = 300 * time.Millisecond

// daemonArgs are more arguments for every daemon.
var daemonArgs = flag.String("daemon", "", "more `arguments` for the daemon, such as --isolate=shared")

// victims returns the processes that are to be killed.
func (b *bed) victims() (pids []int) {
	b.t.Helper()
	if b.victim != "packet" || !isolated() {
		pids = append(pids, b.Daemon().PID())
	}
	if b.victim != "broker" && isolated() {
		pids = append(pids, children(b.Daemon().PID())...)
	}
	if len(pids) == 0 {
		b.t.Fatal("there is no victim")
	}
	return pids
}

// replace starts a successor of a daemon that has died, when pids were killed. The daemon itself
// replaces a packet process.
func (b *bed) replace(pids ...int) {
	b.t.Helper()
	if !slices.Contains(pids, b.Daemon().PID()) {
		return
	}
	<-b.Daemon().Done()
	b.must(b.start())
}

// processes returns the daemon and its packet processes.
func (b *bed) processes() []int {
	return append([]int{b.Daemon().PID()}, children(b.Daemon().PID())...)
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
