// SPDX-License-Identifier: Apache-2.0

package confine

import "golang.org/x/sys/unix"

// Results of a filter.
const (
	allow  = uint32(unix.SECCOMP_RET_ALLOW)
	kill   = uint32(unix.SECCOMP_RET_KILL_PROCESS)
	denied = uint32(unix.SECCOMP_RET_ERRNO) | uint32(unix.EPERM)
	absent = uint32(unix.SECCOMP_RET_ERRNO) | uint32(unix.ENOSYS)
)

// Offsets in struct seccomp_data. Both architectures are little-endian.
const (
	offNumber = 0
	offArch   = 4
	offArgs   = 16
	argSize   = 8
	high      = 4 // of the upper half of an argument
)

func load(off uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: off}
}

func ret(result uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: result}
}

// unless skips n instructions if the loaded word is not k.
func unless(k uint32, n int) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: k, Jf: uint8(n)}
}

// ifSet skips an instruction if the loaded word has none of the bits.
func ifSet(bits uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, K: bits, Jf: 1}
}

// ifNot skips n instructions if the loaded word is k.
func ifNot(k uint32, n int) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: k, Jt: uint8(n)}
}

// ifFrom skips n instructions if the loaded word is below k.
func ifFrom(k uint32, n int) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, K: k, Jf: uint8(n)}
}

// rule decides a system call: it is the end of a filter for it.
type rule []unix.SockFilter

// oneOf allows a call whose argument arg, of 32 bits, is one of values.
func oneOf(arg int, values ...uint32) rule {
	r := rule{load(offArgs + uint32(arg)*argSize)}
	for _, v := range values {
		r = append(r, unless(v, 1), ret(allow))
	}
	return append(r, ret(denied))
}

// without allows a call whose third argument, of 32 bits, has none of the bits.
func without(bits uint32) rule {
	return rule{load(offArgs + 2*argSize), ifSet(bits), ret(denied), ret(allow)}
}

// zero allows a call whose arguments, of 64 bits, are 0.
func zero(args ...int) rule {
	var r rule
	for _, a := range args {
		for _, half := range []uint32{0, high} {
			r = append(r, load(offArgs+uint32(a)*argSize+half), ifSet(^uint32(0)), ret(denied))
		}
	}
	return append(r, ret(allow))
}

// thread allows clone(2) with flags that make a thread of this process.
func thread() rule {
	const others = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC |
		unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_PTRACE
	return rule{
		load(offArgs), ifSet(others), ret(denied),
		ifSet(unix.CLONE_THREAD), ret(allow), ret(denied),
	}
}

// program builds the filter for a process with the number pid.
func program(p Policy, pid uint32) []unix.SockFilter {
	f := []unix.SockFilter{load(offArch), ifNot(arch, 1), ret(kill), load(offNumber)}
	if otherABI != 0 {
		f = append(f, ifFrom(otherABI, 1), ret(kill))
	}
	decide := func(call uintptr, r rule) {
		f = append(append(f, unless(uint32(call), len(r))), r...)
	}
	if !p.Rest {
		decide(unix.SYS_IOCTL, oneOf(1, p.Ioctls...))
	}
	for _, call := range p.calls() {
		decide(call, rule{ret(allow)})
	}
	const exec = unix.PROT_EXEC
	decide(unix.SYS_MMAP, without(exec))
	decide(unix.SYS_MPROTECT, without(exec))
	decide(unix.SYS_PKEY_MPROTECT, without(exec))
	decide(unix.SYS_CLONE, thread())
	decide(unix.SYS_CLONE3, rule{ret(absent)})
	decide(unix.SYS_TGKILL, oneOf(0, pid))
	decide(unix.SYS_KILL, oneOf(0, pid))
	decide(unix.SYS_SOCKET, oneOf(0, p.Sockets...))
	if p.ReadFiles {
		decide(unix.SYS_OPENAT, without(unix.O_WRONLY|unix.O_RDWR|unix.O_CREAT|unix.O_TRUNC|unix.O_TMPFILE&^unix.O_DIRECTORY))
	}
	for _, call := range p.Refused {
		decide(call, rule{ret(denied)})
	}
	for _, call := range killed {
		decide(call, rule{ret(kill)})
	}
	if p.Rest {
		return append(f, ret(allow))
	}
	decide(unix.SYS_FCNTL, oneOf(1, append([]uint32{unix.F_GETFD, unix.F_SETFD, unix.F_GETFL, unix.F_SETFL, unix.F_DUPFD_CLOEXEC}, p.Fcntls...)...))
	decide(unix.SYS_PRCTL, oneOf(0, unix.PR_SET_VMA, unix.PR_SET_NAME))
	decide(unix.SYS_PRLIMIT64, zero(0, 2)) // reads a limit of this process
	decide(unix.SYS_SCHED_SETATTR, zero(0))
	decide(unix.SYS_SCHED_GETATTR, zero(0))
	decide(unix.SYS_SCHED_GETAFFINITY, zero(0))
	decide(unix.SYS_IO_URING_REGISTER, oneOf(1, p.Registrations...))
	return append(f, ret(denied))
}
