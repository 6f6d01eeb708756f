// SPDX-License-Identifier: Apache-2.0

package device

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// TestApart: f has ended when Apart returns, a fault in it is a panic that it can recover
// from, and it may end its goroutine.
func TestApart(t *testing.T) {
	mem, err := unix.Mmap(-1, 0, 4096, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(mem) }()
	var fault any
	Apart(func() {
		defer func() { fault = recover() }()
		mem[0] = 1
	})
	if _, is := fault.(runtime.Error); !is {
		t.Errorf("a fault is %v", fault)
	}
	ran := false
	Apart(func() {
		defer func() { ran = true }()
		runtime.Goexit()
	})
	if !ran {
		t.Error("Apart did not wait")
	}
}
