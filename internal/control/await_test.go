// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// awaiting starts Await. What it returns checks that Await has not returned yet.
func awaiting(t *testing.T, path string) (result <-chan error, waits func()) {
	t.Helper()
	c := NewClient(testProgram, path)
	done := make(chan error, 1)
	go func() { done <- c.Await(t.Context()) }()
	return done, func() {
		t.Helper()
		select {
		case err := <-done:
			t.Errorf("nothing listens, and Await returned %v", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func TestAwait(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	path := filepath.Join(dir, "control.sock")
	result, waits := awaiting(t, path)
	waits()
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	waits()
	// What a killed daemon has left is no daemon.
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	// As Listen does it: the socket is made before a process listens.
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	again, _ := awaiting(t, path)
	for _, r := range []<-chan error{result, again} {
		if err := <-r; err != nil {
			t.Error(err)
		}
	}
	if err := dead.Close(); err != nil {
		t.Fatal(err)
	}
	result, waits = awaiting(t, path)
	waits()
	l, err := Listen(testProgram, path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if err := <-result; err != nil {
		t.Error(err)
	}
}

func TestAwaitFails(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := NewClient(testProgram, filepath.Join(t.TempDir(), "control.sock")).Await(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("without a daemon: %v", err)
	}
	if err := NewClient(testProgram, filepath.Join(t.TempDir(), "no", "run", "control.sock")).Await(t.Context()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a directory: %v", err)
	}
}
