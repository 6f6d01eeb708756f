// SPDX-License-Identifier: Apache-2.0

// Package simtest runs an embedded Xen inside of a test's process. It knows how to
// start and end one, and must not know what a test does with it.
package simtest

import (
	"context"
	"testing"

	"github.com/netbackd/netbackd/internal/lab/xensim"
)

// Start starts an embedded Xen and returns its directory. It ends with the test,
// behind all that is cleaned up later.
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
