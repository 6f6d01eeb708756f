// SPDX-License-Identifier: Apache-2.0

package blkplane

import (
	"testing"

	"golang.org/x/sys/unix"
)

// TestKeepThreads: the thread of a queue that has ended runs the next one.
func TestKeepThreads(t *testing.T) {
	p := NewPool(Options{KeepThreads: true})
	t.Cleanup(func() { close(p.idle) })
	tids := make(chan int)
	run := func() int {
		p.run(func() { tids <- unix.Gettid() })
		return <-tids
	}
	first := run()
	again := 0
	for range 100 {
		if run() == first { // unless the thread was not back yet
			again++
		}
	}
	if again == 0 {
		t.Errorf("no queue ran on thread %d again", first)
	}
}
