// SPDX-License-Identifier: Apache-2.0

package xenstore

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"
)

const (
	// maxAttempts bounds the attempts of a transaction. The pauses between them are
	// 0.7 s together at most.
	maxAttempts = 20

	// The pause after attempt n is a random one from the upper half of minPause << n,
	// up to maxPause, so that writers that collided once do not collide again.
	minPause = time.Millisecond
	maxPause = 50 * time.Millisecond
)

// Tx is a transaction: the store as it was when the transaction started, plus
// its own changes. It is valid until the function that was given it returns. After
// that its methods return ErrTxDone.
type Tx struct {
	view
}

// Requests returns the number of requests made within the transaction so far.
func (tx *Tx) Requests() int { return int(tx.sent.Load()) }

// abortPayload is the payload of the TRANSACTION_END that discards a
// transaction.
var abortPayload = []byte("F\x00")

// Transaction calls fn and commits its changes. Others see all of them at once, or
// none. If fn returns an error, nothing is changed and Transaction returns that error.
// If fn panics, nothing is changed.
//
// If another client has meanwhile changed nodes that fn has read or written, xenstored
// refuses the commit. Transaction then starts over after a short random pause. After
// many attempts it returns ErrAgain. So fn may run several times: each run must set all
// its results, and must have no effect except for the transaction. fn may return
// ErrAgain to request another attempt.
//
// Calls of the Tx belong to the transaction, calls of the Client do not.
//
// If ctx ends before the commit was sent, nothing is changed. If it ends later,
// it is not known whether xenstored commits.
func (c *Client) Transaction(ctx context.Context, fn func(*Tx) error) error {
	for n := 1; ; n++ {
		err := c.attempt(ctx, fn)
		if !isErr(err, ErrAgain) {
			return err
		}
		if n == maxAttempts {
			return fmt.Errorf("gave up after %d attempts: %w", n, err)
		}
		if err := c.pause(ctx, n-1); err != nil {
			return &Error{Op: MsgTransactionStart.String(), Err: err}
		}
	}
}

// attempt runs one transaction.
func (c *Client) attempt(ctx context.Context, fn func(*Tx) error) error {
	id, err := c.startTransaction(ctx)
	if err != nil {
		return err
	}
	tx := &Tx{view{c: c, tx: id}}
	done := false
	defer func() {
		tx.over.Store(true)
		if !done { // fn failed or panicked
			_, _ = c.exchange(ctx, MsgTransactionEnd, id, abortPayload)
		}
	}()
	if err := fn(tx); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return &Error{Op: MsgTransactionEnd.String(), Err: err}
	}
	tx.over.Store(true)
	done = true
	if _, err := c.exchange(ctx, MsgTransactionEnd, id, AppendStrings(nil, "T")); err != nil {
		return &Error{Op: MsgTransactionEnd.String(), Err: err}
	}
	return nil
}

// startTransaction returns the id of a new transaction. The request itself must
// not carry one.
func (c *Client) startTransaction(ctx context.Context) (uint32, error) {
	b, err := c.call(ctx, MsgTransactionStart, 0, "", []byte{0})
	if err != nil {
		return 0, err
	}
	id, err := parseTxID(b)
	if err != nil {
		c.fail(err)
	}
	return id, err
}

// parseTxID parses the answer to TRANSACTION_START. An error ends the
// connection: a transaction was started that cannot be named, hence not ended.
func parseTxID(b []byte) (uint32, error) {
	id, err := strconv.ParseUint(strings.TrimSuffix(string(b), "\x00"), 10, 32)
	if err != nil || id == 0 {
		return 0, badReply(MsgTransactionStart, "", b)
	}
	return uint32(id), nil
}

// pause waits after attempt n, counted from 0, unless ctx or the connection ends.
func (c *Client) pause(ctx context.Context, n int) error {
	d := min(minPause<<n, maxPause)
	t := time.NewTimer(d/2 + rand.N(d/2))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-c.done:
		return c.Err()
	}
}
