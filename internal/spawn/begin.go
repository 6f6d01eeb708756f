// SPDX-License-Identifier: Apache-2.0

package spawn

import (
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/logsink"
)

// stderr is the descriptor of the log.
const stderr = 2

// Limits bound a child.
type Limits struct {
	Files    uint64 // open files; 0: as many as its parent
	FileSize uint64 // bytes that a file may reach by writes; 0: as its parent
	Tasks    uint64 // threads of all processes of its user, beyond which it starts none; 0: as its parent

	// Dumpable leaves the memory of the process open to others of its user. The embedded Xen
	// needs this where it does not run as root.
	Dumpable bool
}

// Begin makes the process what Start has promised, and returns its socket. The log never
// blocks from then on. The process ignores the signals that end a daemon: it ends when its
// socket does.
func Begin(l Limits) (socket int, err error) {
	logsink.Unblock(stderr) // needs /proc/self/fd, so it comes first
	yieldMemory()
	signal.Ignore(unix.SIGPIPE, unix.SIGHUP, unix.SIGINT, unix.SIGTERM, unix.SIGTTOU, unix.SIGXFSZ)
	if err := bare(); err != nil {
		return -1, err
	}
	kind, err := unix.GetsockoptInt(socketFile, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil || kind != unix.SOCK_SEQPACKET {
		return -1, ErrNotSpawned
	}
	unix.CloseOnExec(socketFile)
	if !l.Dumpable {
		if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
			return -1, fmt.Errorf("not dumpable: %w", err)
		}
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return -1, fmt.Errorf("no core dumps: %w", err)
	}
	if l.FileSize != 0 {
		if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: l.FileSize, Max: l.FileSize}); err != nil {
			return -1, fmt.Errorf("limit of the size of files: %w", err)
		}
	}
	if l.Tasks != 0 {
		if err := lower(unix.RLIMIT_NPROC, l.Tasks); err != nil {
			return -1, fmt.Errorf("limit of threads: %w", err)
		}
	}
	return socketFile, limitFiles(l.Files)
}

// lower sets both limits on a resource to n, or to the hard limit if that is lower.
func lower(resource int, n uint64) error {
	var l unix.Rlimit
	if err := unix.Getrlimit(resource, &l); err != nil {
		return err
	}
	n = min(n, l.Max)
	return unix.Setrlimit(resource, &unix.Rlimit{Cur: n, Max: n})
}

// oomStep is the distance to the parent in the order in which the kernel ends processes when
// memory is short (oom_score_adj, of 1000).
const oomStep = 300

// yieldMemory makes the kernel end this process before its parent when memory is short: a
// process that was taken over must not be able to have the daemon or others ended.
func yieldMemory() {
	const path = "/proc/self/oom_score_adj"
	b, err := os.ReadFile(path)
	if err != nil {
		return // the kernel goes by size alone
	}
	if n, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil {
		_ = os.WriteFile(path, []byte(strconv.Itoa(min(n+oomStep, 1000))), 0) // raising it needs no right
	}
}

// limitFiles sets both limits on open files to the number, or to the hard limit if that is
// lower.
func limitFiles(files uint64) error {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return fmt.Errorf("limit of open files: %w", err)
	}
	if files != 0 {
		l.Max = min(files, l.Max)
	}
	l.Cur = l.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return fmt.Errorf("limit of open files: %w", err)
	}
	return nil
}
