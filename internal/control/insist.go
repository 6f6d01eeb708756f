// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"time"
)

const (
	// restartTimeout bounds the absence of a daemon that ends before it answers.
	restartTimeout = 10 * time.Second

	// restartTries bounds the requests to a daemon that listens and does not answer.
	restartTries = 8
)

// Awaiter waits for a daemon. *Client is one.
type Awaiter interface {
	Await(ctx context.Context) error
}

// Insist calls do, which makes a request that may be repeated. If the daemon ends before it
// answers, and a service manager starts it again, Insist calls do again. answers asks the
// daemon anything, and reports whether it has answered.
func Insist(ctx context.Context, daemon Awaiter, answers func(context.Context) bool, do func(context.Context) error) error {
	err := do(ctx)
	if err == nil || answers(ctx) {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, restartTimeout)
	defer cancel()
	for range restartTries {
		if daemon.Await(ctx) != nil {
			break
		}
		if answers(ctx) {
			return do(ctx)
		}
	}
	return err
}
