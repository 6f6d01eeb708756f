// SPDX-License-Identifier: Apache-2.0

package systrace

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// env tells a program the descriptor of its tracer's socket, and the numbers of the calls
// to report.
const env = "NETBACKD_SYSTRACE"

// Enter makes the program a traced one if a [Tracer] has started it, and returns at once
// otherwise. A program calls it before it does anything else.
func Enter() {
	v := os.Getenv(env)
	if v == "" {
		return
	}
	if err := enter(v); err != nil {
		fmt.Fprintln(os.Stderr, "system call tracer:", err)
		os.Exit(1)
	}
}

// enter installs the filter, hands its listener to the tracer, and executes the program
// again. The filter is the calling thread's, so another thread can send the listener.
func enter(v string) error {
	sock, numbers, err := parse(v)
	if err != nil {
		return err
	}
	if err := os.Unsetenv(env); err != nil {
		return err
	}
	unix.CloseOnExec(sock)
	runtime.LockOSThread()
	listener, err := listen(numbers)
	if err != nil {
		return err
	}
	sent := make(chan error)
	go func() { sent <- unix.Sendmsg(sock, []byte{0}, unix.UnixRights(listener), nil, 0) }()
	if err := <-sent; err != nil {
		return err
	}
	return syscall.Exec("/proc/self/exe", os.Args, os.Environ())
}

// format returns the value of env.
func format(sock int, numbers []int) string {
	words := make([]string, 0, 1+len(numbers))
	for _, n := range append([]int{sock}, numbers...) {
		words = append(words, strconv.Itoa(n))
	}
	return strings.Join(words, ",")
}

func parse(v string) (sock int, numbers []int, err error) {
	for _, w := range strings.Split(v, ",") {
		n, err := strconv.Atoi(w)
		if err != nil {
			return 0, nil, err
		}
		numbers = append(numbers, n)
	}
	return numbers[0], numbers[1:], nil
}

// filter returns a program that reports the calls of these numbers and allows all others.
func filter(numbers []int) []unix.SockFilter {
	f := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}} // seccomp_data.nr
	for _, n := range numbers {
		f = append(f,
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(n), Jf: 1},
			unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_USER_NOTIF})
	}
	return append(f, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW})
}
