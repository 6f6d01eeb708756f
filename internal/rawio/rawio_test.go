// SPDX-License-Identifier: Apache-2.0

package rawio

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/iouring"
	"github.com/netbackd/netbackd/pkg/gntdev"
)

// seqpacket makes a pair of sockets that, like a TAP, take a packet per call. The first
// takes few packets before it fails with EAGAIN.
func seqpacket(t *testing.T) (a, b int) {
	t.Helper()
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(p[0]); unix.Close(p[1]) })
	if err := unix.SetsockoptInt(p[0], unix.SOL_SOCKET, unix.SO_SNDBUF, 8192); err != nil {
		t.Fatal(err)
	}
	return p[0], p[1]
}

func arena(t *testing.T, pages int) *gntdev.Arena {
	t.Helper()
	a, err := gntdev.NewArena(pages * 4096)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	return a
}

func results(calls []Call) (r []int32) {
	for i := range calls {
		r = append(r, calls[i].Res)
	}
	return r
}

func TestWriteThenRead(t *testing.T) {
	a, b := seqpacket(t)
	mem := arena(t, 2)
	var out, in []Call
	for i := range 5 {
		binary.NativeEndian.PutUint32(mem.Bytes()[64*i:], uint32(i))
		out = append(out, Call{Addr: mem.Addr(64 * i), Len: uint32(10 + i)})
		in = append(in, Call{Addr: mem.Addr(4096 + 64*i), Len: 12}, Call{Addr: mem.Addr(4096 + 64*i + 32), Len: 12})
	}
	out[2].Addr = 8 // not mapped
	All(unix.SYS_WRITE, a, out)
	if diff := cmp.Diff([]int32{10, 11, -int32(unix.EFAULT), 13, 14}, results(out)); diff != "" {
		t.Errorf("writes (-want +got):\n%s", diff)
	}
	in = in[:6]
	if n := Until(unix.SYS_READ, b, in, 12); n != 4 {
		t.Errorf("%d reads did not fail, want 4", n)
	}
	if diff := cmp.Diff([]int32{10, 11, 12, 12, -int32(unix.EAGAIN), 0}, results(in)); diff != "" {
		t.Errorf("reads (-want +got):\n%s", diff)
	}
	for k, want := range []uint32{0, 1, 3, 4} {
		if got := binary.NativeEndian.Uint32(mem.Bytes()[4096+32*k:]); got != want {
			t.Errorf("read %d brought packet %d, want %d", k, got, want)
		}
	}
}

func TestUntilTheEnd(t *testing.T) {
	a, b := seqpacket(t)
	mem := arena(t, 1)
	one := []Call{{Addr: mem.Addr(0), Len: 4}}
	All(unix.SYS_WRITE, a, one)
	if n := Until(unix.SYS_READ, b, one, 4); n != 1 || one[0].Res != 4 {
		t.Errorf("%d, %v; want all", n, one)
	}
	unix.Close(a)
	if n := Until(unix.SYS_READ, b, one, 4); n != 0 || one[0].Res != 0 {
		t.Errorf("behind the last packet: %d, %v", n, one)
	}
}

func TestUntilMoreThanMost(t *testing.T) {
	a, b := seqpacket(t)
	mem := arena(t, 1)
	var out, in []Call
	for i, n := range []uint32{5, 6, 7, 6} {
		out = append(out, Call{Addr: mem.Addr(64 * i), Len: n})
		in = append(in, Call{Addr: mem.Addr(1024 + 64*i), Len: 64})
	}
	All(unix.SYS_WRITE, a, out)
	if n := Until(unix.SYS_READ, b, in, 6); n != 3 {
		t.Errorf("%d reads, want 3", n)
	}
	if diff := cmp.Diff([]int32{5, 6, 7, 0}, results(in)); diff != "" {
		t.Errorf("reads (-want +got):\n%s", diff)
	}
	if n := Until(unix.SYS_READ, b, in[3:], 0); n != 1 || in[3].Res != 6 {
		t.Errorf("the last one: %d, %v", n, in[3])
	}
}

func TestWritev(t *testing.T) {
	a, b := seqpacket(t)
	mem := arena(t, 1)
	copy(mem.Bytes(), "headpayload")
	iov, err := iouring.NewIovecs(2)
	if err != nil {
		t.Fatal(err)
	}
	defer iov.Close()
	iov.Set(0, mem.Addr(4), 7)
	iov.Set(1, mem.Addr(0), 4)
	c := []Call{{Addr: iov.At(0), Len: 2}}
	All(unix.SYS_WRITEV, a, c)
	got := make([]byte, 20)
	n, err := unix.Read(b, got)
	if c[0].Res != 11 || err != nil || string(got[:n]) != "payloadhead" {
		t.Errorf("wrote %d, read %q, %v", c[0].Res, got[:max(n, 0)], err)
	}
}

func TestNothing(t *testing.T) {
	All(unix.SYS_WRITE, -1, nil)
	if n := Until(unix.SYS_READ, -1, nil, 1); n != 0 {
		t.Error(n)
	}
	c := make([]Call, 1)
	if All(unix.SYS_WRITE, -1, c); !errors.Is(unix.Errno(-c[0].Res), unix.EBADF) {
		t.Error(c[0].Res)
	}
}
