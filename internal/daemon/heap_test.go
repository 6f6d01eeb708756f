// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"runtime/debug"
	"testing"
	"time"
)

// kept keeps the garbage of TestHeap from being optimised away.
var kept []byte

// TestHeap: a heap at rest is not collected by time. It is collected when it grows, goes back
// to collections in proportion, and rests again.
func TestHeap(t *testing.T) {
	percent := debug.SetGCPercent(100)
	defer debug.SetGCPercent(percent)
	limit := debug.SetMemoryLimit(-1)
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	h := newHeap(nil)
	h.quiet = 50 * time.Millisecond
	go func() { defer close(ended); h.watch(ctx) }()
	defer func() {
		stop()
		<-ended
		if got := debug.SetMemoryLimit(limit); got != limit {
			t.Errorf("memory limit %d after the end, %d before", got, limit)
		}
	}()
	await := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("waited in vain for %s", what)
			}
		}
	}
	rests := func() bool { return debug.SetMemoryLimit(-1) < limit }
	for range 2 {
		await("the heap to rest", rests)
		before := collections()
		for range 4 * restingRoom / 4096 {
			kept = make([]byte, 4096)
		}
		if collections() == before {
			t.Error("a heap that grows is not collected")
		}
		await("the heap to wake", func() bool { return !rests() })
	}
}

// beside keeps small objects from being optimised away, and in use.
var beside [64]*int64

// TestHeapWakesBesideSmallObjects: small objects that were made after the rest began, and stay in
// use, do not keep the heap from waking.
func TestHeapWakesBesideSmallObjects(t *testing.T) {
	percent, limit := debug.SetGCPercent(100), debug.SetMemoryLimit(-1)
	defer debug.SetGCPercent(percent)
	defer debug.SetMemoryLimit(limit)
	h := newHeap(nil)
	h.rest()
	for i := range beside {
		beside[i] = new(int64)
	}
	for range 4 * restingRoom / 4096 {
		kept = make([]byte, 4096)
	}
	select {
	case <-h.woken:
	case <-time.After(10 * time.Second):
		t.Error("the heap has grown, and was not told to wake")
	}
}
