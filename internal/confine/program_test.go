// SPDX-License-Identifier: Apache-2.0

package confine

import (
	"fmt"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// data is struct seccomp_data as words.
type data map[uint32]uint32

func call(nr uintptr, args ...uint64) data {
	d := data{offNumber: uint32(nr), offArch: arch}
	for i, a := range args {
		off := uint32(offArgs + argSize*i)
		d[off], d[off+high] = uint32(a), uint32(a>>32)
	}
	return d
}

// run runs a filter as the kernel does. It panics on instructions that the package does not
// use, and at a jump beyond the end.
func run(f []unix.SockFilter, d data) (result uint32, steps int) {
	var a uint32
	for pc := 0; ; steps++ {
		i := f[pc]
		pc++
		jump := func(ok bool) {
			if ok {
				pc += int(i.Jt)
			} else {
				pc += int(i.Jf)
			}
		}
		switch i.Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			a = d[i.K]
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			jump(a == i.K)
		case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
			jump(a >= i.K)
		case unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K:
			jump(a&i.K != 0)
		case unix.BPF_RET | unix.BPF_K:
			return i.K, steps + 1
		default:
			panic(fmt.Sprintf("instruction %+v", i))
		}
	}
}

// TestProgram: what the filter of a packet process decides, on each architecture.
func TestProgram(t *testing.T) {
	const pid, other = 4711, 4712
	const threadFlags = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_SYSVSEM | unix.CLONE_THREAD
	f := program(PacketProcess(packetIoctls), pid)
	for _, tt := range []struct {
		name string
		call data
		want uint32
	}{
		{"read", call(unix.SYS_READ), allow},
		{"epoll_pwait", call(unix.SYS_EPOLL_PWAIT), allow},
		{"exit_group", call(unix.SYS_EXIT_GROUP), allow},
		{"grant copy", call(unix.SYS_IOCTL, 3, 0x104708), allow},
		{"grant copy, upper half ignored by the kernel", call(unix.SYS_IOCTL, 3, 1<<32|0x104708), allow},
		{"notify", call(unix.SYS_IOCTL, 3, 0x44504), allow},
		{"restrict", call(unix.SYS_IOCTL, 3, 0x24506), denied},
		{"unbound port", call(unix.SYS_IOCTL, 3, 0x44502), denied},
		{"virq", call(unix.SYS_IOCTL, 3, 0x44500), denied},
		{"interface of a TAP", call(unix.SYS_IOCTL, 3, unix.TUNSETIFF), denied},
		{"input of a terminal", call(unix.SYS_IOCTL, 2, unix.TIOCSTI), denied},
		{"memory", call(unix.SYS_MMAP, 0, 4096, unix.PROT_READ|unix.PROT_WRITE), allow},
		{"memory with code", call(unix.SYS_MMAP, 0, 4096, unix.PROT_READ|unix.PROT_EXEC), denied},
		{"memory becomes code", call(unix.SYS_MPROTECT, 0, 4096, unix.PROT_EXEC), denied},
		{"thread", call(unix.SYS_CLONE, threadFlags), allow},
		{"fork", call(unix.SYS_CLONE, uint64(unix.SIGCHLD)), denied},
		{"user namespace", call(unix.SYS_CLONE, threadFlags|unix.CLONE_NEWUSER), denied},
		{"clone3", call(unix.SYS_CLONE3), absent},
		{"own signal", call(unix.SYS_TGKILL, pid, 1, 6), allow},
		{"signal to another", call(unix.SYS_TGKILL, other, other, 9), denied},
		{"kill itself", call(unix.SYS_KILL, pid, 6), allow},
		{"kill another", call(unix.SYS_KILL, other, 9), denied},
		{"kill all", call(unix.SYS_KILL, 0xffffffff, 9), denied},
		{"file flags", call(unix.SYS_FCNTL, 3, unix.F_SETFL), allow},
		{"owner of signals", call(unix.SYS_FCNTL, 3, unix.F_SETOWN), denied},
		{"read a limit", call(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_NICE, 0, 1<<40), allow},
		{"set a limit", call(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_NICE, 1<<40, 0), denied},
		{"limit of another", call(unix.SYS_PRLIMIT64, other, unix.RLIMIT_NICE, 0, 1<<40), denied},
		{"own class", call(unix.SYS_SCHED_SETATTR, 0, 1<<40), allow},
		{"class of another", call(unix.SYS_SCHED_SETATTR, other, 1<<40), denied},
		{"be dumpable", call(unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 1), denied},
		{"register buffers", call(unix.SYS_IO_URING_REGISTER, 3, 0), allow},
		{"register a restriction", call(unix.SYS_IO_URING_REGISTER, 3, 11), denied},
		{"open", call(unix.SYS_OPENAT), denied},
		{"socket", call(unix.SYS_SOCKET), denied},
		{"connect", call(unix.SYS_CONNECT), denied},
		{"io_uring_setup", call(unix.SYS_IO_URING_SETUP), denied},
		{"a call of the future", call(9999), denied},
		{"execve", call(unix.SYS_EXECVE), kill},
		{"ptrace", call(unix.SYS_PTRACE), kill},
		{"process_vm_writev", call(unix.SYS_PROCESS_VM_WRITEV), kill},
		{"bpf", call(unix.SYS_BPF), kill},
		{"mount", call(unix.SYS_MOUNT), kill},
		{"setuid", call(unix.SYS_SETUID), kill},
		{"another architecture", data{offNumber: unix.SYS_READ, offArch: unix.AUDIT_ARCH_I386}, kill},
	} {
		if got, _ := run(f, tt.call); got != tt.want {
			t.Errorf("%s: %#x, want %#x", tt.name, got, tt.want)
		}
	}
	if otherABI != 0 {
		if got, _ := run(f, call(otherABI|unix.SYS_READ)); got != kill {
			t.Errorf("x32: %#x", got)
		}
	}
	for _, nr := range killed {
		if got, _ := run(f, call(nr)); got != kill {
			t.Errorf("call %d: %#x, want kill", nr, got)
		}
	}
	if len(f) > 4096 {
		t.Errorf("the filter has %d instructions, the kernel takes 4096", len(f))
	}
	if _, steps := run(f, call(unix.SYS_IOCTL, 3, 0x104708)); steps > 10 {
		t.Errorf("a grant copy takes %d instructions", steps)
	}
}

// TestVhostUser: what the filter of a device of vhost-user decides.
func TestVhostUser(t *testing.T) {
	listens := program(VhostUser(packetIoctls, false, false), 4711)
	all := program(VhostUser(packetIoctls, true, true), 4711)
	for _, tt := range []struct {
		name          string
		call          data
		listens, both uint32
	}{
		{"accept a front end", call(unix.SYS_ACCEPT4), allow, allow},
		{"connect to one", call(unix.SYS_CONNECT), denied, allow},
		{"steering program", call(unix.SYS_BPF), kill, allow},
		{"read a file", call(unix.SYS_OPENAT, 0, 0, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_DIRECTORY), allow, allow},
		{"write a file", call(unix.SYS_OPENAT, 0, 0, unix.O_WRONLY), denied, denied},
		{"change a file", call(unix.SYS_OPENAT, 0, 0, unix.O_RDWR), denied, denied},
		{"make a file", call(unix.SYS_OPENAT, 0, 0, unix.O_CREAT), denied, denied},
		{"make a file without a name", call(unix.SYS_OPENAT, 0, 0, unix.O_TMPFILE), denied, denied},
		{"unix socket", call(unix.SYS_SOCKET, unix.AF_UNIX), allow, allow},
		{"netlink", call(unix.SYS_SOCKET, unix.AF_NETLINK), allow, allow},
		{"internet socket", call(unix.SYS_SOCKET, unix.AF_INET), denied, denied},
		{"packet socket", call(unix.SYS_SOCKET, unix.AF_PACKET), denied, denied},
		{"another interface by a queue", call(unix.SYS_IOCTL, 3, unix.TUNSETIFF), denied, denied},
		{"namespace", call(unix.SYS_SETNS), denied, denied},
		{"io_uring_setup", call(unix.SYS_IO_URING_SETUP), denied, denied},
		{"code", call(unix.SYS_MMAP, 0, 4096, unix.PROT_EXEC), denied, denied},
		{"execve", call(unix.SYS_EXECVE), kill, kill},
		{"ptrace", call(unix.SYS_PTRACE), kill, kill},
		{"mount", call(unix.SYS_MOUNT), kill, kill},
	} {
		if got, _ := run(listens, tt.call); got != tt.listens {
			t.Errorf("%s: %#x, want %#x", tt.name, got, tt.listens)
		}
		if got, _ := run(all, tt.call); got != tt.both {
			t.Errorf("%s, connects and steers: %#x, want %#x", tt.name, got, tt.both)
		}
	}
}

// TestDisks: what the filter of a daemon of disks decides.
func TestDisks(t *testing.T) {
	f := program(Disks(), 4711)
	for _, tt := range []struct {
		name string
		call data
		want uint32
	}{
		{"open", call(unix.SYS_OPENAT, 0, 0, unix.O_RDWR|unix.O_CREAT), allow},
		{"discard", call(unix.SYS_IOCTL, 3, unix.BLKDISCARD), allow},
		{"io_uring_setup", call(unix.SYS_IO_URING_SETUP), allow},
		{"unix socket", call(unix.SYS_SOCKET, unix.AF_UNIX), allow},
		{"internet socket", call(unix.SYS_SOCKET, unix.AF_INET), denied},
		{"code", call(unix.SYS_MMAP, 0, 4096, unix.PROT_EXEC), denied},
		{"fork", call(unix.SYS_CLONE, uint64(unix.SIGCHLD)), denied},
		{"kill another", call(unix.SYS_KILL, 1, 9), denied},
		{"execve", call(unix.SYS_EXECVE), kill},
		{"ptrace", call(unix.SYS_PTRACE), kill},
		{"mount", call(unix.SYS_MOUNT), kill},
	} {
		if got, _ := run(f, tt.call); got != tt.want {
			t.Errorf("%s: %#x, want %#x", tt.name, got, tt.want)
		}
	}
}

// TestNoRuleTwice: a later rule for the same call would have no effect.
func TestNoRuleTwice(t *testing.T) {
	seen := map[uintptr]bool{}
	p := VhostUser(packetIoctls, true, false) // with BPF a kill comes later, on purpose
	p.Refused = nil                           // the same
	for _, nr := range slices.Concat(p.calls(), killed, []uintptr{unix.SYS_OPENAT, unix.SYS_SOCKET, unix.SYS_PKEY_MPROTECT, unix.SYS_IOCTL, unix.SYS_MMAP, unix.SYS_MPROTECT,
		unix.SYS_CLONE, unix.SYS_CLONE3, unix.SYS_TGKILL, unix.SYS_KILL, unix.SYS_FCNTL, unix.SYS_PRCTL, unix.SYS_PRLIMIT64,
		unix.SYS_SCHED_SETATTR, unix.SYS_SCHED_GETATTR, unix.SYS_SCHED_GETAFFINITY, unix.SYS_IO_URING_REGISTER}) {
		if seen[nr] {
			t.Errorf("call %d is decided twice", nr)
		}
		seen[nr] = true
	}
}
