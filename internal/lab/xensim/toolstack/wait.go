// SPDX-License-Identifier: Apache-2.0

package toolstack

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// atoi parses as C's atoi does: the number at the start of s, 0 if there is none.
func atoi(s string) int {
	n := 0
	for _, c := range strings.TrimLeft(s, " \t\n\v\f\r") {
		if c < '0' || c > '9' || n > 1<<24 {
			break
		}
		n = n*10 + int(c-'0')
	}
	return n
}

// waitState implements libxl__ev_devstate_wait: it returns when it reads the wanted state
// of the backend. It may miss a state that the backend leaves quickly.
func (t *Toolstack) waitState(ctx context.Context, d device, want xenbus.State, limit time.Duration) (time.Duration, error) {
	start := time.Now()
	err := t.sawState(ctx, d.backendPath()+"/state", want, limit)
	return time.Since(start), err
}

func (t *Toolstack) sawState(ctx context.Context, path string, want xenbus.State, limit time.Duration) (err error) {
	w, err := t.xs.Watch(ctx, path)
	if err != nil {
		return err
	}
	defer w.Close()
	timeout := time.NewTimer(limit)
	defer timeout.Stop()
	got := ""
	for {
		select {
		case _, open := <-w.C():
			if !open {
				return t.xs.Err()
			}
		case <-timeout.C:
			return fmt.Errorf("state is %q, not %v, after %v: %w", got, want, limit, ErrTimeout)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		got, err = t.xs.Read(ctx, path)
		switch {
		case errors.Is(err, xenstore.ErrNotExist):
			return ErrRemoved
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			return err
		case atoi(got) == int(want):
			return nil
		}
	}
}
