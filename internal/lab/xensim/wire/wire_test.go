// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/fuzzloop"
)

func TestHello(t *testing.T) {
	want := Hello{Kind: KindGntdev, Domid: 0x7fef, Probe: 1 << 45, File: 7}
	msg := AppendHello(nil, want)
	if len(msg) != HelloSize {
		t.Errorf("%d bytes, want %d", len(msg), HelloSize)
	}
	got, err := ParseHello(msg)
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	for n := range msg {
		if _, err := ParseHello(msg[:n]); err == nil {
			t.Errorf("%d bytes of it are accepted", n)
		}
	}
	if _, err := ParseHello(append(msg, 0)); !errors.Is(err, ErrMessage) {
		t.Errorf("one byte more: %v, want ErrMessage", err)
	}
}

func FuzzParseHello(f *testing.F) {
	f.Add(AppendHello(nil, Hello{Kind: KindEvtchn, Domid: 3}))
	f.Add([]byte{})
	fuzzloop.Fuzz(f, func(t *testing.T, msg []byte) {
		h, err := ParseHello(msg)
		if err == nil && !bytes.Equal(AppendHello(nil, h), msg) {
			t.Errorf("%+v is not all of %x", h, msg)
		}
	})
}

func TestReaderSaysWhenItWasShort(t *testing.T) {
	r := NewReader(AppendU32(nil, 1))
	if r.U64() != 0 || r.U32() != 0 || r.Done() == nil {
		t.Error("read 12 bytes out of 4")
	}
	r = NewReader(AppendU64(AppendU32(nil, 7), 1<<40))
	if a, b := r.U32(), r.U64(); a != 7 || b != 1<<40 || r.Done() != nil {
		t.Errorf("read %d, %d", a, b)
	}
	r = NewReader([]byte{1, 2})
	if r.Done() == nil {
		t.Error("two bytes unread are fine")
	}
	if !bytes.Equal(r.Rest(), []byte{1, 2}) || r.Done() != nil {
		t.Error("the rest is not all there was")
	}
}

func TestParseCopyReply(t *testing.T) {
	msg := append(AppendErrno(nil, 0), 0xfd, 0xff, 0, 0)
	errno, status, ok := ParseCopyReply(msg, 2)
	if errno != 0 || !ok || !bytes.Equal(status, []byte{0xfd, 0xff, 0, 0}) {
		t.Errorf("%v %v %v", errno, status, ok)
	}
	if _, _, ok := ParseCopyReply(msg, 3); ok {
		t.Error("two statuses for three segments are fine")
	}
	if errno, _, ok := ParseCopyReply(AppendErrno(nil, unix.EFAULT), 2); errno != unix.EFAULT || !ok {
		t.Errorf("%v %v, want EFAULT", errno, ok)
	}
	if _, _, ok := ParseCopyReply(nil, 0); ok {
		t.Error("an empty reply is fine")
	}
}

// TestLimits: the largest messages fit.
func TestLimits(t *testing.T) {
	for name, n := range map[string]int{
		"map":      8 + 4*MaxRefs,
		"mmapped":  12 + 4*MaxRefs,
		"alloced":  12 + 8*MaxRefs,
		"copy":     8 + 24*MaxSegments,
		"unmask":   4 + 4*MaxUnmask,
		"statuses": 4 + 2*MaxSegments,
	} {
		if n > MaxMessage {
			t.Errorf("%s: %d bytes, the most are %d", name, n, MaxMessage)
		}
	}
	full := ^uint64(0)
	info := DomainInfo{Domid: 0xffff, Name: string(make([]byte, MaxName)), Paused: true, Shutdown: true, Dying: true,
		Pages: -1 << 62, GrantFrames: -1 << 62, GrantsInUse: -1 << 62, Pins: -1 << 62, Maps: -1 << 62, Ports: -1 << 62, Interdomain: -1 << 62,
		Counters: Counters{full, full, full, full, full, full, full, full, full, full, full, full, full, full, full, full}}
	b, err := json.Marshal(info)
	if err != nil {
		t.Fatal(err)
	}
	if n := 4 + MaxListed*(len(b)+1); n > MaxMessage {
		t.Errorf("list: %d bytes, the most are %d", n, MaxMessage)
	}
}

func pair(t *testing.T) (a, b int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unix.Close(fds[0])
		unix.Close(fds[1])
	})
	return fds[0], fds[1]
}

func TestLargestMessagePasses(t *testing.T) {
	a, b := pair(t)
	msg := bytes.Repeat([]byte{42}, MaxMessage)
	if err := Send(a, msg); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, MaxMessage)
	if n, err := Receive(b, buf); n != MaxMessage || err != nil || !bytes.Equal(buf, msg) {
		t.Errorf("%d bytes, %v", n, err)
	}
	if err := Send(a, append(msg, 0)); err != unix.EMSGSIZE {
		t.Errorf("one byte more: %v, want EMSGSIZE", err)
	}
}

func TestFilesTravel(t *testing.T) {
	a, b := pair(t)
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := Send(a, []byte("with"), int(f.Fd())); err != nil {
		t.Fatal(err)
	}
	if err := Send(a, []byte("none")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 16)
	n, fd, err := ReceiveFile(b, buf)
	if n != 4 || fd < 0 || err != nil {
		t.Fatalf("%d bytes, file %d, %v", n, fd, err)
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	if err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("close-on-exec is not set: %#x, %v", flags, err)
	}
	unix.Close(fd)
	if n, fd, err := ReceiveFile(b, buf); n != 4 || fd != -1 || err != nil {
		t.Errorf("%d bytes, file %d, %v; want no file", n, fd, err)
	}
}

func TestEndOfTheOtherSide(t *testing.T) {
	a, b := pair(t)
	if err := unix.Shutdown(b, unix.SHUT_RDWR); err != nil {
		t.Fatal(err)
	}
	if err := Send(a, []byte("x")); err != io.EOF {
		t.Errorf("send: %v, want EOF", err)
	}
	if err := Send(a, []byte("x"), a); err != io.EOF {
		t.Errorf("send with a file: %v, want EOF", err)
	}
	if _, err := Receive(a, make([]byte, 1)); err != io.EOF {
		t.Errorf("receive: %v, want EOF", err)
	}
	if _, _, err := ReceiveFile(a, make([]byte, 1)); err != io.EOF {
		t.Errorf("receive with a file: %v, want EOF", err)
	}
}
