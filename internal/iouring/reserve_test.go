// SPDX-License-Identifier: Apache-2.0

package iouring

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestReserve: reserved rings work on the threads that take them, refuse operations that the
// package does not make, and end.
func TestReserve(t *testing.T) {
	if err := Supported(); errors.Is(err, ErrNotSupported) {
		t.Skip(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"=reserve:"+errnoArg(unix.EPERM))
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), "<nil>") {
		t.Fatalf("%v: %s", err, out)
	}
}

// opOpenat is IORING_OP_OPENAT.
const opOpenat = 18

// useReserved reserves two rings and one for disks, and tries them on threads of their own.
func useReserved(errno unix.Errno) error {
	if err := Reserve(Reservation{Rings: 2, Entries: 8, Asyncs: 1, AsyncEntries: 8}); err != nil {
		return err
	}
	if err := Reserve(Reservation{}); err == nil {
		return errors.New("reserved twice")
	}
	// Threads that exist now may make rings, but New must not try to.
	if err := denySetup(errno); err != nil {
		return err
	}
	for range 2 {
		if err := onThread(useReservedRing); err != nil {
			return err
		}
	}
	err := onThread(func() error {
		for range 3 { // a thread gets the ring that it has closed
			if err := useReservedAsync(); err != nil {
				return err
			}
		}
		if _, err := NewAsync(16); !errors.Is(err, ErrNotSupported) {
			return fmt.Errorf("a larger ring than it has closed: %w", err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := Supported(); err != nil {
		return err
	}
	if _, err := New(8); !errors.Is(err, ErrNotSupported) {
		return fmt.Errorf("one ring more: %w", err)
	}
	if _, err := NewAsync(8); !errors.Is(err, ErrNotSupported) {
		return fmt.Errorf("one ring for disks more: %w", err)
	}
	return nil
}

// onThread calls f on a thread that ends with it.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}

func useReservedRing() (err error) {
	if _, err := New(16); err == nil {
		return errors.New("a ring that is larger than the reserved ones")
	}
	r, err := New(8)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	mem, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := errors.Join(r.RegisterBuffers(mem), r.RegisterFiles(2), r.SetFile(0, p[0]), r.SetFile(1, p[1])); err != nil {
		return err
	}
	r.WriteFixed(0, address(mem), 100, 0, 1)
	r.Read(1, address(mem), 200, 2)
	r.queueFile(opOpenat, unix.AT_FDCWD, address(mem), 0, 3)
	if _, err := r.Submit(); err != nil {
		return err
	}
	want := map[uint64]int32{1: 100, 2: 100, 3: -int32(unix.EACCES)}
	var got [3]Completion
	if r.Completions(got[:]) != 3 {
		return errors.New("completions are missing")
	}
	for _, c := range got {
		if c.Res != want[c.User] {
			return fmt.Errorf("operation %d: %d, want %d", c.User, c.Res, want[c.User])
		}
	}
	if err := probeOpcodes(r.fd); !errors.Is(err, unix.EACCES) {
		return fmt.Errorf("a registration that is not allowed: %w", err)
	}
	return nil
}

func useReservedAsync() (err error) {
	a, err := NewAsync(4)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.Close()) }()
	fd, err := unix.Eventfd(1, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := errors.Join(a.RegisterFiles(1), a.SetWorkers(2), a.Poll(fd, unix.POLLIN, 7)); err != nil {
		return err
	}
	n, err := a.SubmitAndWait(1, time.Minute)
	var got [1]Completion
	if a.Completions(got[:]); err != nil || n != 1 || got[0].User != 7 {
		return fmt.Errorf("%d completions, %+v: %w", n, got, err)
	}
	return nil
}
