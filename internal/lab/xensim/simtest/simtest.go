// SPDX-License-Identifier: Apache-2.0

// Package simtest runs an embedded Xen inside a test's process. It only starts and ends
// one.
package simtest

import (
	"context"
	"testing"

	"github.com/netbackd/netbackd/internal/lab/xensim"
)

// Start starts an embedded Xen and returns its directory. The Xen ends with the test,
// after all cleanups that are registered later.
func Start(t testing.TB) (dir string) {
	t.Helper()
	dir = t.TempDir()
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- xensim.Run(ctx, dir, xensim.Options{Ready: func() { close(ready) }}) }()
	select {
	case <-ready:
	case err := <-ended:
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return dir
}
