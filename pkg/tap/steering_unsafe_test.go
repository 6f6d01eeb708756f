// SPDX-License-Identifier: Apache-2.0

package tap

import (
	"encoding/binary"
	"runtime"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// steerTo makes the host send all frames to the queue that the kernel knows by
// number k, with a program of two instructions.
func steerTo(t *testing.T, d *Device, k int) {
	t.Helper()
	insns := make([]byte, 16)
	insns[0] = unix.BPF_ALU64 | unix.BPF_MOV | unix.BPF_K // r0 = k
	binary.NativeEndian.PutUint32(insns[4:], uint32(k))
	insns[8] = unix.BPF_JMP | unix.BPF_EXIT
	license := []byte("Dual BSD/GPL\x00")
	// The first members of union bpf_attr for BPF_PROG_LOAD.
	attr := struct {
		progType, insnCnt uint32
		insns, license    unsafe.Pointer
	}{unix.BPF_PROG_TYPE_SOCKET_FILTER, 2, unsafe.Pointer(&insns[0]), unsafe.Pointer(&license[0])}
	fd, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_LOAD, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	runtime.KeepAlive(insns)
	runtime.KeepAlive(license)
	if errno != 0 {
		t.Skipf("bpf(2): %v", errno)
	}
	defer func() { must(t, unix.Close(int(fd))) }()
	must(t, d.SetSteering(int(fd)))
}
