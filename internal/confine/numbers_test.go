// SPDX-License-Identifier: Apache-2.0

package confine

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
)

// absentCall is the number of a call that an architecture does not have.
const absentCall = -1

// TestNumbers: the filter of a packet process decides system calls by the numbers of each
// architecture, which are written out here, from the kernel's tables. For the architecture that
// the test runs on the filter is run; for the other one, the numbers are those that the program is
// built with there.
func TestNumbers(t *testing.T) {
	f := program(PacketProcess(packetIoctls), 4711)
	numbers := map[string]map[string]int{"amd64": sysNumbers(t, "amd64"), "arm64": sysNumbers(t, "arm64")}
	for _, tt := range []struct {
		name         string
		amd64, arm64 int
		want         uint32
	}{
		{"READ", 0, 63, allow},
		{"WRITE", 1, 64, allow},
		{"READV", 19, 65, allow},
		{"WRITEV", 20, 66, allow},
		{"CLOSE", 3, 57, allow},
		{"FUTEX", 202, 98, allow},
		{"EPOLL_PWAIT", 281, 22, allow},
		{"EPOLL_WAIT", 232, absentCall, allow},
		{"EPOLL_CTL", 233, 21, allow},
		{"SENDMSG", 46, 211, allow},
		{"RECVMSG", 47, 212, allow},
		{"IO_URING_ENTER", 426, 426, allow},
		{"EXIT_GROUP", 231, 94, allow},
		{"OPENAT", 257, 56, denied},
		{"SOCKET", 41, 198, denied},
		{"CONNECT", 42, 203, denied},
		{"BIND", 49, 200, denied},
		{"UNLINKAT", 263, 35, denied},
		{"FTRUNCATE", 77, 46, denied},
		{"IO_URING_SETUP", 425, 425, denied},
		{"CLONE3", 435, 435, absent},
		{"EXECVE", 59, 221, kill},
		{"EXECVEAT", 322, 281, kill},
		{"FORK", 57, absentCall, kill},
		{"PTRACE", 101, 117, kill},
		{"PROCESS_VM_READV", 310, 270, kill},
		{"BPF", 321, 280, kill},
		{"MOUNT", 165, 40, kill},
		{"UNSHARE", 272, 97, kill},
		{"SETUID", 105, 146, kill},
		{"INIT_MODULE", 175, 105, kill},
		{"KEXEC_LOAD", 246, 104, kill},
		{"SECCOMP", 317, 277, kill},
	} {
		for goarch, want := range map[string]int{"amd64": tt.amd64, "arm64": tt.arm64} {
			got, ok := numbers[goarch][tt.name]
			if !ok {
				got = absentCall
			}
			if got != want {
				t.Errorf("%s on %s: number %d, want %d", tt.name, goarch, got, want)
			}
			if goarch != runtime.GOARCH || want == absentCall {
				continue
			}
			if got, _ := run(f, call(uintptr(want))); got != tt.want {
				t.Errorf("%s, number %d: %#x, want %#x", tt.name, want, got, tt.want)
			}
		}
	}
}

// sysNumbers reads the numbers of system calls for an architecture from the source of
// golang.org/x/sys that the program is built with.
func sysNumbers(t *testing.T, goarch string) map[string]int {
	t.Helper()
	dir, err := exec.Command("go", "list", "-f", "{{.Dir}}", "golang.org/x/sys/unix").Output()
	if err != nil {
		t.Skipf("no source of golang.org/x/sys: %v", err)
	}
	b, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), fmt.Sprintf("zsysnum_linux_%s.go", goarch)))
	if err != nil {
		t.Fatal(err)
	}
	numbers := map[string]int{}
	for _, m := range regexp.MustCompile(`SYS_(\w+)\s*=\s*(\d+)`).FindAllStringSubmatch(string(b), -1) {
		n, err := strconv.Atoi(m[2])
		if err != nil {
			t.Fatal(err)
		}
		numbers[m[1]] = n
	}
	return numbers
}
